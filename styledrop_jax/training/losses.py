"""Training losses, one value for each example."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from styledrop_jax.sampling.noise_schedule import NoiseSchedule


def masked_token_loss(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean cross-entropy of each example's masked tokens (Muse 2301.00704 section 2.6).

    Every image counts the same, whatever its mask rate. For the mean over all masked tokens of a
    batch, which is what aMUSEd's trainer takes, weight the losses by `mask_rate`.

    Args:
        logits: [b, n, v], any float type; the loss is computed in float32.
        targets: [b, n] int32 in [0, v).
        mask: [b, n] bool, true where the input was masked.
        label_smoothing: share of the target's probability that is spread over all v tokens.

    Returns:
        the loss [b] in nats per masked token (0 where nothing is masked), and metrics, each [b]:
        `accuracy`, the share of masked tokens whose target has the highest logit, and `mask_rate`.
    """
    logits = logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]  # [b, n]
    expected = (1 - label_smoothing) * target + label_smoothing * logits.mean(axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - expected  # [b, n]
    count = jnp.maximum(mask.sum(axis=-1), 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0).sum(axis=-1) / count

    accuracy = mean(logits.argmax(axis=-1) == targets)
    return mean(loss), {"accuracy": accuracy, "mask_rate": mask.mean(axis=-1)}


def denoising_loss(
    denoiser: Callable[..., jax.Array],
    schedule: NoiseSchedule,
    latents: jax.Array,
    states: jax.Array,
    keys: jax.Array,
    *,
    min_snr_gamma: float | None = None,
    noise_offset: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The error of the denoiser at a random timestep for each example: `loss_at` of `sample_noise`.

    Args:
        denoiser: (latents, timesteps, states) → the noise or v.
        schedule: what it was trained with.
        latents: [b, h, w, c], of images.
        states: [b, t, d], the features of the prompts.
        keys: [b], of the examples.
        min_snr_gamma, noise_offset: see those functions.
    """
    t, noise = sample_noise(schedule, latents.shape[1:], keys, noise_offset=noise_offset)
    return loss_at(denoiser, schedule, latents, states, t, noise, min_snr_gamma=min_snr_gamma)


def sample_noise(
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    keys: jax.Array,
    *,
    noise_offset: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """A uniform timestep and unit noise for each example, whatever batch it is in.

    Args:
        schedule: has the number of timesteps.
        shape: h, w, c of an example's latents.
        keys: [b], of the examples.
        noise_offset: standard deviation of a number that is added to a whole channel of an
            example, so that the model also learns to change the brightness of an image; 0.05 to
            0.1 is usual. No paper states it.

    Returns:
        timesteps [b] int32 and noise [b, h, w, c] float32
    """

    def of_example(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key, offset_key = jax.random.split(key, 3)
        offset = noise_offset * jax.random.normal(offset_key, shape[-1:])
        t = jax.random.randint(time_key, (), 0, schedule.num_train_timesteps)
        return t, jax.random.normal(noise_key, shape) + offset

    return jax.vmap(of_example)(keys)


def loss_at(
    denoiser: Callable[..., jax.Array],
    schedule: NoiseSchedule,
    latents: jax.Array,
    states: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    min_snr_gamma: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean squared error of the denoiser's output on noised latents, in float32.

    Source: DDPM (2006.11239) Eq. 14.

    Args:
        denoiser, schedule, latents, states: see `denoising_loss`.
        t: [b] int32, timesteps.
        noise: [b, h, w, c].
        min_snr_gamma: weights every example, of whichever stream, by its timestep
            (`NoiseSchedule.min_snr_weight`); None weights all the same.

    Returns:
        the loss [b], and metrics, each [b]: `error`, the loss without its weight, and `timestep`.
    """
    latents = latents.astype(jnp.float32)
    output = denoiser(schedule.add_noise(latents, noise, t), t, states)
    error = jnp.mean((output - schedule.target(latents, noise, t)) ** 2, axis=(1, 2, 3))
    weight = 1.0 if min_snr_gamma is None else schedule.min_snr_weight(t, min_snr_gamma)
    return weight * error, {"error": error, "timestep": t}


def unmix_loss(weights: jax.Array, apart: jax.Array) -> jax.Array:
    """The squared attention of tokens to the half of an image that another subject has.

    Source: SVDiff (2303.11305) section 3.3.

    Args:
        weights: [b, heads, n, t] of a cross-attention over a square grid, n positions row by row.
        apart: [b, t, 2], how much each token's mean over the left half counts, and over the right.

    Returns:
        [b] float32
    """
    side = math.isqrt(weights.shape[2])
    squares = jnp.square(weights).mean(axis=1)
    squares = squares.reshape(-1, side, side, weights.shape[-1])  # [b, h, w, t]
    left = squares[:, :, : side // 2].mean(axis=(1, 2))  # [b, t]
    right = squares[:, :, side - side // 2 :].mean(axis=(1, 2))
    return (left * apart[..., 0]).sum(axis=-1) + (right * apart[..., 1]).sum(axis=-1)


class Unmix:
    """A control of the U-Net's cross-attention that only looks: it averages its `unmix_loss`.

    What it sees is traced, so it serves one call of the denoiser, in which nothing is recomputed.
    """

    def __init__(self, apart: jax.Array):
        self._apart = apart
        self._seen: list[jax.Array] = []

    def __call__(self, weights: jax.Array, place: str) -> jax.Array:
        self._seen.append(unmix_loss(weights, self._apart))
        return weights

    def added(
        self, loss: jax.Array, metrics: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss [b] of that call with the mean added, which is also the metric `unmix`."""
        total = self._seen[0]
        for other in self._seen[1:]:
            total = total + other
        unmix = total / len(self._seen)
        return loss + unmix, metrics | {"unmix": unmix}
