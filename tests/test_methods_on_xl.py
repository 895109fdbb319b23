"""A run of every config on a Stable Diffusion XL from the command line: it ends, and what should
train has changed, in the U-Net and in both text towers.

Beside the model and how much is done of each, settings are those of the preset: bfloat16, a batch
in four parts, activations computed anew.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from runs import flags

from styledrop_jax import tree
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.pipelines.load import load

BOTH = {"text.first", "text.second"}
EVERYWHERE = {"denoiser", *BOTH}
TOO = {"round_1__adapter__text_encoder": "true"}
TRAINS = {
    "hard_prompt": set(),
    "styledrop": {"denoiser"},
    "textual_inversion": BOTH,
    "custom_diffusion": EVERYWHERE,
    "lora": EVERYWHERE,
    "svdiff": {"denoiser"},
    "dreambooth": EVERYWHERE,
    "styleforge": EVERYWHERE,
    "styleboost": {"denoiser"},
    "multi_styleforge": {"denoiser"},
    "cut_mix": {"denoiser"},
    "styo": {"denoiser"},
}
QUICK = ("hard_prompt",)
UNREAD = r"text\.first\.(text_model\.(encoder\.layers\.1|final_layer_norm)\.|text_projection).*"
"""XL reads the first tower's states before its last layer."""


def _given(folder: Path) -> dict[str, dict[str, object]]:
    """What each config asks for."""
    aux = tiny.picture(folder / "aux.png", seed=1, size=(16, 16))
    tiny.picture(folder / "pets" / "a sks dog.png", seed=2, size=(16, 16))
    tiny.picture(folder / "pets" / "a aug cat.png", seed=3, size=(16, 16))
    reference = {"reference__image": tiny.reference(), "reference__content": "a house"}
    reference["reference__descriptor"] = "in watercolor painting style"
    forge = {**reference, "words__identifier": "sks", "aux__image": aux}
    components = {}
    for i in (1, 2):
        components[f"component_{i}__image"] = tiny.reference()
        components[f"component_{i}__aux__image"] = aux
    return {
        "hard_prompt": reference,
        "styledrop": reference,
        "textual_inversion": {**reference, "round_1__adapter__initializer": "cat"},
        "custom_diffusion": {**reference, "round_1__adapter__initializer": "a"},
        "lora": {**reference, **TOO},
        "svdiff": reference,
        "dreambooth": {
            **reference,
            **TOO,
            "words__identifier": "sks",
            "words__noun": "house",
            "prior__generate": 1,
        },
        "styleforge": {**forge, **TOO},
        "styleboost": forge,
        "multi_styleforge": components,
        "cut_mix": {
            "reference__image": folder / "pets",
            "mix__unmix": 1.0,
            "round_1__train__remat": "false",
        },
        "styo": {"source__image": tiny.reference(), "target__image": aux, "aux__generate": 1},
    }


@functools.cache
def _base_weights() -> dict[str, jax.Array]:
    base = load(str(tiny.stable_diffusion_xl()))
    modules = nnx.Dict({"denoiser": base.denoiser, "text": base.text})
    return tree.flatten(nnx.state(modules, nnx.Param))


def _unchanged(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """The tensors that are as they began: as in the base, or zero."""
    found = set()
    for name, tensor in tensors.items():
        began = _base_weights().get(name, 0)
        if not name.endswith(".down") and (tensor == began).all():  # which begins at random
            found.add(name)
    return found


def test_every_config_is_here():
    names = {file.stem for file in (tiny.ROOT / "configs").glob("*.py")}
    assert {name for name in names if not name.startswith(("pretrain_", "debug"))} == set(TRAINS)


@pytest.mark.parametrize(
    "config",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINS],
)
def test_a_config_trains_and_draws_on_xl(config, tmp_path):
    given = {
        "base": tiny.stable_diffusion_xl(),
        "clip": tiny.models() / "clip",
        "rounds": 1,
        "round_1__train__steps": 2,
        "round_1__sample__steps": 2,
        "round_1__sample__images_per_prompt": 1,
    }
    if config not in ("styo", "cut_mix"):
        given["prompts"] = tiny.prompt_file()
    given |= _given(tmp_path)[config]
    run = tmp_path / "run"
    words = ["personalize", "--config", f"{config}:sdxl", "--workdir", run, *flags(**given)]
    assert tiny.styledrop(*words) == 0
    assert (run / "report.html").is_file()
    rows = read_jsonl(run / "round_1" / "scores.jsonl")
    assert rows and all((run / "round_1" / row["file"]).is_file() for row in rows)

    tensors = load_adapter(run / "round_1" / "adapter.safetensors").tensors
    parts = {re.sub(r"^(denoiser|text\.\w+)\..+", r"\1", name) for name in tensors}
    assert parts == TRAINS[config]
    left = {name for name in _unchanged(tensors) if not re.fullmatch(UNREAD, name)}
    assert not left
    if parts:
        losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
        assert losses and np.isfinite(losses).all()
    counted = read_json(run / "manifest.json")["rounds"]["round_1"]["trainable"]
    assert counted == sum(tensor.size for tensor in tensors.values())
