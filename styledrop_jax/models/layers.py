"""The layers every model is made of: NNX layers with an adapter slot, and attention.

Parameters are float32; `dtype` is the compute dtype.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

LayerNorm = nnx.LayerNorm
RMSNorm = nnx.RMSNorm
GroupNorm = nnx.GroupNorm
Embed = nnx.Embed


def recomputed(module: nnx.Module) -> Callable:
    """The module as a function whose activations the backward pass computes anew, not keeps (1604.06174)."""
    graphdef, state = nnx.split(module)
    return lambda *args: jax.checkpoint(lambda state: nnx.merge(graphdef, state)(*args))(state)


def _flat_dot_general(x: jax.Array, kernel: jax.Array, _dimensions, **kwargs) -> jax.Array:
    """The product of [..., c] and [c, d] over flattened tokens.

    The kernel's gradient then contracts one axis, which XLA's CPU backend does three times faster than several.
    `jax.default_matmul_precision("BF16_BF16_F32")` is honoured on every device; by itself a CPU ignores it.
    """
    flat = x.reshape(-1, x.shape[-1])
    if jax.config.jax_default_matmul_precision == "BF16_BF16_F32":
        y = _rounded_product(flat, kernel)
    else:
        y = jax.lax.dot(flat, kernel, precision=kwargs["precision"])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_bf16(a: jax.Array, b: jax.Array, *, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices rounded to bfloat16, summed in float32, over one axis of each."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, c] times [c, d] on the matrix units of a CPU that has them; its automatic derivative would not be."""
    return _dot_bf16(x, kernel, axes=(1, 0)).astype(x.dtype)


def _rounded_product_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # The kernel's own gradient sums over tokens: rounding would save nothing there, the transposition costs the most.
    dk = jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return _dot_bf16(g, kernel, axes=(1, 1)).astype(x.dtype), dk.astype(kernel.dtype)


_rounded_product.defvjp(lambda x, kernel: (_rounded_product(x, kernel), (x, kernel)), _rounded_product_backward)


class Linear(nnx.Linear):
    """`nnx.Linear` with a slot: a set `adapter(x, y)` maps the input and the output to a new output."""

    def __init__(self, in_features: int, out_features: int, **kwargs):
        super().__init__(in_features, out_features, dot_general=_flat_dot_general, **kwargs)
        self.adapter = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return y if self.adapter is None else self.adapter(x, y)


class Conv(nnx.Conv):
    """`nnx.Conv` (channels last, torch-style integer padding) with the adapter slot of `Linear`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None,
        groups: int = 1,
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
            feature_group_count=groups,
            **kwargs,
        )
        self.adapter = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return y if self.adapter is None else self.adapter(x, y)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU. `jax.nn.gelu` goes through erfc, which takes several times longer on a CPU."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    heads: int,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    control: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention with a softmax in float32.

    Args:
        q: [b, n, c]. k, v: [b, m, c]. `c` is split evenly over `heads`.
        mask: bool, broadcastable to [b, heads, n, m]; False positions are not attended to.
        bias: added to the logits, broadcastable to [b, heads, n, m].
        control: maps the weights, float32 [b, heads, n, m] with rows that sum to one, to those used in their place.

    Returns:
        [b, n, c]
    """
    b, n, c = q.shape
    d = c // heads

    def by_head(x: jax.Array) -> jax.Array:
        # [b, m, c] → [b, heads, m, d]: batch axes first, so that the products below need no transposition of their own
        return x.reshape(b, -1, heads, d).swapaxes(1, 2)

    q, k, v = by_head(q * d**-0.5), by_head(k), by_head(v)
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    weights = (weights if control is None else control(weights)).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", weights, v).swapaxes(1, 2).reshape(b, n, c)
