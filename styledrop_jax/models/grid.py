"""Layers on a grid of features [b, h, w, c]: convolutions of the U-ViT and CLIP, a response norm.

Each convolution is written as products and shifts that run several times faster on a CPU, forward
and backward, than XLA's convolution. Their kernels are HWIO, as `nnx.Conv` has them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_GRN_EPS = 1e-6


def places(h: int, w: int, side: int) -> jax.Array:
    """For each position of a grid h × w, the nearest one of a grid side × side, numbered by rows.

    Returns:
        int32 [h, w]
    """
    rows = jnp.arange(h)[:, None] * side // h
    return rows * side + jnp.arange(w) * side // w


def doubled(x: jax.Array) -> jax.Array:
    """A grid [b, h, w, c] by nearest neighbour → [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class _Conv(nnx.Module):
    """A convolution's parameters."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        fan_in: int,
        use_bias: bool,
        rngs: nnx.Rngs,
        kernel_init: nnx.Initializer | None = None,
        dtype: Any = jnp.float32,
    ):
        init = kernel_init or nnx.initializers.truncated_normal(fan_in**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[-1])) if use_bias else None
        self.dtype = dtype

    def _add_bias(self, y: jax.Array) -> jax.Array:
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class DepthwiseConv(_Conv):
    """A 3×3 convolution of each channel by itself, with zeros around the grid.

    It is nine shifted products in one fused loop.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__((3, 3, 1, channels), fan_in=9, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]"""
        h, w = x.shape[1:3]
        kernel = self.kernel[...].astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jnp.zeros((), x.dtype)
        for i in range(3):
            for j in range(3):
                y = y + padded[:, i : i + h, j : j + w] * kernel[i, j, 0]
        return self._add_bias(y)


class FoldingConv(_Conv):
    """A convolution as wide as its stride: side × side positions become one, by one product."""

    def __init__(self, channels: int, out: int, side: int = 2, **kwargs):
        super().__init__((side, side, channels, out), fan_in=side**2 * channels, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], h and w multiples of `side`. Returns [b, h / side, w / side, out]."""
        side, _, c, out = self.kernel.shape
        b = x.shape[0]
        rows = x.shape[1] // side
        columns = x.shape[2] // side
        x = x.astype(self.dtype).reshape(b, rows, side, columns, side, c).swapaxes(2, 3)
        y = x.reshape(-1, side**2 * c) @ self.kernel[...].astype(self.dtype).reshape(-1, out)
        return self._add_bias(y.reshape(b, rows, columns, out))


class UnfoldingConv(_Conv):
    """A 2×2 transposed convolution of stride 2: each position becomes four, by one product."""

    def __init__(self, channels: int, out: int, **kwargs):
        super().__init__((2, 2, channels, out), fan_in=channels, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]. Returns [b, 2h, 2w, out]."""
        b, h, w, c = x.shape
        out = self.kernel.shape[-1]
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3).reshape(c, 4 * out)
        y = (x.reshape(-1, c) @ kernel).reshape(b, h, w, 2, 2, out).swapaxes(2, 3)
        return self._add_bias(y.reshape(b, 2 * h, 2 * w, out))


class GlobalResponseNorm(nnx.Module):
    """Channels compete by their norm over the whole grid (ConvNeXt V2, 2301.00808, Eq. 1–3)."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.zeros(channels))
        self.beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]"""
        total = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        # The floor keeps the square root's gradient finite for a channel that is zero everywhere.
        norm = jnp.sqrt(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))  # [b, 1, 1, c]
        share = (norm / (jnp.mean(norm, axis=-1, keepdims=True) + _GRN_EPS)).astype(x.dtype)
        return self.gamma[...].astype(x.dtype) * (x * share) + self.beta[...].astype(x.dtype) + x
