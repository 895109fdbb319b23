"""Commands that are killed at any moment, typed again, and compared byte by byte: a few of what
`benchmarks/kills.py` does at length.
"""

import json
import os
import subprocess
import sys

import tiny

sys.path.append(str(tiny.ROOT / "benchmarks"))
import small_runs


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


def test_what_is_lost_differs_and_is_left_behind_is_told_apart():
    found = small_runs.differences(
        {"a": b"1", "b": b"2", "c": b"3"}, {"a": b"1", "b": b"0", "d": b"4"}
    )
    assert found == {"lost": ["c"], "different": ["b"], "left behind": ["d"]}
