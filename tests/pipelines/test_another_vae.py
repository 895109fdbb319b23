"""An autoencoder of another file in place of the base model's own."""

import copy
import re
import shutil

import numpy as np
import pytest
import references
import tiny
import torch
from safetensors.torch import load_file, save_file
from single_files import ldm_tensors

from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.models import vae
from styledrop_jax.pipelines import load as loading


@pytest.fixture(scope="module")
def other(parts):
    """An autoencoder of the same sizes."""
    torch.manual_seed(7)
    return references.noisy(copy.deepcopy(parts["vae"]))


@pytest.fixture(scope="module")
def files(parts, other, tmp_path_factory) -> dict[str, str]:
    """It, in every layout."""
    folder = tmp_path_factory.mktemp("vae")
    whole = {}
    for name, tensor in ldm_tensors("tiny 1.x", parts | {"vae": other}).items():
        whole[name] = tensor.clone().contiguous()
    prefix = "first_stage_model."
    alone = {name.removeprefix(prefix): x for name, x in whole.items() if name.startswith(prefix)}
    beside = {"global_step": torch.zeros(1), "loss.logvar": torch.zeros(1)}
    save_file(whole, folder / "whole.safetensors")
    save_file(alone | beside, folder / "alone.safetensors")
    other.save_pretrained(folder / "folder")
    other.save_pretrained(folder / "pipeline" / "vae")
    return {
        "single file of a model": str(folder / "whole.safetensors"),
        "original layout": str(folder / "alone.safetensors"),
        "file of diffusers": str(folder / "folder" / "diffusion_pytorch_model.safetensors"),
        "folder of diffusers": str(folder / "folder"),
        "folder of a pipeline": str(folder / "pipeline"),
    }


@pytest.mark.parametrize(
    "layout",
    [
        "original layout",
        "single file of a model",
        "file of diffusers",
        "folder of diffusers",
        "folder of a pipeline",
    ],
)
def test_it_takes_the_place_of_the_base_models(layout, models, folders, files, other):
    base = models["epsilon"]
    model = loading.load(str(folders["epsilon"]), vae=files[layout])
    found = pretrained.export(model.autoencoder, vae.RULES)
    for name, tensor in other.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
    assert model.autoencoder.config == base.autoencoder.config
    again = loading.load(str(folders["epsilon"]), vae=files["folder of diffusers"])
    assert model.base_hash != base.base_hash
    assert model.base_hash == again.base_hash, "it is the same model, whatever file holds it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.safetensors", r"gone\.safetensors: no such file"),
        ("lora.safetensors", r"lora\.safetensors: found 1 tensors, .*a LoRA\); expected an auto"),
        (
            "part.safetensors",
            r"vae of .*part\.safetensors does not fit the model, .* missing decoder\.conv_in",
        ),
        ("cut.safetensors", r"cut\.safetensors: not a readable safetensors file"),
        ("nowhere", r"\(--config\.vae\): no such folder"),
    ],
)
def test_what_is_no_such_autoencoder_is_one_line(name, words, folders, files, tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2)}, tmp_path / "lora.safetensors")
    part = load_file(files["original layout"])
    del part["decoder.conv_in.bias"]
    save_file(part, tmp_path / "part.safetensors")
    with open(files["original layout"], "rb") as whole:
        (tmp_path / "cut.safetensors").write_bytes(whole.read()[:-50])
    with pytest.raises(UserError, match=words) as error:
        loading.load(str(folders["epsilon"]), vae=str(tmp_path / name))
    assert re.fullmatch(r"[^\n]{1,300}", str(error.value)) and "config.vae" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_channels": 16}, "has latent_channels 16, expected 4, as the base model's own"),
        ({"block_out_channels": [4, 4, 8]}, "has downsampling 4, expected 2, as the base"),
    ],
)
def test_an_autoencoder_of_another_kind_of_model_is_one_line(
    change, words, folders, files, tmp_path
):
    folder = shutil.copytree(files["folder of diffusers"], tmp_path / "other")
    config = read_json(folder / "config.json")
    for name in ("down_block_types", "up_block_types"):
        kinds = config[name]
        change[name] = kinds[:1] * len(change.get("block_out_channels", kinds))
    write_json(folder / "config.json", config | change)
    with pytest.raises(UserError, match=rf"^config\.vae: .*other' {words}"):
        loading.load(str(folders["epsilon"]), vae=str(folder))


def test_a_muse_has_no_place_for_it():
    with pytest.raises(UserError, match=r"config\.vae: found 'a\.safetensors', expected it empty"):
        loading.load(str(tiny.models() / "muse"), vae="a.safetensors")
