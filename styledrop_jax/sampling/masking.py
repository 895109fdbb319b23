"""How many tokens are masked: in training, and after each step of parallel decoding."""

import jax
import jax.numpy as jnp


def cosine_mask_rate(u: jax.typing.ArrayLike) -> jax.Array:
    """r = cos(pi u / 2) for u in [0, 1], whose mean over u is 2 / pi.

    Source: MaskGIT (2202.04200) section 3.3.
    """
    return jnp.cos(jnp.asarray(u, jnp.float32) * (jnp.pi / 2))


def masked_after_step(
    initial: jax.Array, now: jax.Array, *, step: int | jax.Array, steps: int | jax.Array
) -> jax.Array:
    """The number of tokens still masked after decoding step `step` of `steps`.

    It is floor(cos(pi/2 (step + 1) / steps) * initial), but at least one less than now, at least 1
    before the last step, and 0 after it. An image with fewer masked tokens than steps keeps its
    last one masked until the end.

    Source: MaskGIT (2202.04200) section 3.2, and aMUSEd's scheduler.

    Args:
        initial: [b] int32, how many were masked before the first step.
        now: [b] int32, how many are masked before this step.
        step: from 0.

    Returns:
        [b] int32
    """
    left = jnp.floor(initial * cosine_mask_rate((step + 1) / steps)).astype(jnp.int32)
    left = jnp.maximum(jnp.minimum(left, now - 1), 1)
    return jnp.where(step + 1 >= steps, 0, left)


def mask_tokens(tokens: jax.Array, keys: jax.Array, *, mask_id: int) -> tuple[jax.Array, jax.Array]:
    """Masks a random share of each image's tokens for training, at least one of them.

    The share is cos(pi u / 2) with u ~ U(0, 1). The count is rounded to the nearest, as aMUSEd's
    trainer does.

    Source: Muse (2301.00704) section 2.6.

    Args:
        tokens: [b, n] int32.
        keys: [b] PRNG keys, one for each image: its mask does not depend on the batch it is in.
        mask_id: the token that stands for a masked one.

    Returns:
        inputs [b, n] int32, with `mask_id` where masked; mask [b, n] bool.
    """
    n = tokens.shape[-1]

    def of_image(key: jax.Array) -> jax.Array:
        rate_key, order_key = jax.random.split(key)
        count = jnp.maximum(jnp.round(n * cosine_mask_rate(jax.random.uniform(rate_key))), 1)
        return jax.random.permutation(order_key, n) < count  # [n]

    mask = jax.vmap(of_image)(keys)
    return jnp.where(mask, mask_id, tokens), mask
