"""Adapters of other tools merged into a base model, against diffusers, peft and convolutions."""

import dataclasses
import re

import numpy as np
import peft
import pytest
import torch
import worlds
from flax import nnx
from safetensors.numpy import save_file
from worlds import base, reference, trained

import styledrop_jax
from styledrop_jax import base_model, trainable
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import base_loras, merged
from styledrop_jax.interchange.export import EXPORTS
from styledrop_jax.models import unet
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

FILES = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "mine.safetensors", "peft": ""}
CONV = "down_blocks.0.resnets.0.conv1"
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def _merged(*loras, of=None) -> StableDiffusion:
    """`of`, or the base, with LoRAs merged into a copy of it."""
    of = of or base()
    copied = dataclasses.replace(
        of, denoiser=trainable.copy(of.denoiser), text=trainable.copy(of.text)
    )
    found = base_loras.merged(copied, [(str(path), weight) for path, weight in loras])
    assert isinstance(found, StableDiffusion)
    return found


def _kernels(model: StableDiffusion) -> dict[str, np.ndarray]:
    """Of the U-Net, by the reference's names."""
    return merged.tensors(model.denoiser, unet.RULES, dtype="float32")


def _same(found: dict[str, np.ndarray], expected: torch.nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        theirs = tensor.detach().numpy()
        np.testing.assert_allclose(
            found[name].reshape(theirs.shape), theirs, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("kind", FILES)
def test_a_lora_of_every_layout_is_merged_by_its_weight(kind, tmp_path):
    EXPORTS[kind](trained("lora everywhere"), tmp_path)
    found = _merged((tmp_path / FILES[kind], 0.7))
    whole = merged.merged(trained("lora everywhere").model, trained("lora everywhere").what)
    for module in ("denoiser", "text"):
        before, after, ours = (
            dict(nnx.to_flat_state(nnx.state(getattr(pipeline, module))))
            for pipeline in (base(), whole, found)
        )
        for path, value in ours.items():
            if "text_projection" in path:  # which is not used, and in no file
                continue
            full = after[path][...] - before[path][...]
            np.testing.assert_allclose(value[...], before[path][...] + 0.7 * full, atol=1e-5)


def _small(file, seed: int = 0):
    """A kohya's file of two layers."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer, c, shape in ((LINEAR, 12, (2, 12)), (CONV, 8, (2, 8, 3, 3))):
        prefix = f"lora_unet_{layer.replace('.', '_')}"
        up = (c, 2, 1, 1)[: len(shape)]
        tensors[f"{prefix}.lora_down.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"{prefix}.lora_up.weight"] = rng.normal(size=up).astype(np.float32)
        tensors[f"{prefix}.alpha"] = np.array(1.0, np.float32)
    save_file(tensors, file)
    return file


def test_it_is_what_the_reference_fuses(tmp_path):
    file = _small(tmp_path / "mine.safetensors")
    theirs = reference()
    theirs.load_lora_weights(tmp_path, weight_name="mine.safetensors")
    theirs.fuse_lora(lora_scale=0.8)
    theirs.unload_lora_weights()
    _same(_kernels(_merged((file, 0.8))), theirs.unet)


CONFIGS = {
    "loha": lambda **more: peft.LoHaConfig(r=2, alpha=3, **more),
    "loha, tucker": lambda **more: peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, **more),
    "lokr": lambda **more: peft.LoKrConfig(r=1, alpha=3, **more),
    "lokr, of two wholes": lambda **more: peft.LoKrConfig(r=2, alpha=2, **more),
    "lokr, of two products": lambda **more: peft.LoKrConfig(
        r=1, alpha=3, decompose_both=True, decompose_factor=4, **more
    ),
    "lokr, tucker": lambda **more: peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True, **more),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_of_lycoris_are_what_peft_makes_of_them(kind, tmp_path):
    config = CONFIGS[kind](target_modules=[LINEAR, CONV], init_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(reference().unet, config)
    file = {}
    for layer, rest, tensor in _of_peft(model):
        file[f"{layer}.{rest}"] = tensor
        file[f"{layer}.alpha"] = np.array(config.alpha, np.float32)
    save_file(file, tmp_path / "a.safetensors")
    _same(_kernels(_merged((tmp_path / "a.safetensors", 1.0))), model.merge_and_unload())


@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector.weight"])
def test_a_dora_is_what_peft_makes_of_it(name, tmp_path):
    config = peft.LoraConfig(
        r=2, lora_alpha=3, use_dora=True, init_lora_weights=False, target_modules=[LINEAR, CONV]
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(reference().unet, config)
    for key, param in model.named_parameters():
        if "magnitude" in key:
            param.data.mul_(1.3)
    file = {}
    for layer, rest, tensor in _of_peft(model):
        if "magnitude" in rest:
            rest = name
            if name == "dora_scale":  # one for each output
                tensor = tensor.reshape(-1, *[1] * (3 if "conv1" in layer else 1))
        file[f"{layer}.{rest}"] = tensor
        file[f"{layer}.alpha"] = np.array(3, np.float32)
    save_file(file, tmp_path / "a.safetensors")
    _same(_kernels(_merged((tmp_path / "a.safetensors", 1.0))), model.merge_and_unload())


def _of_peft(model) -> list[tuple[str, str, np.ndarray]]:
    """(layer by kohya's name, tensor of it, its numbers) of what peft trains."""
    found = []
    for key, tensor in peft.get_peft_model_state_dict(model).items():
        match = re.fullmatch(r"base_model\.model\.(.+?)\.((?:lora|hada|lokr)_.+)", key)
        assert match
        layer = "lora_unet_" + match[1].replace(".", "_")
        found.append((layer, match[2], tensor.detach().numpy()))
    return found


def test_a_locon_is_three_convolutions_one_after_the_other(tmp_path):
    torch.manual_seed(0)
    weight = torch.tensor(_kernels(base())[f"{CONV}.weight"])
    down = torch.randn(2, weight.shape[1], 1, 1)
    mid = torch.randn(2, 2, 3, 3)
    up = torch.randn(weight.shape[0], 2, 1, 1)
    layer = f"lora_unet_{CONV.replace('.', '_')}"
    file = {
        f"{layer}.lora_down.weight": down.numpy(),
        f"{layer}.lora_mid.weight": mid.numpy(),
        f"{layer}.lora_up.weight": up.numpy(),
        f"{layer}.alpha": np.array(1.0, np.float32),
    }
    save_file(file, tmp_path / "locon.safetensors")
    found = torch.tensor(_kernels(_merged((tmp_path / "locon.safetensors", 1.0)))[f"{CONV}.weight"])
    x = torch.randn(1, weight.shape[1], 5, 7)
    conv = torch.nn.functional.conv2d
    inner = conv(conv(conv(x, down), mid, padding=1), up)
    expected = conv(x, weight, padding=1) + inner / 2
    np.testing.assert_allclose(conv(x, found, padding=1), expected, atol=1e-4)


def test_what_is_merged_and_how_strongly_makes_another_base(tmp_path):
    first = _small(tmp_path / "a.safetensors")
    second = _small(tmp_path / "b.safetensors", seed=1)
    hashes = [base().base_hash]
    for loras in ([(first, 1.0)], [(first, 0.5)], [(second, 1.0)], [(first, 1.0), (second, 1.0)]):
        hashes.append(_merged(*loras).base_hash)
    assert len(set(hashes)) == len(hashes)
    first.rename(tmp_path / "elsewhere.safetensors")
    assert _merged((tmp_path / "elsewhere.safetensors", 1.0)).base_hash == hashes[1]


def _file(tmp_path, tensors) -> None:
    save_file(tensors, tmp_path / "a.safetensors")


ONE = np.ones((2, 2), np.float32)
LONG = np.ones((1, 9**6), np.float32)
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ONE},
            r"a\.safetensors: does not fit the model, 1 differ: unexpected lora_unet_double_blocks",
        ),
        ({"bundle_emb.x.string_to_param.*": ONE}, r"unexpected bundle_emb\.x\.string_to_param"),
        (
            {f"{TO_Q}.lora_down.weight": ONE, f"{TO_Q}.lora_up.weight": ONE},
            rf": {TO_Q}\.lora_down\.weight is of a layer of shape \(12, 12\), found down \(2, 2\)",
        ),
        (
            {f"{TO_Q}.lora_down.weight": ONE},
            r"is of a layer of shape \(12, 12\), found down \(2, 2\)$",
        ),
        (
            {f"{TO_Q}.lora_down.weight": ONE.astype(np.int8)},
            rf"tensor '{TO_Q}\.lora_down\.weight' is of int8, expected floating-point numbers$",
        ),
        ({f"{TO_Q}.alpha": ONE[0]}, rf"{TO_Q}\.alpha is of a layer of shape"),
        ({f"{TO_Q}.diff": ONE}, rf"unexpected {TO_Q}\.diff"),
        ({f"{TO_Q}.hada_w1_a": ONE}, rf"{TO_Q}\.hada_w1_a is of a layer of shape"),
        (
            {"cond_stage_model.x": ONE, "model.diffusion_model.y": ONE},
            r"2 differ: unexpected cond_stage_model\.x",
        ),
        ({"emb_params": ONE}, r"unexpected emb_params \(2, 2\)$"),
        ({}, r"a\.safetensors: has no LoRA tensors"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tensors, words, tmp_path):
    _file(tmp_path, tensors)
    with pytest.raises(UserError, match=words) as error:
        _merged((tmp_path / "a.safetensors", 1.0))
    assert re.fullmatch(r"config\.base_loras: [^\n]{1,280}", str(error.value))


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"):
        _merged((tmp_path / "gone.safetensors", 1.0))


def test_the_library_merges_them_into_what_it_loads(tmp_path):
    file = str(_small(tmp_path / "mine.safetensors"))
    folder = str(worlds.reference_folder())
    found = styledrop_jax.load(folder, loras={file: 0.5})
    assert found.base_hash == base_model.load(folder, loras=[(file, 0.5)]).base_hash
    assert found.base_hash != base_model.load(folder).base_hash
