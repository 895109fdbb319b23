"""How samplers step: DDIM, ancestral DDPM, Euler and latent consistency models.

Each is a linear recurrence in the latents x, what the model says of them, and fresh noise, so that
it is a function (schedule, steps) → `Steps`, a table of numbers made once on the host.

Latents are variance preserving, x = alpha x0 + sigma ε with alpha² = ᾱ = 1 - sigma², and start as
noise of unit variance whatever the sampler, so one sampler can take the place of another without
any other change. The reference's Euler and Heun work on y = x / alpha instead: they start from
their `init_noise_sigma` and scale what the model sees by `scale_model_input`, which is alpha. With
y = x / alpha put in, Euler's step is DDIM's, and the model sees x itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from styledrop_jax.errors import UserError
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

# The reference's value, which keeps log(alpha / sigma) finite where nothing of x0 is left.
LEAST_SIGNAL = 2.0**-24
_CONSISTENCY_STEPS = 50  # among which latent consistency models were distilled
_CONSISTENCY_SCALE = 10  # of their timesteps
_CONSISTENCY_DATA = 0.5  # the deviation that they take the data to have


class Steps(NamedTuple):
    """A sampler as a table of [rows], one for each call of the model, float32 but for the integers.

    In a row m is what the model says, m₁ what it said in the row before, and m₂ before that; `last`
    is the c of the row before.

        m = of_x x + of_output output
        c = x, or where `corrects`: then last + fix · (m, m₁, m₂)
        x ← keep c + says · (m, m₁) + noise ε

    In the first row that is taken m₁ and m₂ are m, and nothing is corrected.

    Attributes:
        t: int32, the timestep the model is told, falling.
        step: int32, of which step the row is a part, from 0.
        of_x, of_output, keep, noise, then: numbers. corrects: bool.
        says: [rows, 2]. fix: [rows, 3].
        alpha, sigma: the noise level after the row, to which inpainting brings what it keeps; 1 and
            0 after the last.
    """

    t: np.ndarray
    step: np.ndarray
    of_x: np.ndarray
    of_output: np.ndarray
    keep: np.ndarray
    says: np.ndarray
    noise: np.ndarray
    corrects: np.ndarray
    then: np.ndarray
    fix: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


Sampler = Callable[[NoiseSchedule, int], Steps]


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
    t = spaced(schedule, steps)
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    return ddim_steps(schedule, t, schedule.alphas_cumprod[t], last=last, eta=eta)


def ddpm(schedule: NoiseSchedule, steps: int) -> Steps:
    """Ancestral sampling with the smaller variance (2006.11239 Eq. 6 and 7).

    It is DDIM at eta 1 down to ᾱ = 1.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = spaced(schedule, steps)
    return ddim_steps(schedule, t, schedule.alphas_cumprod[t], eta=1.0)


def euler(schedule: NoiseSchedule, steps: int) -> Steps:
    """Euler's method on the probability-flow equation in sigma / alpha.

    It is DDIM at eta 0 down to ᾱ = 1. "linspace" timesteps are rounded; the reference interpolates
    between them.

    Source: 2206.00364 Algorithm 1 without its correction.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = spaced(schedule, steps)
    return ddim_steps(schedule, t, np.maximum(schedule.alphas_cumprod[t], LEAST_SIGNAL))


def euler_ancestral(schedule: NoiseSchedule, steps: int) -> Steps:
    """Euler's method with as much noise in a step as keeps the level: DDIM at eta 1 down to ᾱ = 1,
    as `ddpm` is, also where a schedule begins with pure noise.

    "linspace" timesteps are rounded; the reference interpolates between them.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = spaced(schedule, steps)
    return ddim_steps(schedule, t, np.maximum(schedule.alphas_cumprod[t], LEAST_SIGNAL), eta=1.0)


def lcm(schedule: NoiseSchedule, steps: int) -> Steps:
    """Multistep sampling of latent consistency models: data, noised anew to the next level
    (2310.04378 Algorithm 3).

    Whatever the schedule's spacing, the steps are among the 50 at which such models are distilled.

    Raises:
        UserError: there are more steps than these.
    """
    if not 1 <= steps <= _CONSISTENCY_STEPS:
        raise UserError(f"steps: found {steps}, expected 1 to {_CONSISTENCY_STEPS} of lcm")
    stride = schedule.num_train_timesteps // _CONSISTENCY_STEPS
    origin = np.arange(_CONSISTENCY_STEPS, 0, -1) * stride - 1
    t = origin[np.linspace(0, len(origin), steps, endpoint=False).astype(int)]
    signal = schedule.alphas_cumprod[t].astype(np.float64)
    after = np.append(signal[1:], 1.0)
    time = t * _CONSISTENCY_SCALE
    whole = time**2 + _CONSISTENCY_DATA**2
    table = tabled(
        schedule,
        t,
        signal,
        after=after,
        keep=np.zeros(steps),
        says=np.stack([np.sqrt(after), np.zeros(steps)], axis=1),
        noise=np.sqrt(1 - after),
    )
    share = (time / np.sqrt(whole)).astype(np.float32)
    of_x = share * table.of_x + (_CONSISTENCY_DATA**2 / whole).astype(np.float32)
    return table._replace(of_x=of_x, of_output=share * table.of_output)


def spaced(schedule: NoiseSchedule, steps: int, *, dropped: int = 0) -> np.ndarray:
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


def ddim_steps(
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
    return tabled(
        schedule,
        t,
        before,
        after=np.append(after[:-1], 1.0),
        keep=keep,
        says=np.stack([data, np.zeros(len(t))], axis=1),
        noise=noise,
    )


def tabled(
    schedule: NoiseSchedule,
    t: np.ndarray,
    signal: np.ndarray,
    *,
    after: np.ndarray,
    noise_said: bool = False,
    **columns: Any,
) -> Steps:
    """The table of rows at ᾱ = `signal` that go to `after`, in its dtypes.

    Args:
        noise_said: whether m is the noise; otherwise it is x0.
        columns: of `Steps`; a step is one row, without noise or correction, unless they say other.
    """
    of_x, of_output = schedule.x0_weights(signal)
    if noise_said:
        alpha, sigma = np.sqrt(signal), np.sqrt(1 - signal)
        of_x, of_output = (1 - alpha * of_x) / sigma, -alpha * of_output / sigma
    rows = len(t)
    found = {
        "t": t,
        "step": np.arange(rows),
        "of_x": of_x,
        "of_output": of_output,
        "noise": np.zeros(rows),
        "corrects": np.zeros(rows, bool),
        "then": np.zeros(rows),
        "fix": np.zeros((rows, 3)),
        "alpha": np.sqrt(after),
        "sigma": np.sqrt(1 - after),
        **columns,
    }
    for name, column in found.items():
        exact = {"t": np.int32, "step": np.int32, "corrects": bool}.get(name, np.float32)
        found[name] = np.asarray(column).astype(exact)
    return Steps(**found)
