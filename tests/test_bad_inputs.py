"""Bad inputs of every kind that `benchmarks/bad_inputs.py` makes, a few of each: every one is
answered in one line.
"""

import json
import os
import subprocess
import sys

import pytest
import tiny

sys.path.append(str(tiny.ROOT / "benchmarks"))
import bad_inputs
import bad_inputs_cases

_QUICK = "settings,models,tokenizers,adapters,bases,runs,files,flags"
_EVERY = 23  # one of so many inputs, and no divisor of how many values a field is given


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return bad_inputs_cases.every(tmp_path_factory.mktemp("bad"))


def test_every_kind_of_input_and_every_field_is_among_them(cases):
    groups = {case.group for case in cases}
    assert groups == {
        "settings", "models", "builds", "tokenizers", "adapters", "bases", "runs", "files", "flags"
    }  # fmt: skip
    assert len(cases) > 1500
    names = {case.name.partition(":")[0] for case in cases}
    assert {"round_1.train.steps", "unet layers_per_block", "verdict.json round"} <= names


def test_bad_inputs_are_answered_in_one_line_that_names_the_field_or_the_file(tmp_path):
    out = tmp_path / "outcomes.jsonl"
    # In a process of its own: what is forked from one in which JAX has computed may wait for ever.
    line = [sys.executable, bad_inputs.__file__, "--every", str(_EVERY), "--out", str(out)]
    line += ["--only", _QUICK, "--seconds", "120"]  # for a machine that does much else
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    subprocess.run(line, check=True, env=environment, timeout=600, capture_output=True)
    found = [json.loads(row) for row in out.read_text().splitlines()]
    assert len(found) > 200
    assert [row for row in found if row["outcome"] not in ("answered", "accepted")] == []
    assert sum(row["outcome"] == "answered" for row in found) > len(found) / 2


def _fails():
    raise ValueError("no line")


def _waits():
    import time

    time.sleep(60)


def test_what_is_no_answer_is_counted_as_what_it_is_and_the_next_input_follows():
    made = [
        bad_inputs.Case("x", "fails", ("x",), _fails),
        bad_inputs.Case("x", "waits", ("x",), _waits),
        bad_inputs.Case("x", "ends", ("x",), lambda: sys.exit(3)),
        bad_inputs.Case("x", "passes", ("x",), lambda: None),
    ]
    kinds = [outcome.kind for outcome in bad_inputs.run(made, seconds=2)]
    assert kinds == ["traceback", "hang", "traceback", "accepted"]
