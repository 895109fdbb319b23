"""Training losses, one value for each example."""

import jax
import jax.numpy as jnp


def masked_token_loss(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy on the masked tokens only, the mean over each example's own (Muse 2301.00704 section 2.6).

    Every image counts the same, whatever its mask rate. For the mean over all masked tokens of a batch, as aMUSEd's
    trainer has it, weight the losses by `mask_rate`.

    Args:
        logits: [b, n, v], any float type; the loss is computed in float32.
        targets: [b, n] int32 in [0, v).
        mask: [b, n] bool, true where the input was masked.
        label_smoothing: share of the target's probability that is spread over all v tokens.

    Returns:
        loss [b] in nats per masked token (0 where nothing is masked), and metrics, each [b]:
        `accuracy`, the share of masked tokens whose target has the highest logit, and `mask_rate`.
    """
    logits = logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]  # [b, n]
    expected = (1 - label_smoothing) * target + label_smoothing * logits.mean(axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - expected  # [b, n]
    count = jnp.maximum(mask.sum(axis=-1), 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0).sum(axis=-1) / count

    metrics = {"accuracy": mean(logits.argmax(axis=-1) == targets), "mask_rate": mask.mean(axis=-1)}
    return mean(loss), metrics
