import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from styledrop_jax.errors import UserError
from styledrop_jax.io import files as run_module
from styledrop_jax.io.files import (
    JsonLines,
    Run,
    guard,
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
)

CONFIG = {"seed": 0, "round_1": {"train": {"steps": 200}}, "names": ("a", "b")}


def _python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_new_folder_gets_its_config_and_continues(tmp_path):
    with Run.open(tmp_path / "runs" / "a", CONFIG) as run:
        assert read_json(run.path("config.json")) == {**CONFIG, "names": ["a", "b"]}
    with Run.open(tmp_path / "runs" / "a", CONFIG) as run:
        assert run.config["seed"] == 0


def test_another_config_names_each_field(tmp_path):
    Run.open(tmp_path, CONFIG).close()
    other = {
        "seed": 1,
        "round_1": {"train": {"steps": 50}},
        "names": ["a", "b"],
        "dtype": "float32",
    }
    with pytest.raises(UserError) as caught:
        Run.open(tmp_path, other)
    message = str(caught.value)
    assert "seed was 0, now 1" in message and "round_1.train.steps was 200, now 50" in message
    assert (
        'dtype was not there, now "float32"' in message
        and "names was" not in message
        and "\n" not in message
    )
    Run.open(tmp_path, CONFIG).close()  # the refused one left neither a lock nor a change


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    process = _python(
        """
        import sys
        from styledrop_jax.run import Run
        run = Run.open(sys.argv[1], {"seed": 0})
        print("open", flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"another process \\({process.pid}\\)"):
        Run.open(tmp_path, {"seed": 0})
    assert Run.load(tmp_path).config == {"seed": 0}  # looking is allowed
    process.send_signal(signal.SIGKILL)
    process.communicate()
    Run.open(tmp_path, {"seed": 0}).close()


def test_a_file_is_whole_or_absent_after_a_kill(tmp_path):
    path = tmp_path / "big.json"
    write_json(path, ["old"])
    process = _python(
        """
        import os, sys
        from styledrop_jax import run
        run.os.replace = lambda *names: os.kill(os.getpid(), 9)
        run.write_json(sys.argv[1], ["new"] * 1000)
        """,
        path,
    )
    assert process.wait() == -signal.SIGKILL
    assert read_json(path) == ["old"]
    write_json(path, ["newer"])
    assert read_json(path) == ["newer"]


def test_done_is_the_final_file(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        assert not run.done("round_1/adapter.safetensors")
        write_bytes(run.path("round_1", "adapter.safetensors"), b"x")
        assert run.done("round_1/adapter.safetensors")


def test_manifest_is_merged(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        assert run.manifest == {}
        run.update_manifest({"device": "cpu", "counts": {"train": np.int64(3)}})
        run.update_manifest({"counts": {"frozen": 4}, "loss": np.float32("nan")})
        assert run.manifest == {"device": "cpu", "counts": {"train": 3, "frozen": 4}, "loss": None}


def test_load_refuses_what_is_no_run(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="did you mean 'mine'"):
        Run.load(tmp_path / "mien")
    with pytest.raises(UserError, match="not a run folder"):
        Run.load(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        Run.load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_bad_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, number, words):
    write_json(tmp_path / "a.json", 1)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_module.os, "fsync", fail)
    with pytest.raises(UserError, match=f"a.json: .*{words}") as caught:
        write_json(tmp_path / "a.json", 2)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and read_json(
        tmp_path / "a.json"
    ) == 1
    with pytest.raises(UserError, match=words):
        JsonLines(tmp_path / "rows.jsonl").append({})


def test_a_workdir_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UserError, match="a part of this path is a file"):
            Run.open(workdir, CONFIG)

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run_module.Path, "mkdir", fail)
    with pytest.raises(UserError, match="read-only"):
        Run.open(tmp_path / "new", CONFIG)


def test_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError), guard(tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})


@pytest.mark.parametrize("torn", [b'{"i": 2, "te', b'{"i": 2}', b"\0\0\0\0\n"])
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as lines:
        assert lines.rows == []
        lines.append({"i": 0, "text": "é\n"})
        lines.append({"i": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_jsonl(path) == [{"i": 0, "text": "é\n"}, {"i": 1}]
    with JsonLines(path) as lines:
        assert len(lines.rows) == 2
        lines.append({"i": 2})
    assert path.read_bytes() == whole + b'{"i": 2}\n'


def test_rows_survive_a_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = """
        import os, sys
        from styledrop_jax.run import JsonLines
        lines = JsonLines(sys.argv[1])
        for i in range(3):
            lines.append({"i": i})
        os.kill(os.getpid(), 9)
    """
    assert _python(code, path).wait() == -signal.SIGKILL
    assert [row["i"] for row in read_jsonl(path)] == [0, 1, 2]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"i": 0}\n{"i"\n{"i": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_jsonl(path)
    assert json.loads(path.read_text().splitlines()[2]) == {"i": 2}
