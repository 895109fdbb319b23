"""A few seconds of what `benchmarks/fuzz.py` does at length."""

import sys

import pytest
import tiny

pytest.importorskip("atheris")
sys.path.append(str(tiny.ROOT / "benchmarks"))
import fuzz


@pytest.mark.parametrize("target", ["images", "prompts"])
def test_whatever_a_file_holds_is_taken_or_answered_in_one_line(target, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    result = fuzz.fuzzed(target, tmp_path, seconds=3)
    assert not result.failed and result.inputs > 20


def test_what_is_not_answered_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    result = fuzz.fuzzed("no such target", tmp_path, seconds=1)
    assert "no such target" in result.failed
