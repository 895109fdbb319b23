"""Files that survive any death: whole or absent, appended line by line, and read with one line of
error.
"""

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
from styledrop_jax.io import files
from styledrop_jax.io.files import (
    JsonLines,
    guard,
    plain,
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
    write_jsonl,
)

DEEP = "[" * 200_000


def _python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# -------------------------------------------------------------- whole files


def test_a_file_is_whole_or_absent_after_a_kill(tmp_path):
    path = tmp_path / "big.json"
    write_json(path, ["old"])
    process = _python(
        """
        import os, sys
        from styledrop_jax.io import files
        files.os.replace = lambda *names: os.kill(os.getpid(), 9)
        files.write_json(sys.argv[1], ["new"] * 1000)
        """,
        path,
    )
    assert process.wait() == -signal.SIGKILL
    assert read_json(path) == ["old"]
    assert len(list(tmp_path.iterdir())) == 2
    again = (
        "import sys; from styledrop_jax.io import files; files.write_json(sys.argv[1], ['newer'])"
    )
    assert _python(again, path).wait() == 0
    assert read_json(path) == ["newer"] and list(tmp_path.iterdir()) == [path]


def test_what_another_process_writes_now_is_left_to_it(tmp_path):
    held = tmp_path / ".a.json.1.tmp"
    held.touch()
    left = tmp_path / ".b.safetensors.2.tmp"
    (left / "half").mkdir(parents=True)
    others = tmp_path / ".notes.tmp"
    others.touch()
    with held.open() as file:
        assert files.locked(file)
        write_json(tmp_path / "a.json", ["mine"])
    assert held.exists() and others.exists() and not left.exists()
    assert read_json(tmp_path / "a.json") == ["mine"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "input/output error"),
    ],
)
def test_a_bad_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, number, words):
    write_json(tmp_path / "a.json", 1)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UserError, match=f"a.json: .*{words}") as caught:
        write_json(tmp_path / "a.json", 2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == 1
    with pytest.raises(UserError, match=words):
        JsonLines(tmp_path / "rows.jsonl").append({})


def test_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError), guard(tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_folders_are_made_and_a_file_in_their_place_is_named(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"x")
    with pytest.raises(UserError, match="a part of this path is a file"):
        write_bytes(tmp_path / "a" / "b" / "c.bin" / "d.bin", b"x")


def test_what_json_has_no_word_for():
    value = {"nan": np.float32("nan"), 1: (np.int64(3), float("inf")), "array": np.eye(2)}
    assert plain(value) == {"nan": None, "1": [3, None], "array": [[1.0, 0.0], [0.0, 1.0]]}


# -------------------------------------------------------------- lines


@pytest.mark.parametrize("torn", [b'{"i": 2, "te', b'{"i": 2}', b"\0\0\0\0\n", DEEP.encode()])
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
        from styledrop_jax.io.files import JsonLines
        lines = JsonLines(sys.argv[1])
        for i in range(3):
            lines.append({"i": i})
        os.kill(os.getpid(), 9)
    """
    assert _python(code, path).wait() == -signal.SIGKILL
    assert [row["i"] for row in read_jsonl(path)] == [0, 1, 2]


def test_rows_are_written_all_or_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"i": 0}, [1]])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"i": 0}, object()])
    assert read_jsonl(path) == [{"i": 0}, [1]]
    assert read_jsonl(tmp_path / "nowhere.jsonl") == []


def test_a_second_process_that_wants_a_file_alone_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    process = _python(
        """
        import sys
        from styledrop_jax.io.files import JsonLines
        lines = JsonLines(sys.argv[1], alone=True)
        print("open", flush=True)
        sys.stdin.read()
        """,
        path,
    )
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="another command writes into this folder"):
        JsonLines(path, alone=True)
    process.communicate("")
    JsonLines(path, alone=True).close()


def test_a_file_that_cannot_be_read_is_not_kept_open(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is not JSON") as caught:
        JsonLines(path, alone=True)
    path.write_text("{}\n", encoding="utf-8")
    with JsonLines(path, alone=True) as lines:
        assert lines.rows == [{}]
    assert caught.value.__traceback__ is not None, "which may keep what failed alive"


# -------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("text", ["{", "", "[1, 2", "\0", DEEP, "9" * 5000, "\ufffe{}"])
def test_what_is_no_json_is_one_line(tmp_path, refused, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert refused(read_json, path).startswith(f"{path}: expected JSON")
    path.write_bytes(b"\xff\xfe")
    assert refused(read_json, path).startswith(f"{path}: expected JSON")


def test_a_broken_line_in_the_middle_is_an_error(tmp_path, refused):
    path = tmp_path / "rows.jsonl"
    for broken in ('{"i"', "", DEEP):
        path.write_text(f'{{"i": 0}}\n{broken}\n{{"i": 2}}\n', encoding="utf-8")
        assert "line 2 is not JSON" in refused(read_jsonl, path)
    assert json.loads(path.read_text().splitlines()[2]) == {"i": 2}


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path, refused):
    assert "no such file" in refused(read_json, tmp_path / "nowhere.json")
    assert "found a directory" in refused(read_json, tmp_path)
    assert "found a directory" in refused(read_jsonl, tmp_path)


def test_what_is_no_regular_file_is_neither_read_nor_written(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    target = tmp_path / "outside.txt"
    target.write_text("mine")
    (tmp_path / "link").symlink_to(target)
    for read in (read_json, read_jsonl):
        assert "found a pipe or a device" in refused(read, tmp_path / "pipe")
        assert "found a pipe or a device" in refused(read, "/dev/zero")
    for name in ("pipe", "link"):
        assert "found a link, a pipe or a device" in refused(JsonLines, tmp_path / name)
    assert target.read_text() == "mine"


def test_names_that_are_no_unicode_are_written_and_read_back(tmp_path):
    name = "caf\udce9.png"
    write_json(tmp_path / "a.json", {"image": name})
    assert read_json(tmp_path / "a.json") == {"image": name}
    with JsonLines(tmp_path / "rows.jsonl") as lines:
        lines.append({"image": name})
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"image": name}]
