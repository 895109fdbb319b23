"""LoRA: its formula in whole models, alone and merged into the weights."""

import dataclasses
import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from bases import BASES, adapted, by_layer, load, merged, random, silent, with_kernels
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
    up = by_layer(state, "up")
    changes = {}
    for layer, down in by_layer(state, "down").items():
        changes[layer] = config.alpha / config.rank * np.tensordot(down, up[layer], 1)
    return changes


@ALL
def test_output_is_that_of_the_merged_weights(name):
    changes = _changes(_config(name), _trained(name))
    expected = with_kernels(name, lambda path, kernel: kernel + changes.get(path, 0))
    assert np.abs(expected - with_kernels(name)).max() > 0.05
    np.testing.assert_allclose(_trained_output(name), expected, atol=1e-4)


@ALL
def test_fresh_and_zero_states_change_nothing(name):
    model = _attached(name)
    for state in (model.fresh, identity(model.fresh)):
        # The same numbers, but for the last bit: the two programs fuse differently in tests.
        np.testing.assert_allclose(model.run(state), with_kernels(name), rtol=1e-5, atol=1e-6)
    for path, leaf in tree.flatten(model.fresh).items():
        assert (leaf == 0).all() == path.endswith("up")


@ALL
def test_gradients_reach_every_adapter_weight_and_nothing_else(name):
    gradients = tree.flatten(_attached(name).gradient(_trained(name)))
    assert gradients.keys() == tree.flatten(_trained(name)).keys()
    for path in gradients:
        assert re.search(r"\.adapter\.(down|up)$", path)
    assert not silent(gradients)


def test_parameter_counts():
    def count(build, config):
        def attached():
            module = build()
            lora.attach(module, config, rngs=pretrained.ONE_KEY)
            return module

        return tree.count(nnx.state(nnx.eval_shape(attached), AdapterParam))

    # what the reference's trainer prints for Stable Diffusion 1.5 at rank 4
    build = functools.partial(unet.UNet, unet.Config.sd15(), rngs=pretrained.ONE_KEY)
    assert count(build, lora.Config(rank=4)) == 797_184
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
    assert state
    for path, leaf in state.items():
        assert re.search(r"self_attn\.\w+\.adapter", path)
        assert leaf.shape == ((8, 2) if path.endswith("down") else (2, 8))


@ALL
def test_merging_gives_the_same_output_without_adapters(name):
    module = load(name)
    lora.attach(module, _config(name), rngs=nnx.Rngs(1))
    nnx.update(module, nnx.State(_trained(name)))
    before = nnx.state(module, nnx.Param)
    np.testing.assert_allclose(merged(name, module), _trained_output(name), atol=1e-4)
    kernels = tree.flatten(nnx.state(load(name)))
    for path, leaf in tree.flatten(before).items():
        if "adapter" not in path:
            np.testing.assert_array_equal(leaf, kernels[path])


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
