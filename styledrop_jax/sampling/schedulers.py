"""Sampling by diffusion: DDIM, ancestral DDPM, DPM-Solver++ and Euler, with guidance, SDEdit and inpainting.

Each of these samplers is a linear recurrence in the latents x, the data x0 that the model predicts, and fresh noise,

    x ← keep x + data x0 + slope (x0 - previous x0) + noise ε,

so a sampler is a function (schedule, steps) → `Steps`, a table of numbers made once on the host, and one compiled loop,
`sample`, runs any of them.

Latents are variance preserving, x = alpha x0 + sigma ε with alpha² = ᾱ = 1 - sigma², and start as noise of unit
variance, whatever the sampler: samplers can be swapped without touching anything else. The reference's Euler works on
y = x / alpha instead, starts from its `init_noise_sigma` and scales what the model sees by `scale_model_input`, which
is alpha; with y = x / alpha put in, its step is DDIM's, and the model sees x itself.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

_LEAST_SIGNAL = (
    2.0**-24
)  # keeps log(alpha / sigma) finite where nothing of x0 is left; the reference's value
_KARRAS_RHO = 7.0


class Steps(NamedTuple):
    """A sampler as a table of [steps] rows, float32 but for `t`.

    Attributes:
        t: int32, the timestep the model is told, falling.
        of_x, of_output: x0 = of_x x + of_output output.
        keep, data, slope, noise: the step; see the module's recurrence.
        alpha, sigma: the level after the step at which inpainting holds what it keeps; 1 and 0 after the last.
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

    One loop, no host round trips; jit it with `predict` closed over traced weights. An image depends on its own key
    alone: the noise of step i is `normal(fold_in(key, i))`.

    Args:
        predict: (x [b, h, w, c], t, step) → the model's output [b, h, w, c], of the schedule's prediction type and
            already guided. t is the timestep and step counts from 0 to steps - 1, both int32 scalars.
        x: [b, h, w, c], noise of unit variance; with `start`, the data noised to that step's level.
        steps: static.
        sampler: a name in `SAMPLERS`, or a function such as `functools.partial(ddim, eta=0.5)`; static.
        keys: [b] PRNG keys, one for each image; only samplers with noise, and inpainting, use them.
        start: the first step to take (see `sdedit_start`); `steps` returns x. May be traced.
        known: [b, h, w, c], data to keep where the mask is 0: inpainting. After each step it is put back, noised to
            that step's level by one noise per image, `normal(fold_in(key, steps))`, and after the last as it is.
        mask: [b, h, w, 1], 1 where to redraw, 0 where to keep; given with `known`.

    Returns:
        float32 [b, h, w, c]

    Raises:
        UserError: the sampler is unknown, or the schedule does not hold so many steps.
        ValueError: one of known and mask without the other.
    """
    if (known is None) != (mask is None):
        raise ValueError("known and mask go together")
    table = _find(sampler)(schedule, steps)

    def draw(index: int | jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:]))(
            keys
        )

    known_noise = None if known is None else draw(steps)

    def body(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, previous = carry
        row = Steps(*(jnp.asarray(column)[step] for column in table))
        x0 = row.of_x * x + row.of_output * predict(x, row.t, step).astype(jnp.float32)
        x = row.keep * x + row.data * x0 + row.slope * (x0 - jnp.where(step == start, x0, previous))
        if table.noise.any():
            x = x + row.noise * draw(step)
        if known is not None:
            x = mask * x + (1 - mask) * (row.alpha * known + row.sigma * known_noise)
        return x, x0

    x = x.astype(jnp.float32)
    return jax.lax.fori_loop(start, steps, body, (x, x))[0]


def ddim(schedule: NoiseSchedule, steps: int, *, eta: float = 0.0) -> Steps:
    """DDIM (2010.02502 Eq. 12 and 16): deterministic at eta 0; the noise of ancestral sampling at eta 1.

    A step ends at the timestep where the next begins. The reference counts T // steps back instead, which is the same
    unless the spacing is uneven ("linspace", or a number of steps that does not divide T).

    Raises:
        UserError: eta is outside [0, 1], or the schedule does not hold so many steps.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: found {eta}, expected a number from 0 to 1")
    t = _spaced(schedule, steps)
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    return _table(schedule, t, schedule.alphas_cumprod[t], last=last, eta=eta)


def ddpm(schedule: NoiseSchedule, steps: int) -> Steps:
    """Ancestral sampling with the smaller variance (2006.11239 Eq. 6 and 7), which is DDIM at eta 1 down to ᾱ = 1.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps)
    return _table(schedule, t, schedule.alphas_cumprod[t], eta=1.0)


def euler(schedule: NoiseSchedule, steps: int) -> Steps:
    """Euler's method on the probability-flow equation in sigma / alpha (2206.00364 Algorithm 1 without its correction).

    It is DDIM at eta 0 down to ᾱ = 1. "linspace" timesteps are rounded; the reference interpolates between them.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps)
    return _table(schedule, t, np.maximum(schedule.alphas_cumprod[t], _LEAST_SIGNAL))


def dpm_solver(schedule: NoiseSchedule, steps: int, *, karras: bool = False) -> Steps:
    """DPM-Solver++ 2M, the midpoint form (2211.01095 Algorithm 2); the first and the last step are of order one.

    Args:
        karras: lay the noise levels out evenly in (sigma / alpha)^(1/7) (2206.00364 Eq. 5) from the schedule's most to
            its least, whatever its spacing. The model is told the nearest timestep.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _spaced(schedule, steps, dropped=0 if schedule.timestep_spacing == "trailing" else 1)
    signals = np.maximum(schedule.alphas_cumprod, _LEAST_SIGNAL).astype(np.float64)  # [T]
    signal = signals[t]
    if karras:
        levels = np.sqrt(1 / signals - 1)
        most, least = levels[-1] ** (1 / _KARRAS_RHO), levels[0] ** (1 / _KARRAS_RHO)
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
    """The step at which image-to-image begins (SDEdit 2108.01073), so that about `strength * steps` are taken.

    1 takes every step. 0 takes none and gives `steps`: there is nothing to noise, the result is the input.

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
        cond: [b, h, w, c], the model's output under the prompt. uncond: under none, or the negative one.
        scale: 1 is no guidance.
        rescale: share in [0, 1] by which each image's standard deviation is pulled back to that of `cond`, against
            over-exposure (2305.08891 section 3.4, Eq. 14 to 16).
    """
    cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
    guided = uncond + scale * (cond - uncond)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.std(x, axis=(1, 2, 3), keepdims=True)

    # the floor keeps the output of a model whose last layer is still zero from becoming 0 / 0
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

    `dropped` more are laid out, and left out at the low end.
    """
    if steps < 1:
        raise UserError(f"steps: found {steps}, expected at least 1")
    total, spacing, count = schedule.num_train_timesteps, schedule.timestep_spacing, steps + dropped
    if spacing == "leading":
        t = np.arange(count)[::-1] * (total // count) + schedule.steps_offset
    elif spacing == "trailing":
        t = np.arange(total, 0, -total / count).round().astype(int) - 1
    else:
        t = np.linspace(0, total - 1, count).round().astype(int)[::-1]
    t = t[:steps]  # a rounded stride can also give "trailing" one too many
    if t[0] >= total or (np.diff(t) >= 0).any():
        raise UserError(
            f"steps: found {steps}, expected fewer: {total} timesteps do not hold them, spaced {spacing!r}"
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
    """DDIM's steps (2010.02502 Eq. 12 and 16) at timesteps t [steps] with ᾱ = signal [steps], to ᾱ = last."""
    before = signal.astype(np.float64)
    after = np.append(before[1:], last)
    alpha, sigma = np.sqrt(before), np.sqrt(1 - before)
    noise = eta * np.sqrt((1 - after) * (1 - before / after)) / sigma
    keep = np.sqrt(np.maximum(1 - after - noise**2, 0)) / sigma
    data = np.sqrt(after) - alpha * keep
    held = np.append(after[:-1], 1.0)
    columns = (
        *schedule.x0_weights(before),
        *(keep, data, np.zeros(len(t)), noise),
        *(np.sqrt(held), np.sqrt(1 - held)),
    )
    return Steps(np.asarray(t, np.int32), *(np.asarray(column, np.float32) for column in columns))
