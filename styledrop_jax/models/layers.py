"""The layers every model is made of: NNX layers with an adapter slot.

Fresh parameters are float32; `dtype` is the compute dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

LayerNorm = nnx.LayerNorm
RMSNorm = nnx.RMSNorm
GroupNorm = nnx.GroupNorm
Embed = nnx.Embed


def recomputed(module: nnx.Module) -> Callable:
    """The module as a function whose activations the backward pass computes anew (1604.06174)."""
    graphdef, state = nnx.split(module)
    return lambda *args: jax.checkpoint(lambda state: nnx.merge(graphdef, state)(*args))(state)


def _flat_dot_general(x: jax.Array, kernel: jax.Array, _dimensions, **kwargs) -> jax.Array:
    """The product of [..., c] and [c, d] over flattened tokens.

    The kernel's gradient then contracts one axis, which XLA's CPU backend does three times faster
    than several. `jax.default_matmul_precision("BF16_BF16_F32")` is honoured on every device; by
    itself a CPU ignores it.
    """
    flat = x.reshape(-1, x.shape[-1])
    # JAX adds its options to the class when it is imported.
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if asked == "BF16_BF16_F32":
        y = _rounded_product(flat, kernel)
    else:
        y = jax.lax.dot(flat, kernel, precision=kwargs["precision"])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_bf16(a: jax.Array, b: jax.Array, *, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices rounded to bfloat16, summed in float32, over one axis of each."""
    return jax.lax.dot_general(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        (((axes[0],), (axes[1],)), ((), ())),
        preferred_element_type=jnp.float32,
    )


@jax.custom_vjp
def _rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, c] times [c, d] on the matrix units of a CPU that has them.

    Its automatic derivative would not use them.
    """
    return _dot_bf16(x, kernel, axes=(1, 0)).astype(x.dtype)


def _rounded_product_backward(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # The kernel's own gradient sums over tokens, where the transposition costs the most: rounding
    # would save nothing.
    dk = jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return _dot_bf16(g, kernel, axes=(1, 1)).astype(x.dtype), dk.astype(kernel.dtype)


_rounded_product.defvjp(
    lambda x, kernel: (_rounded_product(x, kernel), (x, kernel)), _rounded_product_backward
)


def _drawn(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a layer, whose kernel is drawn only from real keys: where something stands
    in for them its shape is all that matters, and zeros are traced in less time.
    """
    if isinstance(arguments["rngs"], nnx.Rngs):
        return arguments
    return {**arguments, "kernel_init": nnx.initializers.zeros}


class Linear(nnx.Linear):
    """`nnx.Linear` with a slot for an adapter.

    If it is set, `adapter(x, y)` maps the input and the output to a new output.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs):
        super().__init__(in_features, out_features, dot_general=_flat_dot_general, **_drawn(kwargs))
        self.adapter = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return y if self.adapter is None else self.adapter(x, y)


_Padding = tuple[tuple[int, int], tuple[int, int]]


def _correlate(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: _Padding
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: _Padding
) -> jax.Array:
    """[b, h, w, c] with a kernel [i, j, c, d] → [b, h', w', d].

    On a CPU its gradients are plain convolutions of arrays that are flipped and spread beforehand:
    inside a loop XLA's CPU backend takes over ten times as long for the automatic ones.
    """
    return _correlate(x, kernel, stride, padding)


def _convolution_backward(stride, padding, saved, g):
    def automatic(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: _correlate(x, kernel, stride, padding), x, kernel)[1](g)

    def spread(g: jax.Array, pads: list[tuple[int, int, int]]) -> jax.Array:
        return jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))

    def plain(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        # g is spread as if the stride were 1, with zeros in between, and with so many around it
        # that a plain convolution gives the size of x or of the kernel.
        for_x = []
        for_kernel = []
        for axis in (0, 1):
            size = x.shape[1 + axis]
            span = kernel.shape[axis]
            step = stride[axis]
            low, high = padding[axis]
            reach = (g.shape[1 + axis] - 1) * step + 1
            for_x.append((span - 1 - low, size + low - reach, step - 1))
            for_kernel.append((0, size + low + high - span + 1 - reach, step - 1))
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        dx = _correlate(spread(g, for_x), flipped, (1, 1), ((0, 0), (0, 0)))
        spread_g = spread(g, for_kernel).transpose(1, 2, 0, 3)
        dk = _correlate(x.transpose(3, 1, 2, 0), spread_g, (1, 1), padding)
        return dx, dk.transpose(1, 2, 0, 3)

    return jax.lax.platform_dependent(*saved, g, cpu=plain, default=automatic)


convolution.defvjp(
    lambda x, kernel, stride, padding: (_correlate(x, kernel, stride, padding), (x, kernel)),
    _convolution_backward,
)


def _conv_general_dilated(
    x: jax.Array, kernel: jax.Array, stride, padding, **_settings
) -> jax.Array:
    return convolution(x, kernel, tuple(stride), tuple(map(tuple, padding)))


class Conv(nnx.Conv):
    """`nnx.Conv` (channels last, torch-style integer padding) with the adapter slot of `Linear`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | _Padding | None = None,
        **kwargs,
    ):
        if padding is None:
            padding = kernel_size // 2
        if isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        super().__init__(
            in_features,
            out_features,
            kernel_size=(kernel_size, kernel_size),
            strides=stride,
            padding=padding,
            conv_general_dilated=_conv_general_dilated,
            **_drawn(kwargs),
        )
        self.adapter = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return y if self.adapter is None else self.adapter(x, y)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, several times faster on a CPU than `jax.nn.gelu`, which takes erfc."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


class Geglu(nnx.Module):
    """One product gives value and gate: value · gelu(gate) (2002.05202, Eq. 6)."""

    def __init__(self, linear: Callable[[int, int], Linear], features: int, inner: int):
        self.proj = linear(features, 2 * inner)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., features]. Returns [..., inner]."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """The gated MLP of transformers; `linear(c_in, c_out)` makes its layers.

    `net` keeps the reference's numbering, whose second entry is dropout.
    """

    def __init__(self, linear: Callable[[int, int], Linear], features: int, inner: int):
        gated = Geglu(linear, features, inner)
        self.net: nnx.List[Any] = nnx.List([gated, None, linear(inner, features)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., features]. Returns [..., features]."""
        return self.net[2](self.net[0](x))
