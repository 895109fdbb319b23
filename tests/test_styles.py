"""Many styles by one command: each run is the one that the same settings make of it alone."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
import tiny
from safetensors.numpy import load_file

from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.training import many as training_many
from styledrop_jax.training.checkpoint import Checkpoints

WORDS = {"content": "a house", "descriptor": "in watercolor painting style"}


def _listed(folder, *lines):
    path = folder / "styles.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two styles, trained at once."""
    folder = tmp_path_factory.mktemp("many")
    tiny.picture(folder / "own" / "one.png", seed=1)
    lines = [{"name": "first", "image": str(tiny.reference()), **WORDS}]
    lines.append({"name": "second", "image": "own/one.png", **WORDS})
    path = _listed(folder, *lines)
    words = tiny.arguments(folder / "runs", "--styles", path, "--at-once", 2)
    assert tiny.styledrop(*words) == 0
    return folder


def _close(one, other):
    """Two finished runs have learnt the same, within rounding, and said so."""
    for number in (1, 2):
        stage = f"round_{number}"
        first = load_file(one / stage / "adapter.safetensors")
        second = load_file(other / stage / "adapter.safetensors")
        for name, weight in first.items():
            np.testing.assert_allclose(second[name], weight, atol=2e-4)
    rows = read_jsonl(one / "metrics.jsonl")
    for row, mine in zip(rows, read_jsonl(other / "metrics.jsonl"), strict=True):
        assert (row["stage"], row["step"]) == (mine["stage"], mine["step"])
        assert row["loss"] == pytest.approx(mine["loss"], abs=1e-3)


def test_each_is_the_run_that_it_would_be_alone(many):
    for name in ("first", "second"):
        assert (many / "runs" / name / "report.html").exists()
    _close(many / "runs" / "first", tiny.finished())
    config = read_json(many / "runs" / "second" / "config.json")
    assert config["reference"]["image"] == str(many / "own" / "one.png")
    assert {**config, "reference": None} == {
        **read_json(tiny.finished() / "config.json"),
        "reference": None,
    }
    one = load_file(many / "runs" / "first" / "round_1" / "adapter.safetensors")
    two = load_file(many / "runs" / "second" / "round_1" / "adapter.safetensors")
    assert any(np.abs(one[name] - two[name]).max() > 1e-3 for name in one)
    image = next((many / "runs" / "second" / "round_2" / "samples").glob("*.png"))
    assert image_files.read_image(image).shape == (tiny.RESOLUTION, tiny.RESOLUTION, 3)


def test_one_of_those_that_trained_at_once_is_gone_on_with_alone(many, tmp_path, capfd):
    """After a death at their first checkpoint, by the ordinary command."""
    saves = []
    save = Checkpoints.save

    def dying(self, *state):
        save(self, *state)
        saves.append(self.folder)
        if len(saves) == 2:
            raise runs.Death

    words = tiny.arguments(tmp_path, "--styles", many / "styles.jsonl", "--at-once", 2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runs.Death):
        patch.setattr(Checkpoints, "save", dying)
        tiny.styledrop(*words)
    assert [folder.parents[1].name for folder in saves] == ["first", "second"]
    folder = tmp_path / "second"
    assert tiny.styledrop("personalize", "--config", folder, "--workdir", folder) == 0
    assert "round_1: 2 of 4" in capfd.readouterr().out
    _close(folder, many / "runs" / "second")
    assert not (tmp_path / "first" / "report.html").exists()


def test_three_of_them_train_on_two_devices(many, tmp_path):
    """Each on its own, in a process that has two; the last one on both."""
    lines = [{"name": "first", "image": str(tiny.reference()), **WORDS}]
    for name in ("second", "third"):
        lines.append({"name": name, "image": str(many / "own" / "one.png"), **WORDS})
    words = tiny.arguments(tmp_path, "--styles", _listed(tmp_path, *lines), "--at-once", 3)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    line = [sys.executable, "-m", "styledrop_jax", *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "round_1, 3 at once" in done.stdout
    for line in (
        "first: opening it",
        "first: samples of the base model",
        "third: samples of round 2",
    ):
        assert f"-- {line}\n" in done.stdout
    assert done.stdout.count("-- first, second, third: training round") == 2
    assert done.stdout.count("parameters train") == 2, "once a round"
    _close(tmp_path / "first", many / "runs" / "first")
    _close(tmp_path / "third", many / "runs" / "second")


def test_more_than_fit_into_memory_train_one_after_the_other(many, tmp_path, capfd):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    more = ("--styles", many / "styles.jsonl", "--at-once", 2, "--config.rounds", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_many, "fit", full)
        assert tiny.styledrop(*tiny.arguments(tmp_path, *more)) == 0
    assert "2 styles at once do not fit into memory; 1 may" in capfd.readouterr().out
    for name in ("first", "second"):
        assert (tmp_path / name / "report.html").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"name": "a"}], "line 1: image is None, expected a text"),
        ([{"name": "../a", "image": "x.png"}], "name: found '../a', expected the name of a folder"),
        ([{"name": "a", "imag": "x.png"}], "unknown 'imag'; did you mean 'image'?"),
        ([{"name": "a", "image": "x.png"}] * 2, "line 2: name: found 'a' twice"),
        ([{"name": "a", "image": "x.png", **WORDS}], "x.png: no such file"),
        ([], "holds no style"),
    ],
)
def test_a_line_that_is_not_right_is_named(lines, words, tmp_path, capfd):
    path = _listed(tmp_path, *lines)
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "runs", "--styles", path))
    assert words in error
    assert not (tmp_path / "runs").exists()


def test_what_goes_wrong_in_one_does_not_stop_the_others(tmp_path, capfd):
    """One whose folder holds another run."""
    lines = []
    for name in ("taken", "free"):
        lines.append({"name": name, "image": str(tiny.reference()), **WORDS})
    taken = tmp_path / "runs" / "taken"
    taken.mkdir(parents=True)
    (taken / "config.json").write_bytes((tiny.finished() / "config.json").read_bytes())
    more = ("--config.rounds", 1, "--styles", _listed(tmp_path, *lines))
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "runs", *more))
    assert "1 of 2 styles are not done: taken" in error
    assert (tmp_path / "runs" / "free" / "report.html").exists()
