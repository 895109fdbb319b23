"""LoRA files as diffusers reads them and as other tools write them, on every kind of module."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch
from adapters.bases import BASES, adapted, by_layer, load, random, reference, tensors
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from flax import nnx

from styledrop_jax.adapters import lora
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import lora_read, lora_write
from styledrop_jax.io import pretrained
from styledrop_jax.pipelines import muse_files, stable_diffusion_files

CONFIG = lora.Config(rank=3, alpha=7.5, targets="all")
TARGETS = {"uvit": "all", "unet": "all", "text": "attention"}
COMPONENTS = {
    "uvit": muse_files.TRANSFORMER,
    "unet": stable_diffusion_files.UNET,
    "text": stable_diffusion_files.TEXT,
}
ALL = pytest.mark.parametrize("name", TARGETS)


def _config(name):
    return dataclasses.replace(CONFIG, targets=TARGETS[name])


@functools.cache
def _attached(name):
    config = _config(name)
    return adapted(name, lambda module: lora.attach(module, config, rngs=nnx.Rngs(1)))


@functools.cache
def _trained(name):
    return random(_attached(name).fresh)


@functools.cache
def _trained_output(name):
    return np.asarray(_attached(name).run(_trained(name)))


@functools.cache
def _part(name):
    module = load(name)
    lora.attach(module, _config(name), rngs=nnx.Rngs(1))
    nnx.update(module, nnx.State(_trained(name)))
    return lora_write.part(module, _config(name), COMPONENTS[name])


def _diffusers(*names):
    return lora_write.diffusers([_part(name) for name in names])


def _kohya(*names):
    return lora_write.kohya([_part(name) for name in names])


def _peft(metadata):
    return json.loads(metadata[lora_write.METADATA])


def _read(file, peft, *names):
    modules = {}
    for name in names:
        part = "text" if name == "text" else "denoiser"
        modules[part] = (load(name), BASES[name].rules)
    return lora_read.read(file, peft, modules)


def _changes(found):
    """{layer's path: what its kernel gains}."""
    scale = found.config.alpha / found.config.rank
    changes = {}
    for path, weights in found.layers.items():
        changes[path] = scale * np.tensordot(weights.down, weights.up, 1)
    return changes


@functools.cache
def _expected(name):
    config = _config(name)
    up = by_layer(_trained(name), "up")
    changes = {}
    for layer, down in by_layer(_trained(name), "down").items():
        changes[layer] = config.alpha / config.rank * np.tensordot(down, up[layer], 1)
    return changes


def _same_changes(found, name):
    changes = _changes(found)
    assert changes.keys() == _expected(name).keys()
    for path, change in _expected(name).items():
        np.testing.assert_allclose(changes[path], change, atol=1e-5)


def _merged(name, halves, scale):
    """The reference's output with scale · B A added to the weights of the layers {name: (A, B)}."""
    weights = dict(tensors(name))
    for layer, (a, b) in halves.items():
        weight = weights[f"{layer}.weight"]
        product = np.einsum("ri...,or->oi...", a, b.reshape(b.shape[:2]))
        assert product.shape == weight.shape
        weights[f"{layer}.weight"] = weight + np.float32(scale) * product
    return reference(name, weights)


def _halves(file):
    """{layer: (A, B)} of peft's names."""
    halves = {}
    for key, tensor in file.items():
        if key.endswith(".lora_A.weight"):
            up = file[key.replace("lora_A", "lora_B")]
            halves[key.removesuffix(".lora_A.weight")] = (np.asarray(tensor), np.asarray(up))
    assert 2 * len(halves) == len(file)
    return halves


def _without(prefix, entries):
    """The entries whose names begin with the prefix, without it."""
    found = {}
    for key, value in entries.items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = value
    return found


@ALL
def test_a_diffusers_file_is_the_same_model_in_the_reference(name, tmp_path):
    pretrained.save(tmp_path / "lora.safetensors", *_diffusers(name))
    found, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        tmp_path, weight_name="lora.safetensors", return_lora_metadata=True
    )
    prefix = BASES[name].prefix
    peft = _without(f"{prefix}.", metadata)
    assert peft.keys() == {"r", "lora_alpha", "target_modules"} and alphas is None
    halves = _halves(_without(f"{prefix}.", found))
    # peft: a module is meant if its name is a target or ends in a dot and one
    meant = set()
    for key, module in BASES[name].reference().named_modules():
        for target in peft["target_modules"]:
            if hasattr(module, "weight") and (key == target or key.endswith(f".{target}")):
                meant.add(key)
    assert meant == set(halves)
    # with the metadata, and of a reader that ignores them
    for scale in (peft["lora_alpha"] / peft["r"], 1):
        np.testing.assert_allclose(_merged(name, halves, scale), _trained_output(name), atol=1e-4)


def test_a_kohya_file_is_the_same_model_in_the_reference():
    both = {key: torch.tensor(tensor) for key, tensor in _kohya("unet", "text").items()}
    converted, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(both))
    assert set(alphas.values()) == {7.5} and 3 * len(alphas) == len(both)
    denoiser = convert_unet_state_dict_to_peft(_without("unet.", converted))
    text = convert_state_dict_to_diffusers(_without("text_encoder.", converted))
    text = convert_state_dict_to_peft(text)
    for name, found in (("unet", denoiser), ("text", text)):
        halves = _halves(found)
        np.testing.assert_allclose(_merged(name, halves, 7.5 / 3), _trained_output(name), atol=1e-4)


def _kohya_names(model, prefix, classes):
    """kohya's rule: of every module of these classes, each linear layer and convolution inside.

    Its name is the prefix, the module's path and the path within it, with "_" for ".".
    """
    names = set()
    for name, module in model.named_modules():
        if type(module).__name__ in classes:
            for inner, layer in module.named_modules():
                if type(layer).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear"):
                    names.add(f"{prefix}.{name}.{inner}".replace(".", "_"))
    return names


def test_names_follow_kohyas_rule():
    found = {key.partition(".")[0] for key in _kohya("unet", "text")}
    blocks = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    unet = _kohya_names(BASES["unet"].reference(), "lora_unet", blocks)
    text = _kohya_names(BASES["text"].reference(), "lora_te", ("CLIPAttention",))
    assert unet and text
    # what kohya's own scripts never train; A1111 and diffusers know these names too
    outside = {"conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2"}
    assert found == unet | text | {f"lora_unet_{name}" for name in outside}


def test_convolutions_have_four_axes_and_kohya_is_told_of_them():
    file = _kohya("unet")
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert file[f"{layer}.lora_down.weight"].shape == (3, 8, 3, 3)
    assert file[f"{layer}.lora_up.weight"].shape == (8, 3, 1, 1)
    assert file[f"{layer}.alpha"].shape == () and file[f"{layer}.alpha"] == 7.5
    linear = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    assert file[f"{linear}.lora_down.weight"].shape == (3, 12)
    metadata = lora_write.kohya_metadata([_part("unet"), _part("text")])
    assert metadata["ss_network_dim"] == "3" and metadata["ss_network_alpha"] == "7.5"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "7.5"}
    assert "ss_network_args" not in lora_write.kohya_metadata([_part("text")])


@ALL
def test_every_format_comes_back(name):
    folded, metadata = _diffusers(name)
    peft, config = lora_write.peft(_part(name), flat_text=name == "text")
    cases = [(folded, _peft(metadata)), (folded, {}), (peft, config)]
    if name != "uvit":
        cases.append((_kohya(name), {}))
    for file, fields in cases:
        (found,) = _read(file, fields, name).values()
        _same_changes(found, name)
        # diffusers' file has α folded into B
        assert (found.config == _config(name)) == (file is not folded)


def test_alpha_in_the_peft_config_counts():
    """As peft writes it: α is not in the tensors, and single layers may have their own."""
    folded, metadata = _diffusers("unet")
    first = "down_blocks.0.attentions.0"
    fields = _peft(metadata) | {"unet.lora_alpha": 6}
    fields["unet.alpha_pattern"] = {rf"^{first}.proj_in": 1.5, "attn2.to_q": 3}
    for extra, divisor in ({}, 3), ({"unet.use_rslora": True}, np.sqrt(3)):
        found = _read(folded, fields | extra, "unet")["denoiser"]
        for path, change in _changes(found).items():
            alpha = 6
            if path == f"{first}.proj_in.conv":
                alpha = 1.5
            elif path.endswith("attn2.to_q"):
                alpha = 3
            expected = _expected("unet")[path] * alpha / divisor
            np.testing.assert_allclose(change, expected, atol=1e-4)


def _respelled(name, *changes):
    file = _diffusers(name)[0]
    for pattern, replacement in changes:
        file = {re.sub(pattern, replacement, key): tensor for key, tensor in file.items()}
    return file


ATTENTION = (r"\.lora_A\.", ".lora.down."), (r"\.lora_B\.", ".lora.up.")
PROCESSORS = (
    *ATTENTION,
    (r"\.(attn\d)\.(to_\w)\.lora\.", r".\1.processor.\2_lora."),
    (r"\.(attn\d)\.to_out\.0\.lora\.", r".\1.processor.to_out_lora."),
)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet", ATTENTION),
        ("unet", PROCESSORS),
        ("unet", [*PROCESSORS, (r"^unet\.", "")]),
        ("unet", [(r"^unet\.", "base_model.model."), (r"(lora_[AB])\.", r"\1.default.")]),
        ("uvit", PROCESSORS),
        ("text", [(r"lora_A", "lora_linear_layer.down"), (r"lora_B", "lora_linear_layer.up")]),
        ("text", [(r"text_model\.", "")]),
        (
            "text",
            [
                (r"([qkv])_proj\.lora_A", r"to_\1_lora.down"),
                (r"([qkv])_proj\.lora_B", r"to_\1_lora.up"),
                (r"out_proj\.lora_A", "to_out_lora.down"),
                (r"out_proj\.lora_B", "to_out_lora.up"),
            ],
        ),
    ],
)
def test_older_spellings_are_read(name, changes):
    file = _respelled(name, *changes)
    assert file.keys() != _diffusers(name)[0].keys() and lora_read.is_lora(file)
    (found,) = _read(file, {}, name).values()
    _same_changes(found, name)


def test_layers_may_differ_in_rank_and_strength():
    rng = np.random.default_rng(0)
    file = {}
    expected = {}
    for side, rank, alpha in (("in", 2, 1.0), ("out", 5, 2.0)):
        layer = f"lora_unet_mid_block_attentions_0_proj_{side}"
        down = rng.normal(size=(rank, 12, 1, 1))
        up = rng.normal(size=(12, rank, 1, 1)).astype(np.float16)
        file[f"{layer}.lora_down.weight"] = down
        file[f"{layer}.lora_up.weight"] = up
        file[f"{layer}.alpha"] = np.array([alpha])
        change = alpha / rank * (up[:, :, 0, 0] @ down[:, :, 0, 0]).T
        expected[f"mid_block.attentions.0.proj_{side}.conv"] = change
    found = _read(file, {}, "unet")["denoiser"]
    assert found.config == lora.Config(rank=5, alpha=5.0, targets="all")
    assert found.layers.keys() == expected.keys()
    for path, weights in found.layers.items():
        np.testing.assert_allclose(weights.down @ weights.up, expected[path], atol=1e-5)


def test_a_file_of_two_models_is_split():
    for file, fields in (
        (_diffusers("unet", "text")[0], _peft(_diffusers("unet", "text")[1])),
        (_kohya("unet", "text"), {}),
    ):
        found = _read(file, fields, "unet", "text")
        _same_changes(found["denoiser"], "unet")
        _same_changes(found["text"], "text")
        with pytest.raises(UserError, match=r"does not fit the model, \d+ differ: unexpected .*te"):
            _read(file, fields, "unet")


FIRST = "lora_unet_conv_in"
SECOND = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {f"{FIRST}.lora_down.weight": np.zeros((3, 4, 1, 1))},
            f"1 differ: {FIRST}.lora_down.weight (3, 4, 1, 1) and {FIRST}.lora_up.weight",
        ),
        ({f"{SECOND}.lora_up.weight": None}, f"{SECOND}.alpha without its up"),
        (
            {"lora_unet_input_blocks_1_0.lora_down.weight": np.zeros((3, 4))},
            "unexpected lora_unet_input_blocks_1_0.lora_down.weight (3, 4)",
        ),
        ({f"{FIRST}.dora_scale": np.zeros(())}, f"unexpected {FIRST}.dora_scale ()"),
        (
            {"unet.conv_out.lora_A.weight": np.zeros((3, 8, 3, 3))},  # there in another spelling
            "unexpected unet.conv_out.lora_A.weight",
        ),
        (
            {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": np.zeros(())},
            "unexpected lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
        ),
        ({f"{FIRST}.alpha": np.array(np.nan)}, f"its {FIRST}.alpha is nan, expected a positive"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changes, words):
    file = _kohya("unet") | changes
    file = {name: tensor for name, tensor in file.items() if tensor is not None}
    with pytest.raises(UserError) as error:
        _read(file, {}, "unet")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_many_problems_are_counted_and_the_first_are_named():
    with pytest.raises(UserError) as error:
        _read(_kohya("unet"), {}, "uvit")
    count = len(_kohya("unet"))
    message = str(error.value)
    assert f"does not fit the model, {count} differ: unexpected lora_unet_" in message
    assert message.endswith("more") and len(message) < 300


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_encoder.lora_alpha": "4"}, "its lora_alpha is '4', expected a positive number"),
        ({"text_encoder.lora_alpha": -1}, "its lora_alpha is -1"),
        ({"text_encoder.alpha_pattern": 3}, "its alpha_pattern is 3, expected a mapping"),
        (
            {"text_encoder.alpha_pattern": {"(": 3}},
            r"its alpha_pattern has '\(', expected a short",
        ),
    ],
)
def test_strengths_that_are_none_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        _read(_diffusers("text")[0], fields, "text")


def test_a_file_without_lora_is_refused():
    assert not lora_read.is_lora({"conv_in.weight": 1, "<flora>": 2})
    with pytest.raises(UserError, match="has no LoRA tensors"):
        _read({}, {}, "unet")
