"""One of each kind from outside the package: a file of its own, and one line in the registry."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny
from flax import nnx
from runs import flags

from styledrop_jax import config_files, registry, spec
from styledrop_jax.adapters.base import (
    AdapterConfig,
    AdapterKind,
    AdapterParam,
    Trainable,
    load_adapter,
)
from styledrop_jax.adapters.slots import LayerAdapter, fill
from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.io.files import read_json, read_jsonl, write_json
from styledrop_jax.methods.base import Method, Program, Prompt, Referenced, joined, teaching
from styledrop_jax.pipelines import muse_files
from styledrop_jax.pipelines.load import Loader, load
from styledrop_jax.sampling import schedulers
from styledrop_jax.settings import section, setting

# -------------------------------------------------------------- an adapter


class Shift(LayerAdapter):
    """Adds a vector to what a layer gives."""

    def __init__(self, width):
        self.shift = AdapterParam(jnp.zeros(width))

    def __call__(self, x, y):
        return y + self.shift[...].astype(y.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftConfig(AdapterConfig):
    kind: ClassVar[str] = "shift"
    layers: str = ".+"

    def attach(self, module, *, rngs):
        fill(module, self.layers, lambda layer: Shift(layer.kernel.shape[-1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    layers: str = setting(".+", "which layers are shifted, a regular expression")


def _shifts(settings, identifiers):
    return Trainable(denoiser=ShiftConfig(layers=settings.layers))


SHIFT = AdapterKind(settings=ShiftSettings, config=ShiftConfig, trains=_shifts)

# -------------------------------------------------------------- a scorer and a selector


def brightness(samples):
    return np.array([image.mean() for image in samples.images()])


def every_other(pool):
    return list(range(0, len(pool.candidates), 2))


# -------------------------------------------------------------- a method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mood:
    word: str = setting("", "how everything feels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoodSettings(Referenced):
    mood: Mood = section(Mood)


def _with_mood(settings, content):
    return joined(settings.mood.word, content)


def _mood_program(settings, images):
    def caption(content, descriptor):
        return _with_mood(settings, content)

    return Program(streams=[teaching("reference", images, caption, judges=True)])


def _mood_say(settings, content, descriptor):
    return Prompt(content=content, text=_with_mood(settings, content), judged=content)


MOOD = Method(settings=MoodSettings, program=_mood_program, say=_mood_say, needs=("content",))


@pytest.fixture
def toys(monkeypatch):
    """The lines that a user adds."""
    monkeypatch.setitem(registry.ADAPTERS, "shift", SHIFT)
    monkeypatch.setitem(registry.SCORERS, "brightness", brightness)
    monkeypatch.setitem(registry.SELECTORS, "every_other", every_other)
    monkeypatch.setitem(registry.METHODS, "mood", MOOD)


TOYS = {
    "method": "mood",
    "mood": {"word": "gloomy"},
    "round_1": {
        "adapter": {"kind": "shift", "layers": r".*to_out\.0"},
        "select": {"by": "every_other", "scorers": {"brightness": 1.0}},
    },
}


def test_toys_are_settings_like_all_others(toys):
    found = spec.from_config(TOYS)
    assert found.mood == Mood(word="gloomy")
    assert found.round(1).adapter == ShiftSettings(layers=r".*to_out\.0")
    assert spec.from_config(spec.to_config(found)) == found
    lines = sum(spec.describe(spec.complete(TOYS)).values(), [])
    assert any(line.startswith("mood.word gloomy: how everything feels") for line in lines)
    assert any(line.startswith("round_1.adapter.layers ") for line in lines)
    with pytest.raises(UserError, match="expected one of .*, shift; did you mean 'shift'"):
        spec.from_config({"round_1": {"adapter": {"kind": "shfit"}}})


def test_without_their_lines_they_are_unknown():
    with pytest.raises(UserError, match="config.method: found 'mood'"):
        spec.from_config(TOYS)


def test_a_run_of_toys_alone(toys, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "import runpy\n"
        "def get_config():\n"
        f"    file = {str(config_files.folder() / 'debug.py')!r}\n"
        "    config = runpy.run_path(file)['get_config']('emoji128-muse')\n"
        "    config.update({'method': 'mood', 'mood': {'word': 'gloomy'}, 'rounds': 2})\n"
        "    for stage in (config.round_1, config.round_2):\n"
        "        stage.adapter = {'kind': 'shift'}\n"
        "        stage.select.by = 'every_other'\n"
        "        stage.select.scorers = {'brightness': 1.0}\n"
        "    return config\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    line = tiny.arguments(run, "--config", config, *flags(reference__descriptor=""))
    assert tiny.styledrop(*line) == 0
    manifest = read_json(run / "manifest.json")
    assert manifest["references"][0]["caption"] == "gloomy a house"
    rows = read_jsonl(run / "round_1" / "scores.jsonl")
    assert {row["text"] for row in rows} == {f"gloomy {prompt}" for prompt in tiny.PROMPTS}
    assert all(row["score"] == row["scores"]["brightness"] > 0 for row in rows)
    assert read_json(run / "round_1" / "selected.json")["selected"] == rows[::2]
    file = load_adapter(run / "round_2" / "adapter.safetensors")
    assert file.config["denoiser"]["adapter"] == "shift"
    assert all(name.endswith("shift") for name in file.tensors)
    assert any(np.abs(tensor).max() > 0 for tensor in file.tensors.values())
    assert "brightness" in (run / "report.html").read_text(encoding="utf-8")

    out = tmp_path / "out"
    words = ["--prompt", rows[0]["content"], "--seed", rows[0]["seed"], "--num", 1, "--round", 1]
    assert tiny.styledrop("sample", "--run", run, *words, "--out", out) == 0
    (sampled,) = read_jsonl(out / "images.jsonl")
    again = (out / sampled["file"]).read_bytes()
    assert again == (run / "round_1" / rows[0]["file"]).read_bytes()
    assert tiny.styledrop(*line) == 0, "which finds it finished"


def test_a_sampler_of_ones_own(monkeypatch, tmp_path):
    steps = []

    def short(schedule, count):
        steps.append(count)
        return schedulers.ddim(schedule, count)

    monkeypatch.setitem(registry.SCHEDULERS, "short", short)
    words = flags(
        base=tiny.stable_diffusion(),
        round_1__sample__sampler="short",
        round_1__sample__steps=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("styledrop_jax.rounds.score_base", runs.stop)
        with pytest.raises(runs.Death):
            tiny.styledrop(*tiny.arguments(tmp_path / "run", *words))
    assert len(list((tmp_path / "run" / "base" / "samples").iterdir())) == len(tiny.PROMPTS)
    assert set(steps) == {3}


def test_a_pipeline_of_ones_own(monkeypatch, tmp_path):
    """A folder of another layout, that only its loader knows."""
    (tmp_path / "toy" / "toy_net").mkdir(parents=True)
    write_json(tmp_path / "toy" / "toy_net" / "config.json", {"on": str(tiny.models() / "muse")})

    def load_toy(source):
        on = read_json(source.path / "toy_net" / "config.json")["on"]
        base = muse_files.load(dataclasses.replace(source, path=Path(on)))
        return dataclasses.replace(base, base_hash="f" * 64)

    layout = hub.Layout(weights={"toy_net": "model"})
    monkeypatch.setitem(registry.PIPELINES, "toy", Loader(layout=layout, load=load_toy))
    found = load(str(tmp_path / "toy"))
    assert found.base_hash == "f" * 64 and found.resolution == tiny.RESOLUTION
    assert load(str(tiny.models() / "muse")).base_hash != "f" * 64
    runs.begun(tmp_path / "run", *flags(base=tmp_path / "toy"))
    assert read_json(tmp_path / "run" / "manifest.json")["base"]["hash"] == "f" * 64


def test_adapters_of_nnx_are_found_by_their_parameters():
    """What trains is what is an `AdapterParam`, wherever it was put."""
    model = load(str(tiny.models() / "muse")).denoiser
    ShiftConfig(layers=r".*to_out\.0").attach(model, rngs=nnx.Rngs(0))
    assert nnx.to_flat_state(nnx.state(model, AdapterParam))
