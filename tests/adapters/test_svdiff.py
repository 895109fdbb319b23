"""SVDiff against explicit singular value decompositions of every kernel."""

import functools
import json

import jax
import numpy as np
import pytest
from bases import BASES, adapted, by_layer, load, merged, random, silent, with_kernels
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.adapters import svdiff
from styledrop_jax.adapters.base import AdapterParam, identity
from styledrop_jax.errors import UserError

BOTH = pytest.mark.parametrize("name", ["uvit", "unet"])


@functools.cache
def _attached(name):
    return adapted(name, lambda module: svdiff.attach(module, svdiff.Config(), rngs=nnx.Rngs(0)))


@BOTH
def test_output_is_that_of_the_explicit_reconstruction(name):
    model = _attached(name)
    state = random(model.fresh, scale=0.4)
    deltas = by_layer(state, "delta")
    cut = 0

    def reconstructed(path, kernel):
        nonlocal cut
        if path not in deltas:
            return kernel
        v, sigma, ut = np.linalg.svd(
            kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), full_matrices=False
        )
        shifted = sigma + deltas.pop(path)
        cut += (shifted < 0).sum()
        return ((v * np.maximum(shifted, 0)) @ ut).reshape(kernel.shape).astype(np.float32)

    expected = with_kernels(name, reconstructed)
    found = np.asarray(model.run(state))
    assert not deltas and cut > 0, "every layer is met, and some values would turn negative"
    scale = np.abs(expected).max()
    assert np.abs(expected - with_kernels(name)).max() > 0.05 * scale
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_merging_gives_the_same_output_without_adapters():
    module = load("unet")
    svdiff.attach(module, svdiff.Config(), rngs=nnx.Rngs(0))
    state = random(_attached("unet").fresh, scale=0.4)
    nnx.update(module, nnx.State(state))
    expected = np.asarray(_attached("unet").run(state))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(merged("unet", module) / scale, expected / scale, atol=1e-4)


@BOTH
def test_fresh_and_zero_states_change_nothing(name):
    model = _attached(name)
    for state in (model.fresh, identity(random(model.fresh))):
        # The same numbers, but for the last bit: the two programs fuse differently in tests.
        np.testing.assert_allclose(model.run(state), with_kernels(name), rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_shift_and_nothing_else():
    model = _attached("uvit")
    gradients = tree.flatten(model.gradient(random(model.fresh, scale=0.01)))
    assert gradients.keys() == tree.flatten(model.fresh).keys()
    assert not silent(gradients)


def test_one_vector_a_layer_as_long_as_the_smaller_side():
    module = load("unet")
    expected = {}
    for path, kernel in tree.flatten(nnx.state(module, nnx.Param)).items():
        if path.endswith(".kernel"):
            size = min(np.prod(kernel.shape[:-1]), kernel.shape[-1])
            expected[path.removesuffix(".kernel")] = (size,)
    found = by_layer(_attached("unet").fresh, "delta")
    assert {path: delta.shape for path, delta in found.items()} == expected


def test_the_factors_are_no_parameters():
    """So that they are neither trained nor exported with the base."""

    def attached():
        module = BASES["text"].build()
        svdiff.attach(module, svdiff.Config(targets="attention"), rngs=nnx.Rngs(0))
        return module

    module = nnx.eval_shape(attached)
    adapter, parameters, rest = nnx.state(module, AdapterParam, nnx.Param, ...)
    assert tree.flatten(parameters).keys() == tree.flatten(nnx.state(load("text"))).keys()
    assert {path.rpartition(".")[2] for path in tree.flatten(rest)} == {"v", "sigma", "ut"}
    assert len(tree.flatten(adapter)) == 2 * 4, "four projections in two layers"


def test_configs_are_checked_and_survive():
    config = svdiff.Config(targets="attention")
    assert svdiff.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(
        UserError, match="svdiff targets: found 'norms', expected one of attention, all"
    ):
        svdiff.Config(targets="norms")
    with pytest.raises(UserError, match="'lora', expected 'svdiff'"):
        svdiff.Config.from_dict({"adapter": "lora"})
    with pytest.raises(UserError, match="does not fit"):
        svdiff.Config.from_dict({"adapter": "svdiff", "rank": 4})


def test_a_vmap_over_stacked_states_is_each_on_its_own():
    """Guidance runs one adapter on and off in one batched program."""
    layer = svdiff.Linear(5, 3, rngs=nnx.Rngs(0))
    layer.adapter = svdiff.Adapter(layer)
    graphdef, state, frozen = nnx.split(layer, AdapterParam, ...)
    state = random(nnx.as_pure(state))
    x = np.ones((2, 5), "f")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), state, identity(state))
    on, off = jax.vmap(lambda state: nnx.merge(graphdef, state, frozen)(x))(stacked)
    np.testing.assert_allclose(on, nnx.merge(graphdef, state, frozen)(x), atol=1e-6)
    layer.adapter = None
    np.testing.assert_allclose(off, layer(x), atol=1e-6)
