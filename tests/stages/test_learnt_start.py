"""Rounds that start from what many styles taught, where that ships with the base model."""

import shutil

import numpy as np
import pytest
import tiny
from runs import flags

from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io import hub
from styledrop_jax.io.files import read_json

RATE = 1e-3


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A base model that ships with a start, which is what another run learnt on it."""
    folder = tmp_path / "shipped" / "muse"
    shutil.copytree(tiny.models() / "muse", folder)
    (folder / "model_index.json").write_text("{}")
    shutil.copyfile(tiny.finished() / "round_1/adapter.safetensors", folder / hub.START)
    monkeypatch.setattr(hub, "SHIPPED", folder.parent)
    return folder


def _run(workdir, **changed):
    small = {"train__steps": 1, "train__learning_rate": RATE, "keep": 1, "start": "learnt"}
    rounds = {}
    for number in (1, 2):
        rounds |= {f"round_{number}__{name}": value for name, value in (small | changed).items()}
    assert tiny.styledrop(*tiny.arguments(workdir, *flags(base="muse", **rounds))) == 0
    return [load_adapter(workdir / f"round_{number}/adapter.safetensors") for number in (1, 2)]


def test_every_round_starts_from_it(shipped, tmp_path, capsys):
    start = load_adapter(shipped / hub.START).tensors
    for learnt in _run(tmp_path / "run", adapter__rank=4, adapter__shared="true"):
        for name, tensor in learnt.tensors.items():
            assert 0 < np.abs(tensor - start[name]).max() < 1.1 * RATE, "one step of Adam"
    assert "starts fresh" not in capsys.readouterr().err
    assert read_json(tmp_path / "run/config.json")["round_2"]["start"] == "learnt"


def test_what_does_not_fit_starts_afresh_and_says_so(shipped, tmp_path, capsys):
    for learnt in _run(tmp_path / "run", adapter__rank=8, adapter__shared="true"):
        assert learnt.config["denoiser"]["bottleneck"] == 8
    said = capsys.readouterr()
    assert "round_1: starts fresh: no learnt start fits" in said.err + said.out
