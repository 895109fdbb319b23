"""The command line: it teaches, and whatever the user gets wrong is one line, exit code 2 and
nothing half-written.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import tiny

from styledrop_jax import __version__, cli, config_files
from styledrop_jax.feedback.describe import Description
from styledrop_jax.style import Style

HELP = {
    "personalize": ("--workdir", "--base", "--config.reference.image", "--config.round_1.train."),
    "plan": ("--device", "v5e:2x4", "compilers"),
    "extend": ("--rounds", "--steps", "--prompts", "--base"),
    "runs": ("runs/",),
    "studio": ("--port", "--host", "--no-browser", "ssh -L"),
    "sample": ("--prompt-file", "--num", "--seed", "--lambda-a", "--negative-prompt", "--round"),
    "mix": ("--subject", "--gamma"),
    "edit": ("--mask", "--strength", "styledrop stylize"),
    "stylize": ("photos/", "--strength", "--prompt", "--num", "grid.png", "SDEdit"),
    "export": ("--format", "kohya", "a1111", "--dtype"),
    "push": ("--to", "--private", "--dry-run", "HF_TOKEN"),
    "fetch": ("--revision", "HF_HOME", "@REVISION"),
    "describe": ("--image", "--content", "--clip", "--num"),
    "configs": ("my_configs/",),
    "rare-tokens": ("--base", "--tokens"),
    "pretrain": ("pretrain_vq", "--workdir"),
    "completion": ("bash", "zsh"),
}


def _python(code, *arguments, cwd=None):
    """Runs a program on this checkout; returns its exit code, output and what it said of errors."""
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


MAIN = "from styledrop_jax.cli import main; main()"


# -------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capfd, words):
    assert tiny.styledrop(*words) == 0
    out = capfd.readouterr().out
    assert all(f"    {name} " in out for name in HELP)


def test_every_command_has_a_help():
    assert tuple(cli.COMMANDS) == tuple(HELP)


@pytest.mark.parametrize("command", HELP)
def test_the_help_of_a_command_teaches(capfd, command):
    assert tiny.styledrop(command, "--help") == 0
    said = capfd.readouterr()
    assert f"    styledrop {command} " in said.out, "an example to copy"
    assert not said.err
    assert all(word in said.out for word in HELP[command])


def test_the_help_of_a_config_is_its_own(capfd):
    assert tiny.styledrop("personalize", "--config", "styo", "--help") == 0
    out = capfd.readouterr().out
    assert "--config.source.image face.png" in out and "--config.source.strength 0.8" in out
    assert "--config.reference.image" not in out and "The same command continues" in out


def test_help_shows_what_the_command_would_use(capfd):
    words = ["--config", "lora:sd15", "--config.round_1.train.steps", 77, "--help"]
    assert tiny.styledrop("personalize", *words) == 0
    out = capfd.readouterr().out
    assert "--config.round_1.train.steps 77: training steps" in out
    assert "--config.round_1.adapter.kind lora: what trains (one of styledrop, lora," in out
    assert tiny.styledrop("personalize", "--config", "nowhere", "--help") == 0
    assert "not shown: --config: no such file or name 'nowhere'" in capfd.readouterr().out


def test_personalize_without_a_config_explains_itself(capfd):
    for words in ([], ["--workdir", "x"], ["--config.rounds", "1"]):
        assert tiny.styledrop("personalize", *words) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: styledrop personalize learns from your images")
        assert "--config.reference.image my.png" in error
        assert all(name in error for name in config_files.names())
    assert not Path("x").exists()


@pytest.mark.parametrize("words", [["--version"], ["-V"]])
def test_the_version(capfd, words):
    assert tiny.styledrop(*words) == 0
    assert capfd.readouterr().out == f"styledrop {__version__}\n"


def test_the_package_is_a_program_too():
    command = [sys.executable, "-m", "styledrop_jax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)
    assert (done.returncode, done.stdout) == (0, f"styledrop {__version__}\n"), done.stderr


def test_help_does_not_wait_for_jax():
    code = (
        f"import sys; sys.argv = ['styledrop', '--help']; {MAIN}; assert 'jax' not in sys.modules"
    )
    exit_code, out, error = _python(code)
    assert exit_code == 0 and "personalize" in out, error


def test_configs_are_listed_and_copied(capfd, tmp_path):
    assert tiny.styledrop("configs") == 0
    assert capfd.readouterr().out.split() == config_files.names()
    assert tiny.styledrop("configs", tmp_path / "mine") == 0
    assert capfd.readouterr().out == f"configs: {tmp_path / 'mine'}\n"
    assert config_files.read(str(tmp_path / "mine" / "svdiff.py")) == config_files.read("svdiff")
    (tmp_path / "file").touch()
    error = runs.refused(capfd, "configs", tmp_path / "file")
    assert str(tmp_path / "file") in error and "a part of this path is a file" in error


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_flag(capfd, tmp_path, shell):
    assert tiny.styledrop("completion", shell) == 0
    script = capfd.readouterr().out
    assert all(command in script for command in HELP)
    assert "--negative-prompt" in script and "--gamma" in script
    if shell == "bash":
        (tmp_path / "styledrop").write_text(script, encoding="utf-8")
        subprocess.run(["bash", "-n", tmp_path / "styledrop"], check=True)
    assert "invalid choice" in runs.refused(capfd, "completion", "fishy")


def test_no_rare_words_are_not_asked_for(capfd):
    for flag, value in (("--num", 0), ("--num", 10**9), ("--seed", -1)):
        error = runs.refused(capfd, "rare-tokens", flag, value)
        assert error.startswith(f"error: {flag}: found {value}, expected ")


def test_rare_words_of_a_model(capfd):
    words = ["rare-tokens", "--base", "emoji128", "--num", 3]
    assert tiny.styledrop(*words) == 0
    found = capfd.readouterr().out.split()
    assert len(set(found)) == 3
    assert tiny.styledrop(*words) == 0
    assert capfd.readouterr().out.split() == found
    assert tiny.styledrop(*words, "--seed", 1) == 0
    assert capfd.readouterr().out.split() != found


# -------------------------------------------------------------- mistyped


RUN = ["personalize", "--config", "styledrop", "--workdir", "x"]


def test_describe_lists_its_words_by_their_likeness_the_hard_prompt_among_them(monkeypatch, capfd):
    found = Description(
        content="a house",
        guessed=False,
        descriptors=[("in ink style", 0.5), ("in crayon style", 0.3)],
        hard_prompt=("in fjord style", 0.4),
    )
    monkeypatch.setattr("styledrop_jax.library.describe", lambda *_, **__: found)
    assert tiny.styledrop("describe", "--image", "x.png", "--hard") == 0
    said = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert said[1:4] == [
        "0.50  in ink style",
        "0.40  in fjord style  (hard prompt)",
        "0.30  in crayon style",
    ]


def test_describe_proposes_words_and_the_command_to_begin_with(tmp_path, capfd):
    image = tiny.picture(tmp_path / "my house.png", seed=1)
    assert tiny.styledrop("describe", "--image", image, "--content", "a house", "--num", 2) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0] == f"{image}: a house"
    first = re.fullmatch(r"    -?\d\.\d\d  (in .+ style)", said[1])
    assert first and len(said) == 5
    assert f"--config.reference.descriptor '{first[1]}' --workdir" in said[-1]
    assert f"--config.reference.image '{image}'" in said[-1]
    assert tiny.styledrop("describe", "--image", image) == 0
    assert "guessed: --content says it better" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["personalise"], "did you mean 'personalize'?"),
        (["x" * 1000], "unknown command"),
        (["sample", "--run", "x", "--promt", "a cat"], "did you mean '--prompt'?"),
        (["sample", "--run", "x", "--prompt=a cat", "--lambda_a=1"], "did you mean '--lambda-a'?"),
        (["personalize", "--config", "styledrop", "--workdr", "x"], "--workdir"),
        ([*RUN, "--config.round_1.train.stepz", "4"], "'config.round_1.train.steps'?"),
        ([*RUN, "--config", "styledrpo"], "did you mean 'styledrop'?"),
        ([*RUN, "--config", "configs/styledrpo.py"], "did you mean 'styledrop'?"),
        ([*RUN, "--config", "styledrop:emoji182"], "did you mean 'emoji128'?"),
        ([*RUN, "--config.round_1.select.scorers.clip_txt", "1"], "scorers.clip_text'?"),
        ([*RUN, "--config.round_1.select.by", "promt"], "did you mean 'prompt'?"),
        ([*RUN, "--config.round_1.train.learning_rate", "1e30"], "at most 1"),
        ([*RUN, "--config.round_1.train.steps", "many"], "expected a whole number"),
        ([*RUN, "--config.rounds", "0"], "expected a whole number of at least 1"),
        ([*RUN, "--config.round_1.train.steps", "0"], "expected a whole number of at least 1"),
        ([*RUN, "--config.round_1", "3"], "config.round_1: found '3', expected a dict"),
        (["personalize", "--config", "styledrop"], "--workdir"),
        (["extend", "--rounds", "1"], "--run"),
        (["sample", "--prompt", "a cat"], "--run"),
        (["mix", "--style", "x", "--prompt", "a cat"], "--subject"),
        (["pretrain", "--workdir", "x"], "--config"),
        (["rare-tokens", "--tokens", "9"], "--tokens"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(capfd, monkeypatch, tmp_path, words, hint):
    monkeypatch.chdir(tmp_path)
    error = runs.refused(capfd, *words)
    assert hint in error and len(error) < 500
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------- the process


def test_ctrl_c_says_how_to_go_on(capfd, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Style, "load", interrupted)
    assert tiny.styledrop("sample", "--run", "x", "--prompt", "a cat") == 130
    assert capfd.readouterr().err == "stopped; the same command continues\n"


_THREAD_FAILS = """
import logging, sys, threading
from styledrop_jax import cli
from styledrop_jax.errors import UserError
def fails():
    raise OSError(28, "No space left on device")
def command(argv):
    for _ in range(2):
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    try:
        fails()
    except OSError:
        logging.getLogger("orbax").exception("it fails")
    class Callback:
        def __del__(self):
            fails()
    Callback()
    if argv:
        raise UserError("a.png: cannot be written")
cli.COMMANDS["test"] = cli.Command(command, cli.completion_parser)
cli.main()
"""


def test_what_a_command_says_itself_no_thread_of_a_library_says_too():
    exit_code, _, error = _python(_THREAD_FAILS, "test", "fails")
    assert exit_code == 2 and error == "error: a.png: cannot be written\n"
    exit_code, _, error = _python(
        _THREAD_FAILS.replace("if argv", "if argv and 1 / 0"), "test", "x"
    )
    assert exit_code == 1 and error.rstrip().endswith("ZeroDivisionError: division by zero")
    exit_code, _, error = _python(_THREAD_FAILS, "test")
    assert exit_code == 0 and error.count("OSError: [Errno 28]") == 4, "nobody else says it"


_INTERRUPTED = """
import sys, time
from styledrop_jax import cli
class Callback:
    def __del__(self):
        raise KeyboardInterrupt
def command(argv):
    Callback()
    time.sleep(30)
cli.COMMANDS["test"] = cli.Command(command, cli.completion_parser)
cli.main()
"""


_SWALLOWED = """
import os, signal
from styledrop_jax import cli
from styledrop_jax.errors import UserError
def command(argv):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise UserError("a model: its config describes no model")
cli.COMMANDS["test"] = cli.Command(command, cli.completion_parser)
cli.main()
"""


@pytest.mark.parametrize("command", [_INTERRUPTED, _SWALLOWED], ids=["callback", "native code"])
def test_a_ctrl_c_is_one_wherever_it_falls(command):
    """Where nothing can be raised, such as while garbage is collected, it comes again, and at once;
    where native code makes an error of it, it is told apart.
    """
    began = time.monotonic()
    exit_code, _, error = _python(command, "test")
    assert exit_code == 130 and error == "stopped; the same command continues\n"
    assert time.monotonic() - began < 25, "it waited for what it was to stop"


_LATE = """
import atexit, os, signal
from styledrop_jax import cli
atexit.register(os.kill, os.getpid(), signal.SIGINT)
cli.COMMANDS["test"] = cli.Command(print, cli.completion_parser)
cli.main()
"""


def test_a_ctrl_c_after_all_is_done_stops_nothing():
    exit_code, _, error = _python(_LATE, "test")
    assert exit_code == 0 and not error


def test_warnings_are_one_line(tmp_path):
    prompt = "a cat " + "and another cat " * 9
    words = ["sample", "--run", tiny.finished(), "--prompt", prompt, "--num", 1]
    exit_code, _, error = _python(MAIN, *words, "--out", tmp_path)
    assert exit_code == 0, error
    assert error.startswith("warning: prompt 'a cat and another") and error.count("\n") == 1
    assert "cut: " in error


def test_a_reader_that_stops_early_is_no_error():
    """`styledrop --help | head -1`"""
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    command = f'set -o pipefail; "{sys.executable}" -c "{MAIN}" --help | head -c 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert not done.stderr
