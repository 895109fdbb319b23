"""Scaled dot-product attention: long ones by the accelerator's own kernel, all others as written.

The plain form keeps the weights of all pairs for the backward pass: 4096 positions of Stable
Diffusion at 512 pixels are gigabytes. The kernels (FlashAttention-2, arXiv 2307.08691) keep one
number a row, and compute the weights anew.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_LONG = 1024  # positions from which the weights of all pairs are what takes the memory
_WIDEST = 128  # numbers of a head: wider ones do not fit the kernels' fast memory
_ROWS = 128  # the kernels take positions in blocks of a multiple of this
_BFLOAT16_GPUS = 8.0  # compute capability of the first GPUs whose matrix units take bfloat16
_BLOCKS = (512, 384, 256, 128)  # positions that the TPU's kernel takes at once


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

    A long self-attention in bfloat16 goes through the kernel of the platform that it is lowered
    for, if that has one. Its batch is cut over all axes of the mesh that `jax.set_mesh` has set:
    XLA cannot cut a kernel.

    Args:
        q: [b, n, c], of which c is split evenly over `heads`.
        k, v: [b, m, c].
        mask: bool, broadcastable to [b, heads, n, m]; False positions are not attended to.
        bias: added to the logits, broadcastable to [b, heads, n, m].
        control: maps the weights, float32 [b, heads, n, m] with rows that sum to one, to those that
            are used in their place.

    Returns:
        [b, n, c]
    """
    b, n, c = q.shape
    d = c // heads

    def by_head(x: jax.Array) -> jax.Array:
        # [b, m, c] → [b, heads, m, d]: batch axes first, so that the plain products need no
        # transposition of their own.
        return x.reshape(b, -1, heads, d).swapaxes(1, 2)

    split = by_head(q * d**-0.5), by_head(k), by_head(v)
    free = mask is None and bias is None and control is None
    if free and q.dtype == jnp.bfloat16 and n == k.shape[1] >= _LONG and d <= _WIDEST:
        out = _over_batch(_of_platform)(*split)
    else:
        out = _plain(*split, mask=mask, bias=bias, control=control)
    return out.swapaxes(1, 2).reshape(b, n, c)


def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    control: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Of scaled queries [b, heads, n, d]; the weights of all pairs are in memory."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    weights = (weights if control is None else control(weights)).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", weights, v)


_Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Maps scaled queries, keys and values [b, heads, n, d] to [b, heads, n, d]."""


def _over_batch(kernel: _Kernel) -> _Kernel:
    """The kernel on each device's own part of the batch; on all of it if that does not divide."""

    def sharded(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        devices = jax.sharding.get_abstract_mesh()
        # 0 where none is set; inside of `mesh.apart` a device has its own part already.
        if devices.size < 2 or devices.manual_axes:
            return kernel(q, k, v)
        spec = PartitionSpec() if q.shape[0] % devices.size else PartitionSpec(devices.axis_names)
        run = jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)
        return run(q, k, v)

    return sharded


def _of_platform(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(q, k, v, tpu=_splash, cuda=_on_gpu(q), default=_plain)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's kernel for TPUs."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    n = q.shape[2]
    q, k, v = map(_padded, (q, k, v))
    heads, padded = q.shape[1:3]
    block = next(block for block in _BLOCKS if padded % block == 0)
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    everything = masks.MultiHeadMask([masks.FullMask((padded, padded))] * heads)
    kernel = splash.make_splash_mha_single_device(everything, block_sizes=blocks)
    real = _segments(n, padded)
    segments = None if real is None else splash.SegmentIds(real, real)
    out: Any = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)
    return out[:, :, :n]


def _on_gpu(q: jax.Array) -> _Kernel:
    """What is there for GPUs: cuDNN's kernel, which has to take the shape, else JAX's own."""
    try:
        (gpu, *_) = jax.local_devices(backend="cuda")
    except RuntimeError:
        return _triton  # to compile for a GPU elsewhere
    if float(gpu.compute_capability) < _BFLOAT16_GPUS:
        return _plain
    try:
        jax.eval_shape(_cudnn, q, q, q)
    except (RuntimeError, NotImplementedError, ValueError):
        return _triton
    return _cudnn


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [b, n, heads, d]
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
    return out.swapaxes(1, 2)


def _triton(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's kernel for GPUs."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    b, _, n, _ = q.shape
    q, k, v = (_padded(x).swapaxes(1, 2) for x in (q, k, v))  # [b, n', heads, d]
    segments = _segments(n, q.shape[1])
    if segments is not None:
        segments = jnp.broadcast_to(segments, (b, len(segments)))
    out: Any = mha(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :, :n]


def _padded(x: jax.Array) -> jax.Array:
    """[b, heads, n, d] → [b, heads, n', d] with zeros, n' a multiple of `_ROWS`."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _ROWS), (0, 0)))


def _segments(n: int, padded: int) -> jax.Array | None:
    """int32 [padded], 0 for positions and 1 for padding, which attend to their own kind alone.

    None if there is no padding.
    """
    return None if n == padded else (jnp.arange(padded) >= n).astype(jnp.int32)
