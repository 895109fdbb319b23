"""Custom Diffusion: which matrices train, and that they are merged as they train."""

import functools
import json

import jax
import numpy as np
import pytest
from bases import adapted, by_layer, load, merged, random, silent, with_kernels
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.adapters import custom_diffusion
from styledrop_jax.adapters.base import AdapterParam, identity
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models import unet

CONFIG = custom_diffusion.Config()
BOTH = pytest.mark.parametrize("name", ["uvit", "unet"])


def _attach(module):
    custom_diffusion.attach(module, CONFIG, rngs=nnx.Rngs(0))


@functools.cache
def _attached(name):
    return adapted(name, _attach)


@functools.cache
def _trained(name):
    return random(_attached(name).fresh, scale=0.5)


def _module(name):
    """The base with the trained adapter in it."""
    module = load(name)
    _attach(module)
    nnx.update(module, nnx.State(_trained(name)))
    return module


def test_the_keys_and_values_of_every_cross_attention_train():
    attentions = {
        "unet": [
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
            "mid_block.attentions.0.transformer_blocks.0.attn2",
            "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
            "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
        ],
        "uvit": [
            "transformer_layers.0.attn2",
            "down_block.attention_blocks.0.attn1",
            "down_block.attention_blocks.0.attn2",
            "up_block.attention_blocks.0.attn1",
            "up_block.attention_blocks.0.attn2",
        ],
    }
    for name, paths in attentions.items():
        expected = set()
        for path in paths:
            expected |= {f"{path}.to_k.adapter.delta", f"{path}.to_v.adapter.delta"}
        assert tree.flatten(_attached(name).fresh).keys() == expected


def test_the_count_is_the_papers():
    """75 MB in float32 for Stable Diffusion 1.x, of which the text is 768 wide."""

    def build():
        module = unet.UNet(unet.Config.sd15(), rngs=pretrained.ONE_KEY)
        _attach(module)
        return module

    widths = 5 * 320 + 5 * 640 + 6 * 1280
    assert (
        tree.count(nnx.state(nnx.eval_shape(build), AdapterParam)) == 2 * 768 * widths == 19_169_280
    )


@BOTH
def test_output_is_that_of_the_changed_matrices(name):
    changes = by_layer(_trained(name), "delta")
    expected = with_kernels(name, lambda path, kernel: kernel + changes.get(path, 0))
    assert np.abs(expected - with_kernels(name)).max() > 0.05
    np.testing.assert_allclose(_attached(name).run(_trained(name)), expected, atol=1e-4)


@BOTH
def test_fresh_and_zero_states_change_nothing(name):
    model = _attached(name)
    for state in (model.fresh, identity(_trained(name))):
        np.testing.assert_array_equal(model.run(state), with_kernels(name))


def test_gradients_reach_every_difference_and_nothing_else():
    gradients = tree.flatten(_attached("uvit").gradient(_attached("uvit").fresh))
    assert gradients.keys() == tree.flatten(_attached("uvit").fresh).keys()
    assert not silent(gradients)


def test_the_first_token_counts_but_does_not_train():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 5)).astype("f")
    y = rng.standard_normal((2, 4, 3)).astype("f")
    weight = rng.standard_normal((2, 4, 3)).astype("f")
    layer = custom_diffusion.Linear(5, 3, use_bias=False, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(custom_diffusion.Adapter(layer))
    state = random(nnx.as_pure(state))
    apply = lambda state: nnx.merge(graphdef, state)(x, y)  # noqa: E731
    np.testing.assert_allclose(apply(state), y + x @ state["delta"], rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda state: (apply(state) * weight).sum())(state)["delta"]
    np.testing.assert_allclose(
        gradient, np.einsum("btc,btd->cd", x[:, 1:], weight[:, 1:]), rtol=1e-5, atol=1e-5
    )


@BOTH
def test_merging_gives_the_same_output_without_adapters(name):
    found = merged(name, _module(name))
    np.testing.assert_allclose(found, _attached(name).run(_trained(name)), atol=1e-4)


def test_configs_and_models_are_checked():
    assert custom_diffusion.Config.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(UserError, match="'lora', expected 'custom_diffusion'"):
        custom_diffusion.Config.from_dict({"adapter": "lora"})
    with pytest.raises(UserError, match="found rank, expected nothing more"):
        custom_diffusion.Config.from_dict({"adapter": "custom_diffusion", "rank": 4})
    with pytest.raises(UserError, match="ClipText has no layers"):
        _attach(load("text"))
