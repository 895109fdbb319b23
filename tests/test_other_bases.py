"""A run on a base model with another autoencoder and LoRAs merged into it."""

import json
import shutil

import numpy as np
import pytest
import runs
import tiny
from safetensors.numpy import load_file, save_file

import styledrop_jax

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


def test_a_weight_that_is_none_is_one_line(tmp_path, capfd):
    line = tiny.arguments(tmp_path / "run", "--config.base_loras", "a.safetensors:much")
    assert tiny.styledrop(*line) == 2
    error = capfd.readouterr().err
    assert "config.base_loras: found 'a.safetensors:much', expected FILE or FILE:WEIGHT" in error
    assert not (tmp_path / "run").exists()
