"""Sampling by diffusion: DDIM, ancestral DDPM, DPM-Solver++ and Euler; SDEdit and inpainting.

Each of these samplers is a linear recurrence in the latents x, the data x0 that the model predicts,
and fresh noise,

    x ← keep x + data x0 + slope (x0 - previous x0) + noise ε,

so a sampler is a function (schedule, steps) → `Steps`, a table of numbers made once on the host.
One compiled loop, `sample`, runs any of them.

Latents are variance preserving, x = alpha x0 + sigma ε with alpha² = ᾱ = 1 - sigma², and start as
noise of unit variance whatever the sampler, so one sampler can take the place of another without
any other change. The reference's Euler works on y = x / alpha instead: it starts from its
`init_noise_sigma` and scales what the model sees by `scale_model_input`, which is alpha. With
y = x / alpha put in, its step is DDIM's, and the model sees x itself.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

# The reference's value, which keeps log(alpha / sigma) finite where nothing of x0 is left.
_LEAST_SIGNAL = 2.0**-24
_KARRAS_RHO = 7.0


class Steps(NamedTuple):
    """A sampler as a table of [steps] rows, float32 but for `t`.

    Attributes:
        t: int32, the timestep the model is told, falling.
        of_x, of_output: x0 = of_x x + of_output output.
        keep, data, slope, noise: the step; see the module's recurrence.
        alpha, sigma: the noise level after the step, to which inpainting brings what it keeps; 1
            and 0 after the last.
    """

    t: np.ndarray
    of_x: np.ndarray
    of_output: np.ndarray
    keep: np.ndarray
    data: np.ndarray
    slope: np.ndarray
    noise: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


Sampler = Callable[[NoiseSchedule, int], Steps]


def sample(
    predict: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    schedule: NoiseSchedule,
    *,
    steps: int,
    sampler: str | Sampler,
    keys: jax.Array,
    start: int | jax.Array = 0,
    known: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Turns noise into data in `steps - start` calls of the model.

    It is one loop without host round trips; jit it with `predict` closed over traced weights. An
    image depends on its own key alone: the noise of step i is `normal(fold_in(key, i))`.

    Args:
        predict: (x [b, h, w, c], t, step) → the model's output [b, h, w, c], of the schedule's
            prediction type and already guided. t is the timestep and step counts from 0 to
            steps - 1, both int32 scalars.
        x: [b, h, w, c], noise of unit variance; with `start`, data noised to that step's level.
        steps: static.
        sampler: a name in `SAMPLERS`, or a function like `partial(ddim, eta=0.5)`; static.
        keys: [b] PRNG keys, one for each image, for samplers with noise and for inpainting.
        start: the first step to take (see `sdedit_start`); `steps` returns x. May be traced.
        known: [b, h, w, c], data to keep where the mask is 0: inpainting. After each step it is put
            back, noised to that step's level by one noise for each image,
            `normal(fold_in(key, steps))`, and after the last step as it is.
        mask: [b, h, w, 1], 1 where to sample anew, 0 where to keep; given with `known`.

    Returns:
        float32 [b, h, w, c]

    Raises:
        UserError: the sampler is unknown, or the schedule does not hold so many steps.
        ValueError: one of known and mask without the other.
    """
    if (known is None) != (mask is None):
        raise ValueError("known and mask go together")
    table = _find(sampler)(schedule, steps)
    kept = None
    if known is not None and mask is not None:
        kept = known, mask, _noise(keys, steps, x.shape)

    def body(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, previous = carry
        row = jax.tree.map(lambda column: jnp.asarray(column)[step], table)
        x0 = row.of_x * x + row.of_output * predict(x, row.t, step).astype(jnp.float32)
        x = row.keep * x + row.data * x0 + row.slope * (x0 - jnp.where(step == start, x0, previous))
        if table.noise.any():
            x = x + row.noise * _noise(keys, step, x.shape)
        if kept is not None:
            data, redone, noise = kept
            x = redone * x + (1 - redone) * (row.alpha * data + row.sigma * noise)
        return x, x0

    x = x.astype(jnp.float32)
    return jax.lax.fori_loop(start, steps, body, (x, x))[0]


def _noise(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise of `shape` [b, …], each image's from its own key and `index`."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape[1:]))(keys)


def ddim(schedule: NoiseSchedule, steps: int, *, eta: float = 0.0) -> Steps:
    """DDIM (2010.02502 Eq. 12 and 16).

    At eta 0 it is deterministic, at eta 1 it has the noise of ancestral sampling. A step ends at
    the timestep where the next begins. The reference counts T // steps back instead, which is the
    same unless the spacing is uneven ("linspace", or a number of steps that does not divide T).

    Raises:
        UserError: eta is outside [0, 1], or the schedule does not hold so many steps.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: found {eta}, expected a number from 0 to 1")
    t = _spaced(schedule, steps)
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    return _table(schedule, t, schedule.alphas_cumprod[t], last=last, eta=eta)


def ddpm(schedule: NoiseSchedule, steps: int) -> Steps:
    """Ancestral sampling with the smaller variance (2006.11239 Eq. 6 and 7).

    It is DDIM at eta 1 down to ᾱ = 1.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps)
    return _table(schedule, t, schedule.alphas_cumprod[t], eta=1.0)


def euler(schedule: NoiseSchedule, steps: int) -> Steps:
    """Euler's method on the probability-flow equation in sigma / alpha.

    It is DDIM at eta 0 down to ᾱ = 1. "linspace" timesteps are rounded; the reference interpolates
    between them.

    Source: 2206.00364 Algorithm 1 without its correction.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps)
    return _table(schedule, t, np.maximum(schedule.alphas_cumprod[t], _LEAST_SIGNAL))


def dpm_solver(schedule: NoiseSchedule, steps: int, *, karras: bool = False) -> Steps:
    """DPM-Solver++ 2M, the midpoint form (2211.01095 Algorithm 2).

    The first and the last step are of order one.

    Args:
        karras: lay the noise levels out evenly in (sigma / alpha)^(1/7) (2206.00364 Eq. 5) from the
            schedule's most to its least, whatever its spacing. The model is told the nearest
            timestep.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps, dropped=0 if schedule.timestep_spacing == "trailing" else 1)
    signals = np.maximum(schedule.alphas_cumprod, _LEAST_SIGNAL).astype(np.float64)  # [T]
    signal = signals[t]
    if karras:
        levels = np.sqrt(1 / signals - 1)
        most = levels[-1] ** (1 / _KARRAS_RHO)
        least = levels[0] ** (1 / _KARRAS_RHO)
        level = np.linspace(most, least, steps) ** _KARRAS_RHO
        t = np.interp(np.log(level), np.log(levels), np.arange(len(levels))).round()
        signal = 1 / (1 + level**2)
    table = _table(schedule, t, signal)
    h = np.diff(np.log(signal / (1 - signal)) / 2)  # growth of log(alpha / sigma), [steps - 1]
    slope = np.zeros_like(table.data)
    slope[1:-1] = table.data[1:-1] * h[1:] / (2 * h[:-1])
    return table._replace(slope=slope)


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_solver": dpm_solver,
    "dpm_solver_karras": functools.partial(dpm_solver, karras=True),
    "euler": euler,
}


def timesteps(schedule: NoiseSchedule, steps: int, sampler: str | Sampler) -> np.ndarray:
    """The timestep of each step, int32 [steps], falling.

    SDEdit starts from `schedule.add_noise(x0, noise, timesteps(schedule, steps, sampler)[start])`.

    Raises:
        UserError: the sampler is unknown, or the schedule does not hold so many steps.
    """
    return _find(sampler)(schedule, steps).t


def sdedit_start(steps: int, strength: float) -> int:
    """The step at which image-to-image begins, so that about `strength * steps` are taken.

    Strength 1 takes every step. Strength 0 takes none and gives `steps`: there is nothing to noise,
    and the result is the input.

    Source: SDEdit (2108.01073).

    Raises:
        UserError: strength is outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength: found {strength}, expected a number from 0 to 1")
    return steps - int(strength * steps + 1e-6)  # 0.29 * 100 is 28.999999999999996


def guidance(
    cond: jax.Array,
    uncond: jax.Array,
    scale: float | jax.Array,
    *,
    rescale: float | jax.Array = 0.0,
) -> jax.Array:
    """Classifier-free guidance, uncond + scale (cond - uncond), in float32 (2207.12598 Eq. 6).

    Args:
        cond: [b, h, w, c], the model's output under the prompt.
        uncond: [b, h, w, c], its output under no prompt, or the negative one.
        scale: 1 is no guidance.
        rescale: share in [0, 1] by which each image's standard deviation is pulled back to that of
            `cond`, against over-exposure (2305.08891 section 3.4, Eq. 14 to 16).
    """
    cond = cond.astype(jnp.float32)
    uncond = uncond.astype(jnp.float32)
    guided = uncond + scale * (cond - uncond)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.std(x, axis=(1, 2, 3), keepdims=True)

    # The floor keeps the output of a model whose last layer is still zero from becoming 0 / 0.
    ratio = spread(cond) / jnp.maximum(spread(guided), jnp.finfo(jnp.float32).tiny)
    return guided * (1 + rescale * (ratio - 1))


def _find(sampler: str | Sampler) -> Sampler:
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        expected = f"one of {', '.join(SAMPLERS)}{did_you_mean(sampler, SAMPLERS)}"
        raise UserError(f"sampler: found {sampler!r}, expected {expected}")
    return SAMPLERS[sampler]


def _spaced(schedule: NoiseSchedule, steps: int, *, dropped: int = 0) -> np.ndarray:
    """int [steps], falling timesteps by the schedule's spacing (2305.08891 Table 2).

    The spacing is that of `steps + dropped` timesteps, of which the lowest are then dropped.
    """
    if steps < 1:
        raise UserError(f"steps: found {steps}, expected at least 1")
    total = schedule.num_train_timesteps
    spacing = schedule.timestep_spacing
    count = steps + dropped
    if spacing == "leading":
        t = np.arange(count)[::-1] * (total // count) + schedule.steps_offset
    elif spacing == "trailing":
        t = np.arange(total, 0, -total / count).round().astype(int) - 1
    else:
        t = np.linspace(0, total - 1, count).round().astype(int)[::-1]
    t = t[:steps]  # a rounded stride can also give "trailing" one too many
    if t[0] >= total or (np.diff(t) >= 0).any():
        raise UserError(
            f"steps: found {steps}, expected fewer: {total} timesteps do not hold them, "
            f"spaced {spacing!r}"
        )
    return t


def _table(
    schedule: NoiseSchedule,
    t: np.ndarray,
    signal: np.ndarray,
    *,
    last: float = 1.0,
    eta: float = 0.0,
) -> Steps:
    """DDIM's steps (2010.02502 Eq. 12 and 16).

    Args:
        t: [steps] timesteps.
        signal: [steps], ᾱ at each of them.
        last: ᾱ after the last step.
        eta: see `ddim`.
    """
    before = signal.astype(np.float64)
    after = np.append(before[1:], last)
    alpha = np.sqrt(before)
    sigma = np.sqrt(1 - before)
    noise = eta * np.sqrt((1 - after) * (1 - before / after)) / sigma
    keep = np.sqrt(np.maximum(1 - after - noise**2, 0)) / sigma
    data = np.sqrt(after) - alpha * keep
    of_x, of_output = schedule.x0_weights(before)
    held = np.append(after[:-1], 1.0)
    return Steps(
        t=t.astype(np.int32),
        of_x=of_x.astype(np.float32),
        of_output=of_output.astype(np.float32),
        keep=keep.astype(np.float32),
        data=data.astype(np.float32),
        slope=np.zeros(len(t), np.float32),
        noise=noise.astype(np.float32),
        alpha=np.sqrt(held).astype(np.float32),
        sigma=np.sqrt(1 - held).astype(np.float32),
    )
