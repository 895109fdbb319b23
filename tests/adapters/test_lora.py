"""LoRA: its formula in whole models, and its files as diffusers reads them and as other tools write them."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from bases import BASES, adapted, load, random, reference, tensors, with_kernels
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.adapters import lora
from styledrop_jax.adapters.base import AdapterParam, identity
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models import unet

CONFIG = lora.Config(rank=3, alpha=7.5, targets="all")
TARGETS = {"uvit": "all", "unet": "all", "text": "attention"}
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


def _changes(config, state):
    """{layer's path: what its kernel gains}, in NumPy."""
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(state).items()}
    return {
        path.removesuffix(".adapter.down"): config.alpha
        / config.rank
        * np.tensordot(down, flat[path.removesuffix("down") + "up"], 1)
        for path, down in flat.items()
        if path.endswith(".adapter.down")
    }


def _same_changes(config, state, name):
    found, expected = _changes(config, state), _changes(_config(name), _trained(name))
    for path in found.keys() | expected.keys():
        np.testing.assert_allclose(found[path], expected[path], atol=1e-5)


@ALL
def test_output_is_that_of_the_merged_weights(name):
    changes = _changes(_config(name), _trained(name))
    merged = with_kernels(name, lambda path, kernel: kernel + changes.get(path, 0))
    assert np.abs(merged - with_kernels(name)).max() > 0.05
    np.testing.assert_allclose(_trained_output(name), merged, atol=1e-4)


@ALL
def test_fresh_and_zero_states_change_nothing(name):
    model = _attached(name)
    for state in (model.fresh, identity(model.fresh)):
        np.testing.assert_array_equal(model.run(state), with_kernels(name))
    assert all(
        (leaf == 0).all() == path.endswith("up") for path, leaf in tree.flatten(model.fresh).items()
    )


@ALL
def test_gradients_reach_every_adapter_weight_and_nothing_else(name):
    gradients = tree.flatten(_attached(name).gradient(_trained(name)))
    assert gradients.keys() == tree.flatten(_trained(name)).keys()
    assert all(re.search(r"\.adapter\.(down|up)$", path) for path in gradients)
    assert all((gradient != 0).any() for gradient in gradients.values())


def test_parameter_counts():
    def count(build, config):
        def attached():
            module = build()
            lora.attach(module, config, rngs=nnx.Rngs(0))
            return module

        return tree.count(nnx.state(nnx.eval_shape(attached), AdapterParam))

    # what the reference's trainer prints for Stable Diffusion 1.5 at rank 4
    assert (
        count(lambda: unet.UNet(unet.Config.sd15(), rngs=nnx.Rngs(0)), lora.Config(rank=4))
        == 797_184
    )
    expected = {  # 4 projections, a pair of rank 3 each
        "uvit": 3
        * 4
        * (2 * 2 * 12 + 4 * 2 * 8),  # attentions of the layer, 12 wide, and of the blocks, 8 wide
        "text": 3 * 4 * 2 * 2 * 8,
    }
    for name, number in expected.items():
        assert count(BASES[name].build, lora.Config(rank=3)) == number


def test_bfloat16_layers_stay_in_bfloat16():
    layer = lora.Linear(4, 6, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    layer.adapter = lora.Adapter(layer, CONFIG, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 4))).dtype == jnp.bfloat16


def test_attaching_again_leaves_only_the_new_adapter():
    module = load("text")
    lora.attach(module, CONFIG, rngs=nnx.Rngs(0))
    lora.attach(module, lora.Config(rank=2), rngs=nnx.Rngs(0))
    state = tree.flatten(nnx.state(module, AdapterParam))
    assert state and all(re.search(r"self_attn\.\w+\.adapter", path) for path in state)
    assert {leaf.shape for leaf in state.values()} == {(8, 2), (2, 8)}


def _export(name):
    config = _config(name)
    return lora.export_diffusers(_trained(name), config, BASES[name].rules, BASES[name].prefix)


def _merged(name, halves, scale):
    """The reference's output with scale · B A added to the weight of every layer of {name: (A, B)}."""
    weights = dict(tensors(name))
    for layer, (a, b) in halves.items():
        weight = weights[f"{layer}.weight"]
        product = np.einsum("ri...,or->oi...", a, b.reshape(b.shape[:2]))
        assert product.shape == weight.shape
        weights[f"{layer}.weight"] = weight + np.float32(scale) * product
    return reference(name, weights)


@ALL
def test_a_diffusers_file_is_the_same_model_in_the_reference(name, tmp_path):
    pretrained.save(tmp_path / "lora.safetensors", *_export(name))
    read = functools.partial(
        StableDiffusionLoraLoaderMixin.lora_state_dict, weight_name="lora.safetensors"
    )
    found, alphas, metadata = read(tmp_path, return_lora_metadata=True)
    prefix = BASES[name].prefix
    peft = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    assert peft.keys() == {"r", "lora_alpha", "target_modules"} and alphas is None
    halves = {
        key.removeprefix(f"{prefix}.").removesuffix(".lora_A.weight"): (
            tensor.numpy(),
            found[key.replace("lora_A", "lora_B")].numpy(),
        )
        for key, tensor in found.items()
        if key.endswith(".lora_A.weight")
    }
    assert 2 * len(halves) == len(found) and all(
        a.shape[0] == peft["r"] for a, _ in halves.values()
    )
    # peft: a module is meant if its name is a target or ends in a dot and one
    modules = [
        key for key, module in BASES[name].reference().named_modules() if hasattr(module, "weight")
    ]
    targets = peft["target_modules"]
    meant = {
        key
        for key in modules
        if any(key == target or key.endswith(f".{target}") for target in targets)
    }
    assert meant == set(halves)
    for scale in (
        peft["lora_alpha"] / peft["r"],
        1,
    ):  # with the metadata, and of a reader that ignores them
        np.testing.assert_allclose(_merged(name, halves, scale), _trained_output(name), atol=1e-4)


def _kohya(name):
    config, prefix = _config(name), BASES[name].prefix
    return lora.export_kohya(_trained(name), config, BASES[name].rules, prefix)


def test_a_kohya_file_is_the_same_model_in_the_reference():
    both = {
        key: torch.tensor(tensor)
        for name in ("unet", "text")
        for key, tensor in _kohya(name).items()
    }
    converted, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(both))
    assert set(alphas.values()) == {7.5} and 3 * len(alphas) == len(both)

    def part(prefix):
        return {
            key.removeprefix(prefix): value
            for key, value in converted.items()
            if key.startswith(prefix)
        }

    denoiser = convert_unet_state_dict_to_peft(part("unet."))
    text = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part("text_encoder.")))
    for name, found in (("unet", denoiser), ("text", text)):
        layers = {key.split(".lora_A.")[0] for key in found if ".lora_A." in key}
        halves = {
            layer: tuple(found[f"{layer}.lora_{half}.weight"].numpy() for half in ("A", "B"))
            for layer in layers
        }
        assert 2 * len(halves) == len(found)
        np.testing.assert_allclose(_merged(name, halves, 7.5 / 3), _trained_output(name), atol=1e-4)


@ALL
def test_alpha_survives_every_format(name):
    original, rules = _config(name), BASES[name].rules
    folded, metadata = _export(name)
    cases = {
        "diffusers": (folded, metadata),
        "diffusers, metadata lost": (folded, None),
        "kohya": (_kohya(name), None),
    }
    for case, (file, metadata) in cases.items():
        config, state = lora.load_interchange(file, metadata, load(name), rules)
        _same_changes(config, state, name)
        assert jax.tree.structure(state) == jax.tree.structure(_trained(name))
        assert (config == original) == (case == "kohya"), "α is folded into B elsewhere"


def test_a_loaded_file_can_be_sampled_with():
    config, state = lora.load_interchange(_kohya("unet"), None, load("unet"), unet.RULES)
    assert config == _config("unet")
    np.testing.assert_allclose(_attached("unet").run(state), _trained_output("unet"), atol=1e-6)


def test_alpha_in_the_metadata_counts():
    """As peft writes it: α is not in the tensors, and single layers may have their own."""
    folded, metadata = _export("unet")
    first = "down_blocks.0.attentions.0"
    fields = json.loads(metadata["lora_adapter_metadata"]) | {"unet.lora_alpha": 6}
    fields["unet.alpha_pattern"] = {rf"^{first}.proj_in": 1.5, "attn2.to_q": 3}
    for extra, scale in ({}, 3), ({"unet.use_rslora": True}, np.sqrt(3)):  # what α is divided by
        text = {"lora_adapter_metadata": json.dumps(fields | extra)}
        config, state = lora.load_interchange(folded, text, load("unet"), unet.RULES)
        expected = _changes(_config("unet"), _trained("unet"))
        for path, change in _changes(config, state).items():
            alpha = (
                1.5 if path == f"{first}.proj_in.conv" else 3 if path.endswith("attn2.to_q") else 6
            )
            np.testing.assert_allclose(change, expected[path] * alpha / scale, atol=1e-4)


def _respelled(name, *changes):
    file = _export(name)[0]
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
    assert file.keys() != _export(name)[0].keys()
    config, state = lora.load_interchange(file, {"format": "pt"}, load(name), BASES[name].rules)
    _same_changes(config, state, name)


def test_layers_may_differ_in_rank_and_strength_or_be_left_out():
    rng = np.random.default_rng(0)
    layers = {
        "mid_block_attentions_0_proj_in": (2, 1.0),
        "mid_block_attentions_0_proj_out": (5, 2.0),
    }
    file, expected = {}, {}
    for layer, (rank, alpha) in layers.items():
        down, up = (
            rng.normal(size=(rank, 12, 1, 1)),
            rng.normal(size=(12, rank, 1, 1)).astype(np.float16),
        )
        file |= {
            f"lora_unet_{layer}.lora_down.weight": down,
            f"lora_unet_{layer}.lora_up.weight": up,
        }
        file[f"lora_unet_{layer}.alpha"] = np.array([alpha])
        expected[f"mid_block.attentions.0.{layer[-8:].strip('_')}.conv"] = (
            alpha / rank * (up[:, :, 0, 0] @ down[:, :, 0, 0]).T
        )
    config, state = lora.load_interchange(file, None, load("unet"), unet.RULES)
    assert (config.rank, config.targets) == (5, "all")
    for path, change in _changes(config, state).items():
        np.testing.assert_allclose(change, expected.pop(path, 0), atol=1e-5)
    assert not expected


def test_files_of_two_models_are_joined_and_split():
    file, metadata = lora.join(_export("unet"), _export("text"))
    parts = lora.split(file)
    for name, part in (("unet", parts["denoiser"]), ("text", parts["text_encoder"])):
        config, state = lora.load_interchange(part, metadata, load(name), BASES[name].rules)
        _same_changes(config, state, name)
    assert lora.split(_kohya("text"))["denoiser"] == {}
    with pytest.raises(UserError, match="does not fit UNet") as error:
        lora.load_interchange(file, metadata, load("unet"), unet.RULES)
    assert all(name in str(error.value) for name in parts["text_encoder"])


def test_every_tensor_that_does_not_fit_is_named_in_one_line():
    file = _kohya("unet")
    first, second = "lora_unet_conv_in", "lora_unet_mid_block_attentions_0_proj_in"
    del file[f"{second}.lora_up.weight"]
    file[f"{first}.lora_down.weight"] = np.zeros((3, 4, 1, 1), "f")
    file["lora_unet_input_blocks_1_0.lora_down.weight"] = np.zeros((3, 4), "f")
    file["lora_unet_conv_in.dora_scale"] = np.zeros(())
    file["unet.conv_out.lora_A.weight"] = np.zeros(
        (3, 8, 3, 3), "f"
    )  # there under another spelling
    file["lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha"] = np.zeros(())
    with pytest.raises(UserError) as error:
        lora.load_interchange(file, None, load("unet"), unet.RULES)
    for words in (
        "does not fit UNet, 6 differ",
        f"{first}.lora_down.weight (3, 4, 1, 1)",
        f"{second}.alpha without the up half",
        "unexpected lora_unet_input_blocks_1_0.lora_down.weight (3, 4)",
        "unexpected lora_unet_conv_in.dora_scale ()",
        "unexpected unet.conv_out.lora_A.weight",
        "unexpected lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "metadata", "words"),
    [
        ({}, None, "has no LoRA tensors"),
        (None, {"lora_adapter_metadata": "[1"}, r"is '\[1', expected the JSON of a peft config"),
        (None, {"lora_adapter_metadata": "7"}, "expected the JSON of a peft config"),
    ],
)
def test_unreadable_files_are_refused(file, metadata, words):
    file = _export("text")[0] if file is None else file
    with pytest.raises(UserError, match=words):
        lora.load_interchange(file, metadata, load("text"), BASES["text"].rules)


def test_configs_are_checked_and_survive():
    assert lora.Config.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    for fields, words in (
        ({"rank": 0}, "lora rank: found 0, expected a positive whole number"),
        ({"alpha": -1.0}, "lora alpha: found -1.0"),
        ({"alpha": float("nan")}, "lora alpha: found nan"),
        ({"targets": "conv"}, "lora targets: found 'conv', expected one of attention, all"),
    ):
        with pytest.raises(UserError, match=words):
            lora.Config(**fields)
    with pytest.raises(UserError, match="'svdiff', expected 'lora'"):
        lora.Config.from_dict({"adapter": "svdiff"})
    with pytest.raises(UserError, match="does not fit"):
        lora.Config.from_dict({"adapter": "lora", "bottleneck": 4})
    with pytest.raises(UserError, match="Linear has no layers"):
        lora.attach(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), CONFIG, rngs=nnx.Rngs(0))
