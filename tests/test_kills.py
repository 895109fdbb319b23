"""Commands that are killed at any moment, typed again, and compared byte by byte, and files whose
disk fails: a little of what `benchmarks/kills.py` and `benchmarks/faults.py` do at length.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

sys.path.append(str(tiny.ROOT / "benchmarks"))
import compared


@pytest.mark.timeout(900)  # on a machine that does much else
def test_commands_that_are_killed_and_typed_again_leave_what_an_unbroken_one_does(tmp_path):
    out = tmp_path / "kills.jsonl"
    # In a process of its own: what is forked from one in which JAX has computed may wait for ever.
    line = [sys.executable, str(tiny.ROOT / "benchmarks" / "kills.py"), "--out", str(out)]
    line += ["--only", "sample muse", "--count", "3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert sum(row["kills"] for row in rows) >= 3
    assert {row["signal"] for row in rows} == {"KILL", "TERM", "INT"}
    for row in rows:
        assert row["broken"] == []
        assert row["found"] == {"lost": [], "different": [], "left behind": []}


_EACH_CALL_FAILS = """
import ctypes, sys
from multiprocessing import RawArray
from pathlib import Path
import faults
faults._preload()
import numpy as np
from styledrop_jax.errors import UserError
from styledrop_jax.io import files, pretrained

def append(path):
    with files.JsonLines(path) as lines:
        lines.append(1)

WRITERS = {
    "a.json": lambda path: files.write_json(path, 1),
    "a.jsonl": append,
    "a.safetensors": lambda path: pretrained.save(path, {"a": np.ones(2, np.float32)}),
}
calls = RawArray(ctypes.c_long, 16)
for name, fault in faults.FAULTS.items():
    for file, write in WRITERS.items():
        for at in range(1, 100):
            folder = Path(sys.argv[1], name, str(at), file)
            folder.mkdir(parents=True)
            faults._arm(folder, fault, at, calls)
            before = sum(calls)
            try:
                write(folder / "new" / file)
            except UserError as error:
                assert f"new/{file}: cannot be written" in str(error), error
            last = sum(calls) - before < at
            faults._arm(folder, fault, 0, calls)
            files._LOOKED_INTO.clear()  # as the next process
            write(folder / "new" / file)
            left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
            assert left == {"new", f"new/{file}"}, (name, file, at, left)
            if last:
                break
        print(name, file, at)
"""


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="no cc")
def test_whichever_call_fails_the_file_is_named_and_nothing_half_written_stays(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_EACH_CALL_FAILS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tried = {row.rpartition(" ")[0]: int(row.split()[-1]) for row in done.stdout.splitlines()}
    assert len(tried) == 15 and min(tried.values()) > 2, tried


def test_what_is_lost_differs_and_is_left_behind_is_told_apart():
    found = compared.differences(
        {"a": b"1", "b": b"2", "c": b"3"}, {"a": b"1", "b": b"0", "d": b"4"}
    )
    assert found == {"lost": ["c"], "different": ["b"], "left behind": ["d"]}
