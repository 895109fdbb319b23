"""Eight-bit floats in files are what the reference makes of them; scaled ones are refused."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from styledrop_jax.adapters.base import read_safetensors
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.rules import Rules

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": torch.bfloat16}


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(3, 4).to(dtype) for name, dtype in DTYPES.items()}


def test_every_value_is_the_references(tmp_path):
    file = tmp_path / "model.safetensors"
    for seed in (0, 1):  # the second file takes the place of the first
        tensors = _tensors(seed)
        save_file(tensors, file)
        os.utime(file, (seed, seed))
        found = pretrained.Tensors([file], Rules(rules=()))
        small, _ = read_safetensors(file)
        for name, tensor in tensors.items():
            expected = tensor.float().numpy()
            np.testing.assert_array_equal(found[name].astype(np.float32), expected)
            np.testing.assert_array_equal(small[name].astype(np.float32), expected)


def test_an_eight_bit_nan_is_found(tmp_path):
    bad = torch.full((4,), float("nan")).to(torch.float8_e4m3fn)
    save_file({"bad": bad}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: tensor 'bad' holds NaN"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["scaled_fp8", "out.0.scale_weight", "out.0.weight_scale"])
def test_scaled_weights_are_named(name, tmp_path):
    file = tmp_path / "scaled.safetensors"
    save_file(_tensors() | {name: torch.ones(2)}, file)
    with pytest.raises(UserError, match=rf"{name}' says that its weights are scaled fp8; expected"):
        pretrained.Tensors([file], Rules(rules=()))
