"""Samplers of the second order: DPM-Solver++, DEIS, UniPC and Heun."""

import numpy as np

from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.sampling.solvers import LEAST_SIGNAL, Steps, ddim_steps, spaced, tabled

_KARRAS_RHO = 7.0
_FEW = 15  # steps, of which DEIS takes the last with order one


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
    t = _multistep(schedule, steps)
    signals = np.maximum(schedule.alphas_cumprod, LEAST_SIGNAL).astype(np.float64)  # [T]
    signal = signals[t]
    if karras:
        levels = np.sqrt(1 / signals - 1)
        most = levels[-1] ** (1 / _KARRAS_RHO)
        least = levels[0] ** (1 / _KARRAS_RHO)
        level = np.linspace(most, least, steps) ** _KARRAS_RHO
        t = np.interp(np.log(level), np.log(levels), np.arange(len(levels))).round()
        signal = 1 / (1 + level**2)
    table = ddim_steps(schedule, t, signal)
    h = np.diff(np.log(signal / (1 - signal)) / 2)  # growth of log(alpha / sigma), [steps - 1]
    says = table.says.copy()
    slope = says[1:-1, 0] * h[1:] / (2 * h[:-1])
    says[1:-1] += np.stack([slope, -slope], axis=1)
    return table._replace(says=says)


def deis(schedule: NoiseSchedule, steps: int) -> Steps:
    """DEIS of order 2, its integral over log(sigma / alpha) (2204.13902, the ρAB form).

    The first step is of order one, and the last too if there are fewer than 15. It ends at timestep
    0's level, as in the reference.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _multistep(schedule, steps)
    signals = np.maximum(schedule.alphas_cumprod, LEAST_SIGNAL).astype(np.float64)
    signal = np.append(signals[t], signals[0])
    rho = np.sqrt(1 / signal - 1)  # [steps + 1]
    alpha = np.sqrt(signal)
    says = np.zeros((steps, 2))
    for i in range(steps):
        says[i, 0] = rho[i + 1] - rho[i]
        if i and not (i == steps - 1 and steps < _FEW):
            says[i] = _log_rho(rho[i - 1], rho[i], rho[i + 1])
    return tabled(
        schedule,
        t,
        signal[:-1],
        after=np.append(signal[1:-1], 1.0),
        noise_said=True,
        keep=alpha[1:] / alpha[:-1],
        says=alpha[1:, None] * says,
    )


def _log_rho(before: float, now: float, after: float) -> tuple[float, float]:
    """The integral from `now` to `after` of a line in log ρ, by its values at `now` and
    `before`."""

    def integral(of: float, other: float) -> float:
        ends = [x * (np.log(x / other) - 1) for x in (after, now)]
        return (ends[0] - ends[1]) / np.log(of / other)

    return integral(now, before), integral(before, now)


def unipc(schedule: NoiseSchedule, steps: int) -> Steps:
    """UniPC of order 2 in B₂(h): a predictor of x0, and a corrector that needs no further call
    (2302.04867 Algorithms 5 and 6).

    The first and the last step are of order one.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = _multistep(schedule, steps)
    signal = np.maximum(schedule.alphas_cumprod[t], LEAST_SIGNAL).astype(np.float64)
    alpha, sigma = np.sqrt(signal), np.sqrt(1 - signal)
    level = np.log(alpha / sigma)
    says = np.zeros((steps, 2))
    keep = np.zeros(steps)
    then = np.zeros(steps)
    fix = np.zeros((steps, 3))
    says[-1, 0] = 1
    for i in range(steps - 1):
        growth = np.expm1(level[i] - level[i + 1])
        keep[i] = sigma[i + 1] / sigma[i]
        says[i, 0] = -alpha[i + 1] * growth
        if i:
            slope = (
                -alpha[i + 1] * growth / 2 * (level[i + 1] - level[i]) / (level[i - 1] - level[i])
            )
            says[i] += -slope, slope
    for i in range(1, steps):
        growth = np.expm1(level[i - 1] - level[i])
        then[i] = sigma[i] / sigma[i - 1]
        earlier, now, ratio = 0.0, 0.5, 1.0
        if i > 1:
            ratio = (level[i - 2] - level[i - 1]) / (level[i] - level[i - 1])
            earlier, now = _corrector(level[i - 1] - level[i], ratio)
        parts = np.array([now, 1 - now - earlier / ratio, earlier / ratio])
        fix[i] = -alpha[i] * growth * parts
    return tabled(
        schedule,
        t,
        signal,
        after=np.append(signal[1:], 1.0),
        keep=keep,
        says=says,
        corrects=np.arange(steps) > 0,
        then=then,
        fix=fix,
    )


def _corrector(h: float, ratio: float) -> tuple[float, float]:
    """UniC's weights of order 2, of the difference before and of the one now (2302.04867 Eq. 9)."""
    growth = np.expm1(h)
    first = growth / h - 1
    second = 2 * (first / h - 1 / 2)
    a, b = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], np.array([first, second]) / growth)
    return a, b


def heun(schedule: NoiseSchedule, steps: int) -> Steps:
    """Heun's method on the probability-flow equation in sigma / alpha: two calls of the model a
    step, but one in the last (2206.00364 Algorithm 1 without noise).

    "linspace" timesteps are rounded; the reference interpolates between them.

    Raises:
        UserError: the schedule does not hold so many steps.
    """
    t = spaced(schedule, steps)
    signal = np.maximum(schedule.alphas_cumprod[t], LEAST_SIGNAL).astype(np.float64)
    rho = np.append(np.sqrt(1 / signal - 1), 0.0)
    alpha = np.append(np.sqrt(signal), 1.0)
    step = np.repeat(np.arange(steps), 2)[:-1]
    second = np.arange(len(step)) % 2
    told = step + second  # the row's place among the timesteps
    growth = rho[step + 1] - rho[step]
    says = np.stack([growth, np.zeros(len(step))], axis=1)
    says[second == 1] = growth[second == 1, None] / 2
    return tabled(
        schedule,
        t[told],
        signal[told],
        after=np.append(signal, 1.0)[step + 1],
        noise_said=True,
        step=step,
        keep=alpha[step + 1] / alpha[step],
        says=alpha[step + 1, None] * says,
        corrects=second == 1,  # which goes back to where the step began
        then=second,
    )


def _multistep(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """int [steps], the timesteps of solvers that need no call at the lowest."""
    return spaced(schedule, steps, dropped=0 if schedule.timestep_spacing == "trailing" else 1)
