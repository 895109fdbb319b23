"""The command line: it teaches, and whatever the user gets wrong is one line, exit code 2 and
nothing half-written.
"""

import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tiny
from PIL import Image

from styledrop_jax import cli, style
from styledrop_jax.io import hub
from styledrop_jax.io.files import read_json, write_json

COMMANDS = ("personalize", "sample", "mix", "edit", "stylize", "rare-tokens", "pretrain")


def _refused(capfd, *words):
    """The one line of a command that ends with exit code 2."""
    assert tiny.styledrop(*words) == 2
    said = capfd.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.out
    return said.err


def _nothing_left(workdir):
    """No result, and no file that is half one."""
    left = [path.name for path in workdir.rglob("*")] if workdir.exists() else []
    assert not [
        name
        for name in left
        if "tmp" in name or name.endswith((".html", ".png", ".safetensors", ".jsonl"))
    ]


# -------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capfd, words):
    assert tiny.styledrop(*words) == 0
    out = capfd.readouterr().out
    assert all(f"    {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_teaches(capfd, command):
    assert tiny.styledrop(command, "--help") == 0
    said = capfd.readouterr()
    assert f"styledrop {command} --" in said.out, "an example to copy"
    assert not said.err
    expected = {
        "personalize": (
            "--workdir",
            "--config.reference.image",
            "--config.round_1.train.steps",
            "amused-256",
        ),
        "sample": (
            "--prompt-file",
            "--num",
            "--seed",
            "--lambda-a",
            "--lambda-b",
            "--negative-prompt",
            "--round",
        ),
        "mix": ("--subject", "--gamma"),
        "edit": ("--mask", "--strength", "styledrop stylize"),
        "stylize": ("photos/", "--strength", "--prompt", "--num", "grid.png", "SDEdit"),
        "rare-tokens": ("--base", "--tokens"),
        "pretrain": ("configs/pretrain_vq.py", "--workdir"),
    }
    assert all(word in said.out for word in expected[command])


def test_the_help_of_a_config_is_its_own(capfd):
    assert tiny.styledrop("personalize", "--config", "configs/styo.py", "--help") == 0
    out = capfd.readouterr().out
    assert "--config.source.image face.png" in out and "--config.source.strength 0.8" in out
    assert "--config.reference.image" not in out and "The same command continues a run" in out


def test_no_rare_words_are_not_asked_for(capfd):
    assert tiny.styledrop("rare-tokens", "--num", 0) == 2
    assert capfd.readouterr().err == "error: --num: found 0, expected at least 1\n"


# -------------------------------------------------------------- mistyped


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["personalise"], "did you mean 'personalize'?"),
        (["sample", "--run", "x", "--promt", "a cat"], "did you mean '--prompt'?"),
        (["sample", "--run", "x", "--prompt=a cat", "--lambda_a=1"], "did you mean '--lambda-a'?"),
        (["personalize", "--workdr", "x"], "--workdir"),
        (
            ["personalize", "--workdir", "x", "--config.round_1.train.stepz", "4"],
            "'config.round_1.train.steps'?",
        ),
        (
            ["personalize", "--workdir", "x", "--config", "configs/styledrpo.py"],
            "did you mean 'configs/styledrop.py'?",
        ),
        (
            ["personalize", "--workdir", "x", "--config", "configs/styledrop.py:emoji46"],
            "did you mean 'emoji64'?",
        ),
        (
            ["personalize", "--workdir", "x", "--config.round_1.select.scorers.clip_txt", "1"],
            "scorers.clip_text'?",
        ),
        (
            ["personalize", "--workdir", "x", "--config.round_1.select.by", "promt"],
            "did you mean 'prompt'?",
        ),
        (
            ["personalize", "--workdir", "x", "--config.round_1.train.learning_rate", "1e30"],
            "at most 1",
        ),
        (
            ["personalize", "--workdir", "x", "--config.round_1.train.steps", "many"],
            "expected a whole number",
        ),
        (
            ["personalize", "--workdir", "x", "--config.rounds", "0"],
            "expected a whole number of at least 1",
        ),
        (["personalize", "--config.rounds", "1"], "--workdir"),
        (["sample", "--prompt", "a cat"], "--run"),
        (["mix", "--style", "x", "--prompt", "a cat"], "--subject"),
        (["pretrain", "--workdir", "x"], "--config"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(capfd, monkeypatch, tmp_path, words, hint):
    shutil.copytree(tiny.ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert hint in _refused(capfd, *words)
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------- bad images


def _header(width, height):
    """A PNG that only promises its pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _write_bad_image(path, kind):
    tiny.picture(path)
    if kind == "text":
        path.write_text("this is no picture", encoding="utf-8")
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    if kind == "huge":
        path.write_bytes(_header(60_000, 60_000))
    if kind == "animated":
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    if kind == "missing":
        path.rename(path.with_name("mine2.png"))
    if kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not an image"),
        ("empty", "the file is empty"),
        ("truncated", "damaged or cut short"),
        ("huge", "60,000 x 60,000 pixels"),
        ("animated", "animated, with 2 frames"),
        ("missing", "did you mean 'mine2.png'?"),
        ("folder", "no image in this folder"),
    ],
)
def test_an_image_that_cannot_be_used(tmp_path, capfd, kind, message):
    image = tmp_path / "mine.png"
    _write_bad_image(image, kind)
    error = _refused(capfd, *tiny.arguments(tmp_path / "run", image=image))
    assert str(image) in error and message in error
    assert not (tmp_path / "run").exists()


def test_an_image_without_words(tmp_path, capfd):
    for word in ("content", "descriptor"):
        error = _refused(capfd, *tiny.arguments(tmp_path / "run", f"--config.reference.{word}="))
        assert f"config.reference.{word}" in error or word in error
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------- bad prompts, folders and disks


def test_prompt_files_that_hold_none(tmp_path, capfd):
    for name, content, message in (
        ("empty.txt", b" \n\n", "holds no prompt"),
        ("latin.txt", "Stra\u00dfe".encode("latin-1"), "UTF-8"),
        ("nowhere.txt", None, "no such file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        error = _refused(capfd, *tiny.arguments(tmp_path / "run", "--config.prompts", path))
        assert str(path) in error and message in error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("here is no folder", encoding="utf-8")
    error = _refused(capfd, *tiny.arguments(tmp_path / "file" / "run"))
    assert str(tmp_path / "file" / "run") in error and "expected folders" in error

    lines = (
        tiny.arguments(tmp_path / "run"),
        ["sample", "--run", tiny.finished(), "--prompt", "a cat", "--out", tmp_path / "run"],
    )
    mkdir = Path.mkdir

    def read_only(path, *args, **kwargs):
        if path.is_relative_to(tmp_path):
            raise OSError(30, "Read-only file system")
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    capfd.readouterr()
    for words in lines:
        error = _refused(capfd, *words)
        assert str(tmp_path / "run") in error and "read-only" in error


def test_a_folder_of_something_else(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"task": ', encoding="utf-8")
    assert "expected JSON" in _refused(capfd, *tiny.arguments(tmp_path))
    write_json(tmp_path / "config.json", {"task": "vq"})
    assert "holds a run of another config" in _refused(capfd, *tiny.arguments(tmp_path))


# -------------------------------------------------------------- bad weights


class _Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_never_opened(tmp_path, capfd):
    mark, models = tmp_path / "opened", tmp_path / "models"
    trap = pickle.dumps(_Trap(mark))
    shutil.copytree(tiny.models(), models)
    weights = models / "muse" / "transformer" / "diffusion_pytorch_model.safetensors"
    for name in (weights.name, "diffusion_pytorch_model.bin"):
        weights.unlink(missing_ok=True)
        (weights.parent / name).write_bytes(trap)
        error = _refused(capfd, *tiny.arguments(tmp_path / "run", "--config.base", models / "muse"))
        assert "pickle" in error and str(weights.parent) in error
        _nothing_left(tmp_path / "run")

    run = shutil.copytree(tiny.finished(), tmp_path / "finished")
    (run / "round_2" / "adapter.safetensors").write_bytes(trap)
    error = _refused(capfd, "sample", "--run", run, "--prompt", "a cat")
    assert "round_2/adapter.safetensors" in error and "pickle" in error
    assert not mark.exists() and not (run / "drawn").exists()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_corrupted_adapter_is_named(tmp_path, capfd, how):
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    path = run / "round_2" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes({"truncated": bytes(data[:-9]), "flipped": bytes(data), "empty": b""}[how])
    assert str(path) in _refused(capfd, "sample", "--run", run, "--prompt", "a cat")
    assert not (run / "drawn").exists()
    (run / "report.html").unlink()
    assert str(path) in _refused(capfd, *tiny.arguments(run))


def test_a_model_that_is_not_there_says_how_to_get_it(tmp_path, capfd, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    error = _refused(
        capfd, *tiny.arguments(tmp_path / "run", "--config.base", "amused/amused-none")
    )
    assert "hf download amused/amused-none" in error
    error = _refused(
        capfd, *tiny.arguments(tmp_path / "run", "--config.base", tmp_path / "nowhere")
    )
    assert "nowhere" in error and "no such folder" in error
    shutil.copytree(tiny.models() / "muse", tmp_path / "muse")
    shutil.rmtree(tmp_path / "muse" / "vqvae")
    error = _refused(capfd, *tiny.arguments(tmp_path / "run", "--config.base", tmp_path / "muse"))
    assert "vqvae" in error
    _nothing_left(tmp_path / "run")


# -------------------------------------------------------------- the process


def test_ctrl_c_says_how_to_go_on(capfd, monkeypatch):
    def interrupted(flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(style, "sample", interrupted)
    assert tiny.styledrop("sample", "--run", "x", "--prompt", "a cat") == 130
    assert capfd.readouterr().err == "stopped; the same command continues\n"


def test_warnings_are_one_line(tmp_path, capfd):
    prompt = "a cat " + "and another cat " * 9
    words = ["--prompt", prompt, "--num", 1, "--out", tmp_path]
    assert tiny.styledrop("sample", "--run", tiny.finished(), *words) == 0
    error = capfd.readouterr().err
    assert (
        error.startswith("warning: prompt 'a cat and another")
        and "cut: " in error
        and error.count("\n") == 1
    )


_KILLED = """
import os, signal, sys
from styledrop_jax import cli
left, replace = int(sys.argv.pop(1)), os.replace
def kills(source, target):
    global left
    left -= str(target).endswith(".png")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kills
cli.main()
"""


def test_a_killed_process_is_continued_by_the_same_command(tmp_path):
    """A true SIGKILL, between a drawing's last byte and its name; then the command itself, as a
    user runs it.
    """
    workdir = tmp_path / "run"
    line = tiny.arguments(workdir)
    killed = subprocess.run([sys.executable, "-c", _KILLED, "6", *line], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((workdir / "round_1" / "samples").glob("*.png"))) == 2, (
        "killed at the third of four"
    )

    program = "from styledrop_jax.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {workdir / 'report.html'}"
    assert "round_1: drawing: 2 of 4" in done.stdout
    for path in tiny.finished().rglob("*"):
        if path.suffix in (".png", ".safetensors") and "checkpoints" not in path.parts:
            assert (workdir / path.relative_to(tiny.finished())).read_bytes() == path.read_bytes()
    counts = read_json(workdir / "manifest.json")["rounds"]
    assert set(counts) == {"round_1", "round_2"}


def test_a_reader_that_stops_early_is_no_error():
    """`styledrop --help | head -1`"""
    program = "from styledrop_jax.cli import main; main()"
    command = f'"{sys.executable}" -c "{program}" --help | head -c 1'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True
    )
    assert not done.stderr


def test_a_new_command_is_documented():
    assert tuple(cli.COMMANDS) == COMMANDS
