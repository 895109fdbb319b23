"""Sampling by diffusion with any of `SAMPLERS`; SDEdit and inpainting.

One compiled loop, `sample`, runs them all.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.sampling.higher_order import deis, dpm_solver, heun, unipc
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.sampling.solvers import Sampler, ddim, ddpm, euler, euler_ancestral, lcm


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
    """Turns noise into data in `steps - start` steps: calls of the model, of Heun's about two each.

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

    first = (table.step < start).sum()  # the row in which that step begins

    def body(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, last, *said = carry
        row = jax.tree.map(lambda column: jnp.asarray(column)[i], table)
        says = row.of_x * x + row.of_output * predict(x, row.t, row.step).astype(jnp.float32)
        m1, m2 = (jnp.where(i == first, says, before) for before in said)
        if table.corrects.any():
            fixed = row.then * last + row.fix[0] * says + row.fix[1] * m1 + row.fix[2] * m2
            x = jnp.where(row.corrects & (i != first), fixed, x)
        last = x
        x = row.keep * x + row.says[0] * says + row.says[1] * m1
        if table.noise.any():
            x = x + row.noise * _noise(keys, row.step, x.shape)
        if kept is not None:
            data, redone, noise = kept
            x = redone * x + (1 - redone) * (row.alpha * data + row.sigma * noise)
        return x, last, says, m1

    x = x.astype(jnp.float32)
    return jax.lax.fori_loop(first, len(table.t), body, (x, x, x, x))[0]


def _noise(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise of `shape` [b, …], each image's from its own key and `index`."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape[1:]))(keys)


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_solver": dpm_solver,
    "dpm_solver_karras": functools.partial(dpm_solver, karras=True),
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "deis": deis,
    "unipc": unipc,
    "lcm": lcm,
}


OF_CLASSES = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
}
"""The reference's classes that sample as one of `SAMPLERS` does."""


def timesteps(schedule: NoiseSchedule, steps: int, sampler: str | Sampler) -> np.ndarray:
    """The timestep of each step, int32 [steps], falling.

    SDEdit starts from `schedule.add_noise(x0, noise, timesteps(schedule, steps, sampler)[start])`.

    Raises:
        UserError: the sampler is unknown, or the schedule does not hold so many steps.
    """
    table = _find(sampler)(schedule, steps)
    _, rows = np.unique(table.step, return_index=True)
    return table.t[rows]


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
