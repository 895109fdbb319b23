"""A run on a base model with another autoencoder and LoRAs merged into it."""

import json
import re
import shutil

import numpy as np
import pytest
import runs
import tiny
from flax import nnx
from safetensors.numpy import load_file, save_file

import styledrop_jax
from styledrop_jax import trainable
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.adapters.lora import Config as LoraConfig
from styledrop_jax.interchange.export import EXPORTS
from styledrop_jax.interchange.trained import Trained
from styledrop_jax.io import files
from styledrop_jax.pipelines import stable_diffusion_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def _vae(folder):
    """Another autoencoder of the same sizes."""
    shutil.copytree(tiny.stable_diffusion() / "vae", folder)
    changed = {name: 1.1 * tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(changed, folder / WEIGHTS)
    return folder


def _lora(file, *, size: float = 1.0):
    down = np.full((2, 12), size, np.float32)
    save_file({f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": down.T.copy()}, file)
    return file


def test_a_run_keeps_to_the_base_that_it_began_on(tmp_path, capfd, monkeypatch):
    run, vae = tmp_path / "run", _vae(tmp_path / "vae")
    lora = _lora(tmp_path / "lines.safetensors")
    base = str(tiny.stable_diffusion())
    line = tiny.arguments(run, "--config.base", base, "--config.vae", vae)
    line += ["--config.base_loras", f"{lora}:0.5"]
    monkeypatch.setattr("styledrop_jax.rounds.sample_base", runs.stop)
    with pytest.raises(runs.Death):
        tiny.styledrop(*line)
    record = json.loads((run / "manifest.json").read_text())["base"]
    assert (record["vae"], record["base_loras"]) == (str(vae), f"{lora}:0.5")
    same = styledrop_jax.load(base, vae=str(vae), loras={str(lora): 0.5})
    assert record["hash"] == same.base_hash != styledrop_jax.load(base).base_hash

    _lora(lora, size=2.0)
    assert "is not the base model that this run began on" in runs.refused(capfd, *line)


def test_what_is_published_says_what_else_was_in_the_base(tmp_path, monkeypatch):
    run, out, elsewhere = (tmp_path / name for name in ("run", "out", "elsewhere"))
    vae = _vae(tmp_path / "vae") / WEIGHTS
    lora = _lora(tmp_path / "lines_1.safetensors")
    base = tiny.stable_diffusion()
    line = tiny.arguments(run, "--config.base", base, "--config.vae", vae)
    line += ["--config.base_loras", f"{lora}:0.5"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runs.Death):
        patch.setattr("styledrop_jax.rounds.sample_base", runs.stop)
        tiny.styledrop(*line)
    _learnt(run, styledrop_jax.load(str(base), vae=str(vae), loras={str(lora): 0.5}))
    words = ["--run", run, "--round", 1, "--out", out]
    assert tiny.styledrop("push", *words, "--to", "me/lines", "--dry-run") == 0
    card = (out / "README.md").read_text()
    assert f"| lines\\_1.safetensors | LoRA, weight 0.5 | `{files.digest(lora)}` |" in card
    assert f"\\_model.safetensors | autoencoder | `{files.digest(vae)}` |" in card
    assert "looks for the files of the table in the folder in which it is run" in card
    assert str(tmp_path) not in card
    sentence = re.search(r"Trained on .*lines_1\.safetensors in it, by the", _peft_card(out))
    assert sentence and "| LoRA, weight 0.5 |" in _peft_card(out)

    elsewhere.mkdir()
    for file in (vae, lora):
        shutil.copy(file, elsewhere)
    monkeypatch.chdir(elsewhere)
    theirs = styledrop_jax.Style.load(out / "styledrop", base=str(base))
    assert (
        theirs.pipeline.base_hash == json.loads((run / "manifest.json").read_text())["base"]["hash"]
    )


def _learnt(run, base):
    """Leaves what a run on `base` would, in its first round."""
    what = Trainable(denoiser=LoraConfig(rank=2, alpha=2.0))
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    learnt = Trained(base=base, model=model, what=what, base_name=base.name, info={})
    EXPORTS["styledrop"](learnt, run / "round_1")


def _peft_card(out):
    return (out / "peft" / "README.md").read_text()


def test_what_is_put_in_is_opened_before_the_model(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(stable_diffusion_files.UNET.module, "__init__", runs.stop)
    line = tiny.arguments(tmp_path / "run", "--config.base", tiny.stable_diffusion())
    file = tmp_path / "cut.safetensors"
    _lora(file)
    file.write_bytes(file.read_bytes()[:-1])
    for field in ("vae", "base_loras"):
        for name in (str(file), str(tmp_path / "gone.safetensors")):
            error = runs.refused(capfd, *line, f"--config.{field}", name)
            assert error.startswith(f"error: config.{field}: {name}: "), error


def test_a_weight_that_is_none_is_one_line(tmp_path, capfd):
    line = tiny.arguments(tmp_path / "run", "--config.base_loras", "a.safetensors:much")
    assert tiny.styledrop(*line) == 2
    error = capfd.readouterr().err
    assert "config.base_loras: found 'a.safetensors:much', expected FILE or FILE:WEIGHT" in error
    assert not (tmp_path / "run").exists()
