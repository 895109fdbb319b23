"""The program that samples latents of a Stable Diffusion."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from styledrop_jax.pipelines import inpainting
from styledrop_jax.pipelines.base import IN_ARRAYS, Group
from styledrop_jax.pipelines.stable_diffusion_text import added_of
from styledrop_jax.sampling import schedulers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.training import mesh

StepControl = Callable[[jax.Array, str, jax.Array, jax.Array], jax.Array]
"""Edits the cross-attention while images are sampled: (weights, place, step, branch) → the weights
to use instead.

`weights` and `place` are those of `unet.UNet.__call__`; `step` counts from 0, `branch` over all
branches of all groups, both traced int32 scalars. A `jax.tree_util.Partial` may hold arrays, which
can change without compiling anew.
"""


class Program(NamedTuple):
    """What a program is compiled for. `shape` is h, w, c of the latents, `factor` the pixels of one
    along a side.
    """

    groups: tuple[tuple[nnx.GraphDef, bool], ...]
    schedule: NoiseSchedule
    sampler: str | schedulers.Sampler
    steps: int
    shape: tuple[int, ...]
    factor: int


class Inputs(NamedTuple):
    """What may be given to a program or not; `start` is the first step that is taken of
    image-to-image."""

    latents: jax.Array | None
    start: int | None
    known: jax.Array | None
    mask: jax.Array | None
    seen: jax.Array | None
    control: StepControl | None


def check_steps(groups: Sequence[Group], steps: int) -> None:
    for group in groups:
        if len(group.weights) != steps:
            raise ValueError(f"weights of {len(group.weights)} steps, expected {steps}")


def inputs_of(
    steps: int,
    latents: np.ndarray | None,
    strength: float | None,
    known: np.ndarray | None,
    mask: np.ndarray | None,
    seen: np.ndarray | None,
    control: StepControl | None,
) -> Inputs:
    if strength is not None and latents is None:
        raise ValueError("strength needs latents")
    if control is not None and not isinstance(control, Partial):
        # Traced, for its arrays; a second Partial would hide those of a first.
        control = Partial(control)
    return Inputs(
        latents=None if latents is None else jnp.asarray(latents),
        start=None if strength is None else schedulers.sdedit_start(steps, strength),
        known=None if known is None else jnp.asarray(known),
        mask=None if mask is None else jnp.asarray(mask, jnp.float32),
        seen=None if seen is None else jnp.asarray(seen),
        control=control,
    )


@functools.partial(jax.jit, static_argnums=0)
def sample_latents(plan, groups, keys, rescale, inputs):
    """One program, of which each device takes its own images."""
    of_own = functools.partial(_sample, plan)
    axes = tuple([IN_ARRAYS] * len(groups)), 0, None, _axes_of(inputs)
    return mesh.apart(of_own, axes)(groups, keys, rescale, inputs)


def _axes_of(inputs: Inputs) -> Inputs:
    """Where the images of each are; what is seen may be of one for all."""
    own = inputs.seen is not None and len(inputs.seen) > 1
    seen = 0 if own else None
    return inputs._replace(latents=0, start=None, known=0, mask=0, seen=seen, control=None)


def _sample(plan, groups, keys, rescale, inputs):
    """The loop over steps, in it one batched forward for each group, then the weighted sum of
    outputs."""
    first_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    weights = jnp.concatenate([weights for *_, weights in groups], axis=1)  # [steps, k]
    ends = np.cumsum([group_weights.shape[1] for *_, group_weights in groups])
    branches = jnp.split(jnp.arange(weights.shape[1]), ends[:-1])

    def forward(graphdef, frozen, x, t, step, state, text, branch):
        denoiser = inpainting.told(nnx.merge(graphdef, state, frozen), inputs.seen)
        edit = None
        if inputs.control is not None:
            edit = lambda maps, place: inputs.control(maps, place, step, branch)  # noqa: E731
        added = added_of(text, x.shape, plan.factor)
        times = jnp.broadcast_to(t, len(x))
        return denoiser(x, times, text.states, added=added, control=edit)

    def predict(x, t, step):
        outputs = []
        for (graphdef, shared), (states, frozen, text, _), numbers in zip(
            plan.groups, groups, branches, strict=True
        ):
            each = jax.vmap(
                functools.partial(forward, graphdef, frozen, x, t, step),
                in_axes=(None if shared else 0, 0, 0),
            )
            outputs.append(each(states, text, numbers))
        outputs = jnp.concatenate(outputs)  # [k, b, h, w, c]
        # Fewer bits, which accelerators would take, are seen at a large guidance scale.
        guided = jnp.einsum(
            "k,kbhwc->bhwc", weights[step], outputs, precision=jax.lax.Precision.HIGHEST
        )
        # At scale 0 it only rescales.
        return schedulers.guidance(outputs[0], guided, 0.0, rescale=rescale)

    return schedulers.sample(
        predict,
        _first(plan, first_keys, inputs),
        plan.schedule,
        steps=plan.steps,
        sampler=plan.sampler,
        keys=step_keys,
        start=0 if inputs.start is None else inputs.start,
        known=inputs.known,
        mask=inputs.mask,
    )


def _first(plan: Program, keys: jax.Array, inputs: Inputs) -> jax.Array:
    """What the first step is taken from: noise, the given latents, or those noised to the level of
    `start`."""
    if inputs.latents is not None and inputs.start is None:
        return inputs.latents
    noise = jax.vmap(lambda key: jax.random.normal(key, plan.shape))(keys)
    if inputs.latents is None or inputs.start is None:
        return noise
    times = jnp.asarray(schedulers.timesteps(plan.schedule, plan.steps, plan.sampler))
    level = times[jnp.minimum(inputs.start, plan.steps - 1)]
    noised = plan.schedule.add_noise(inputs.latents, noise, level)
    return jnp.where(inputs.start < plan.steps, noised, inputs.latents)
