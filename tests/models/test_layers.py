"""The layers of all models: products at each precision, gradients of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from styledrop_jax.models.layers import Conv, Linear, gelu


def _value_and_gradients(precision: str | None):
    rng = np.random.default_rng(0)
    layer = Linear(48, 32, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((3, 5, 48), np.float32))
    weights = jnp.asarray(rng.standard_normal((3, 5, 32), np.float32))
    graphdef, state = nnx.split(layer)
    with jax.default_matmul_precision(precision):
        loss = jax.jit(lambda state, x: (nnx.merge(graphdef, state)(x) * weights).sum())
        value, (kernel, inputs) = jax.value_and_grad(loss, argnums=(0, 1))(state, x)
    return value, kernel["kernel"][...], inputs


def test_products_in_bfloat16_are_rounded_and_summed_in_float32():
    exact = _value_and_gradients(None)
    rounded = _value_and_gradients("BF16_BF16_F32")
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02 * float(jnp.abs(a).max()))
    assert not np.array_equal(exact[2], rounded[2]), "the precision was asked for"
    np.testing.assert_allclose(exact[1], rounded[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        ((9, 12), 3, 1, None),
        ((16, 12), 3, 2, None),
        ((17, 13), 3, 2, 1),
        ((16, 15), 3, 2, ((0, 1), (0, 1))),
        ((7, 6), 1, 1, None),
        ((11, 14), 4, 4, 0),
        ((10, 9), 5, 3, 2),
    ],
)
def test_gradients_of_a_convolution(size, kernel_size, stride, padding):
    conv = Conv(5, 4, kernel_size, stride=stride, padding=padding, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, *size, 5))
    weight = torch.tensor(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1), requires_grad=True)
    image = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
    (top, bottom), (left, right) = conv.padding
    padded = torch.nn.functional.pad(image, (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, weight, stride=stride)
    (expected**2).sum().backward()
    graphdef, state = nnx.split(conv)

    def loss(state, x):
        return (nnx.merge(graphdef, state)(x) ** 2).sum()

    of_state, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)
    np.testing.assert_allclose(of_x, image.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(
        of_state.kernel[...], weight.grad.numpy().transpose(2, 3, 1, 0), atol=1e-3
    )


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x))
    # A few roundings to float32 on either side, whose number depends on the processor; the tanh
    # form is off by 5e-4.
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=1e-6, rtol=2e-7)
