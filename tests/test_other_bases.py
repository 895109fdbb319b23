"""A run on a base model with another autoencoder and LoRAs merged into it."""

import json
import shutil

import numpy as np
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


def test_a_run_keeps_to_the_base_that_it_began_on(tmp_path, capfd):
    run, vae = tmp_path / "run", _vae(tmp_path / "vae")
    lora = _lora(tmp_path / "lines.safetensors")
    base = str(tiny.stable_diffusion())
    settings = {"base": base, "vae": vae, "base_loras": f"{lora}:0.5", "rounds": 1}
    more = []
    for name, value in settings.items():
        more += [f"--config.{name}", value]
    assert tiny.styledrop(*tiny.arguments(run, *more)) == 0
    record = json.loads((run / "manifest.json").read_text())["base"]
    assert (record["vae"], record["base_loras"]) == (str(vae), f"{lora}:0.5")
    same = styledrop_jax.load(base, vae=str(vae), loras={str(lora): 0.5})
    assert record["hash"] == same.base_hash != styledrop_jax.load(base).base_hash

    words = ("--run", run, "--prompt", "a cat", "--num", 1, "--steps", 3, "--sampler", "heun")
    assert tiny.styledrop("sample", *words, "--out", tmp_path / "out") == 0
    (line,) = (tmp_path / "out" / "images.jsonl").read_text().splitlines()
    assert json.loads(line)["sampler"] == "heun"

    _lora(lora, size=2.0)
    capfd.readouterr()
    assert tiny.styledrop("sample", *words, "--out", tmp_path / "other") == 2
    assert "trained on base model" in capfd.readouterr().err


def test_a_weight_that_is_none_is_one_line(tmp_path, capfd):
    line = tiny.arguments(tmp_path / "run", "--config.base_loras", "a.safetensors:much")
    assert tiny.styledrop(*line) == 2
    error = capfd.readouterr().err
    assert "config.base_loras: found 'a.safetensors:much', expected FILE or FILE:WEIGHT" in error
    assert not (tmp_path / "run").exists()
