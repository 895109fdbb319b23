"""The layers all models are made of: what a product computes at each precision."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.models.layers import Linear, attention


def _value_and_gradients(precision: str | None):
    rng = np.random.default_rng(0)
    layer = Linear(48, 32, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((3, 5, 48), np.float32))
    weights = jnp.asarray(rng.standard_normal((3, 5, 32), np.float32))
    graphdef, state = nnx.split(layer)
    with jax.default_matmul_precision(precision):
        loss = jax.jit(lambda state, x: (nnx.merge(graphdef, state)(x) * weights).sum())
        value, (kernel, inputs) = jax.value_and_grad(lambda s, x: loss(s, x), argnums=(0, 1))(state, x)
    return value, kernel["kernel"][...], inputs


def test_products_in_bfloat16_are_rounded_and_summed_in_float32():
    exact, rounded = _value_and_gradients(None), _value_and_gradients("BF16_BF16_F32")
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02 * float(jnp.abs(a).max()))
    assert not np.array_equal(exact[2], rounded[2]), "the precision was asked for"
    np.testing.assert_allclose(exact[1], rounded[1], rtol=1e-5)


def test_a_control_replaces_the_attention_weights():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, n, 8), np.float32)) for n in (3, 4, 4))
    seen = []

    def first_only(weights):
        seen.append(weights)
        return jnp.zeros_like(weights).at[..., 0].set(1)

    y = attention(q, k, v, heads=2, control=first_only)
    np.testing.assert_allclose(y, np.repeat(v[:, :1], 3, axis=1), rtol=1e-6)
    np.testing.assert_allclose(seen[0].sum(-1), 1, rtol=1e-5)
    same = attention(q, k, v, heads=2, control=lambda weights: weights)
    np.testing.assert_allclose(same, attention(q, k, v, heads=2), rtol=1e-6)
