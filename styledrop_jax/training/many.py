"""Many trainings of one program at once, beside one frozen model.

Each has its own folder of checkpoints, which is the one that it would have alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Container, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from styledrop_jax import hosts, log
from styledrop_jax.errors import UserError
from styledrop_jax.training import loop, mesh, optim
from styledrop_jax.training.checkpoint import Checkpoints
from styledrop_jax.training.step import Over, make_train_step, shared_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One of the trainings.

    Attributes:
        graphdef, params, frozen: see `loop.begin`; what is the same array in all is shared.
        batches, folder, logger, after: see `loop.fit`.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    batches: Callable[[int, int], Any]
    folder: Path
    logger: log.Logger
    after: Callable[..., dict]


def program(member: Member) -> Hashable:
    """What is equal of those that can train together: their program, and the step to go on from."""
    arrays = (member.params, member.frozen)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arrays)]
    with Checkpoints(member.folder) as checkpoints:
        return member.graphdef, jax.tree.structure(arrays), tuple(shapes), checkpoints.latest()


def fit(
    members: Sequence[Member],
    loss: loop.Losses,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    key: jax.Array,
    stage: str,
    accumulate: int,
    steps_per_call: int,
    checkpoint_every: int,
    meta: dict[str, Any],
    after_at: Container[int],
    devices: Mesh,
    shared: bool,
) -> list[Any]:
    """Trains all of them, each device its own; the arguments are those of `loop.fit`.

    Where their number does not divide, the last of them is trained more than once.

    Returns:
        of each what `loop.fit` returns, or the `UserError` of one that went wrong, which does not
        stop the others.

    Raises:
        UserError: a checkpoint cannot be read or written.
        Stopped: see `loop.fit`.
    """
    errors: dict[int, UserError] = {}
    filled = [*members, *[members[-1]] * (-len(members) % devices.size)]
    over, frozen = _shared([member.frozen for member in filled], devices)
    make = shared_train_step if shared else make_train_step
    step = make(loss, optimizer, accumulate=accumulate, over=over)
    graphdef = members[0].graphdef

    def send(part: loop.Dispatch) -> dict[str, jax.Array]:
        nonlocal state
        each = [member.batches(part.start, part.count) for member in filled]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *each)
        batch = loop.padded(batch, steps_per_call - part.count)
        batch = mesh.shard(batch, devices)
        with mesh.used(devices):
            state, metrics = step(graphdef, state, frozen, batch, part.count, key)
        return metrics

    def report(part: loop.Dispatch, traced: dict[str, jax.Array]) -> None:
        numbers = jax.device_get(traced)
        states = _apart(state, len(members)) if part.saves else [state] * len(members)
        for i, member in enumerate(members):
            own = {name: values[i] for name, values in numbers.items()}
            if i in errors:
                continue
            try:
                metrics = loop.checked(own, states[i], part, stage, folders[i])
                member.logger.scalars(part.end, metrics)
            except UserError as error:
                errors[i] = error
        advance(part.count, f"mean loss {np.mean(numbers['loss']):.3f}")

    def pause(part: loop.Dispatch) -> None:
        for i, own in enumerate(_apart(state, len(members))):
            if i in errors:
                continue
            if part.end in after_at:
                members[i].after(part.end, own, graphdef, frozen)
            if part.saves:
                folders[i].save(part.end, own, meta)

    with hosts.listening(), contextlib.ExitStack() as stack:
        folders = [stack.enter_context(Checkpoints(member.folder)) for member in members]
        start, states = _resumed(members, folders, optimizer, stage, meta)
        states += [states[-1]] * (len(filled) - len(members))
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        state = mesh.shard(state, devices, axis=0)
        parts = loop.dispatches(start, steps, steps_per_call, checkpoint_every)
        looks = after_at.__contains__
        where = f" on {devices.size} devices" if devices.size > 1 else ""
        label = f"{stage}, {len(members)} at once{where}"
        with log.progress(label, steps, start=start) as advance:
            loop.carry_out(parts, steps, looks, send=send, report=report, pause=pause)
    found: list[Any] = []
    for i, own in enumerate(_apart(state, len(members))):
        found.append(errors.get(i) or optim.averaged(own["params"], own["opt"]))
    return found


def _resumed(
    members: Sequence[Member],
    folders: Sequence[Checkpoints],
    optimizer: optax.GradientTransformation,
    stage: str,
    meta: dict[str, Any],
) -> tuple[int, list[Any]]:
    """The step that all of them go on from, and their states."""
    start = 0
    states = []
    for member, checkpoints in zip(members, folders, strict=True):
        fresh = loop.init_state(member.params, optimizer)
        start, own = loop.resume(checkpoints, fresh, meta)
        member.logger.start(stage, step=start)
        states.append(own)
    return start, states


def _shared(trees: Sequence[Any], devices: Mesh) -> tuple[Over, Any]:
    """Which of the arrays of frozen trees are their own, and the trees as one: what is the same
    array in all is there once, on every device, all else is stacked, each device's own on it.
    """
    leaves = [jax.tree.leaves(tree) for tree in trees]
    structure = jax.tree.structure(trees[0])
    axes = []
    arrays = []
    for each in zip(*leaves, strict=True):
        same = all(leaf is each[0] for leaf in each)
        axes.append(None if same else 0)
        own = mesh.place(each[0], devices) if same else mesh.shard(jnp.stack(each), devices, axis=0)
        arrays.append(own)
    return Over(structure, tuple(axes)), structure.unflatten(arrays)


def _apart(state: Any, count: int) -> list[Any]:
    """The state of each."""
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(count)]
