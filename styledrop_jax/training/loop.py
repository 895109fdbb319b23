"""The training loop, which knows nothing of methods or models.

One function computes a step, many steps are dispatched together, and checkpoints let a run that
died go on with the same bits.
"""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from styledrop_jax import hosts, log, tree
from styledrop_jax.errors import UserError, shown
from styledrop_jax.training import mesh, optim
from styledrop_jax.training.checkpoint import Checkpoints
from styledrop_jax.training.step import Losses, make_train_step, shared_train_step


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """The steps [start, start + count), which run in one call, and whether they are then saved, and
    the run stops.
    """

    start: int
    count: int
    saves: bool
    stops: bool = False

    @property
    def end(self) -> int:
        return self.start + self.count


def split(
    model: nnx.Module, trainable: nnx.filterlib.Filter
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph, the trainable state and all the rest, both as pure trees of arrays."""
    graphdef, params, frozen = nnx.split(model, trainable, ...)
    return graphdef, nnx.as_pure(params), nnx.as_pure(frozen)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """{"params", "opt", "step"}: everything that a step changes.

    The parameters are copied, because a step donates them.
    """
    params = jax.tree.map(jnp.copy, params)
    return {"params": params, "opt": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def placed(
    params: Any, optimizer: optax.GradientTransformation, devices: Mesh
) -> tuple[dict[str, Any], Any]:
    """The state to begin with and how it is cut over several devices, which no device ever holds
    whole.
    """
    if devices.size == 1:
        return init_state(params, optimizer), None
    params = mesh.place(params, devices)
    begin = functools.partial(init_state, optimizer=optimizer)
    shardings = mesh.shardings(jax.eval_shape(begin, params), devices)
    return jax.jit(begin, out_shardings=shardings)(params), shardings


def fit(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    loss: Losses,
    optimizer: optax.GradientTransformation,
    batches: Callable[[int, int], Any],
    *,
    steps: int,
    key: jax.Array,
    folder: Path,
    logger: log.Logger,
    stage: str,
    accumulate: int = 1,
    steps_per_call: int = 1,
    checkpoint_every: int = 0,
    meta: dict[str, Any] | None = None,
    after: Callable[[int, dict, nnx.GraphDef, nnx.State], dict] | None = None,
    after_at: Container[int] | None = None,
    start_from: Mapping[Any, Any] | None = None,
    devices: Mesh | None = None,
    shared: bool = False,
) -> Any:
    """Trains until `steps` are done, from the last checkpoint in `folder` if there is one.

    The devices need not wait for the host: while they are at one dispatch, the batch of the next is
    made and sent, the metrics of the one before are looked at, and a checkpoint is written.

    Args:
        model, trainable: a module that already carries what is trained, and the filter of that.
        loss, optimizer: see `Losses`; an optax transformation.
        batches: `batches(start, count)` → those of steps [start, start + count), stacked.
        steps, key: how many in all; the root key of their randomness.
        folder, meta: where the checkpoints go; what each keeps, and is compared on resume.
        logger, stage: what takes the metrics; the name in it, on the console and in errors.
        accumulate: parts that a step's batch is computed in; see `make_train_step`.
        steps_per_call: steps in a dispatch, which is logged as a whole; see `dispatches`.
        checkpoint_every: steps between checkpoints; 0: only the last.
        after: `after(step, state, graphdef, frozen) → state`, run on the host after a dispatch,
            once its loss is found finite.
        after_at: ends of dispatches after which it is run; None is all.
        start_from: parameters to begin from in place of the module's, if there is no checkpoint.
        devices: that share the work; None is all.
        shared: see `shared_train_step`; of one device.

    Returns:
        the trained parameters, a pure tree: the average of the steps if the optimiser keeps one.

    Raises:
        UserError: the loss or the weights are not finite, `start_from` does not fit what is
            trained, or the checkpoint is damaged or belongs to another setting.
        Stopped: the process was told to end, and what it had learnt is in a checkpoint.
    """
    say_counts(model, trainable, stage)
    graphdef, params, frozen = begin(model, trainable, start_from, stage)
    devices = devices or mesh.make()
    state, shardings = placed(params, optimizer, devices)
    frozen = mesh.place(frozen, devices)
    if shared and shardings is None:
        step = shared_train_step(loss, optimizer, accumulate=accumulate)
    else:
        step = make_train_step(loss, optimizer, accumulate=accumulate, shardings=shardings)

    def send(part: Dispatch) -> dict[str, jax.Array]:
        nonlocal state
        batch = padded(batches(part.start, part.count), steps_per_call - part.count)
        batch = mesh.shard(batch, devices)
        with mesh.used(devices):
            state, metrics = step(graphdef, state, frozen, batch, part.count, key)
        return metrics

    def report(part: Dispatch, traced: dict[str, jax.Array]) -> None:
        metrics = checked(traced, state, part, stage, checkpoints)
        logger.scalars(part.end, metrics)
        advance(part.count, f"loss {metrics['loss']:.3f}")

    def pause(part: Dispatch) -> None:
        nonlocal state
        if after is not None and looks(part.end):
            state = after(part.end, state, graphdef, frozen)
        if part.saves:
            checkpoints.save(part.end, state, meta or {})

    def looks(end: int) -> bool:
        return after is not None and (after_at is None or end in after_at)

    with hosts.listening(), Checkpoints(folder) as checkpoints:
        start, state = resume(checkpoints, state, meta or {})
        logger.start(stage, step=start)
        parts = dispatches(start, steps, steps_per_call, checkpoint_every)
        with log.progress(stage, steps, start=start) as advance:
            carry_out(parts, steps, looks, send=send, report=report, pause=pause)
    return optim.averaged(state["params"], state["opt"])


def carry_out(
    parts: Iterable[Dispatch],
    steps: int,
    looks: Callable[[int], bool],
    *,
    send: Callable[[Dispatch], Any],
    report: Callable[[Dispatch, Any], None],
    pause: Callable[[Dispatch], None],
) -> None:
    """Sends the dispatches, each before what comes of the one before is looked at; to be called
    while `hosts.listening`.

    Args:
        parts, steps: see `dispatches`.
        looks: whether to pause at the end of a dispatch that is not saved.
        send: starts one, and returns what will come of it.
        report: looks at that, which waits for it.
        pause: what is done when nothing is under way.

    Raises:
        Stopped: the process was told to end, after a last pause.
    """
    waiting: list[tuple[Dispatch, Any]] = []
    for part in parts:
        sent = send(part)
        if part.end < steps and hosts.told_to_stop():
            part = dataclasses.replace(part, saves=True, stops=True)
        waiting.append((part, sent))
        pauses = part.saves or looks(part.end)
        while len(waiting) > (0 if pauses else 1):
            report(*waiting.pop(0))
        if pauses:
            pause(part)
        if part.stops:
            raise hosts.Stopped


def say_counts(model: nnx.Module, trainable: nnx.filterlib.Filter, stage: str) -> None:
    """Says how many parameters train, and how many do not."""
    _, params, others, _ = nnx.split(model, trainable, nnx.Param, ...)
    log.say(f"{stage}: {tree.count(params):,} parameters train, {tree.count(others):,} are frozen")


def begin(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    start_from: Mapping[Any, Any] | None,
    stage: str,
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits the model, with the parameters of `start_from` if there are any."""
    graphdef, params, frozen = split(model, trainable)
    if start_from is not None:
        params = _replaced(params, start_from, stage)
    return graphdef, params, frozen


def _replaced(params: nnx.State, weights: Mapping[Any, Any], stage: str) -> nnx.State:
    """The tree `params` with the values of `weights`, of the same names and shapes."""
    new = tree.flatten(weights)
    wrong = tree.differences(_shapes(new), _shapes(tree.flatten(params)))
    if wrong:
        count = f"{len(wrong)} arrays differ" if len(wrong) > 1 else "one array differs"
        raise UserError(f"{stage}: the weights to start from do not fit, {count}: {wrong[0]}")

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = tree.path_name(tuple(part.key for part in path))
        return jnp.asarray(new[name], leaf.dtype)

    return jax.tree_util.tree_map_with_path(put, params)


def _shapes(flat: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in flat.items()}


def resume(
    checkpoints: Checkpoints, state: dict[str, Any], meta: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """The step of the last checkpoint and the state it holds; 0 and `state` if there is none."""
    start = checkpoints.latest() or 0
    if not start:
        return 0, state
    restored, found = checkpoints.restore(start, state)
    if found != meta:
        saved = shown(found, 100)
        ours = shown(meta, 100)
        raise UserError(f"{checkpoints.folder}: holds a checkpoint of {saved}, this run has {ours}")
    return start, {**restored, "step": jnp.asarray(start, jnp.int32)}


def dispatches(start: int, steps: int, at_once: int, checkpoint_every: int) -> Iterator[Dispatch]:
    """Dispatches of at most `at_once` steps, none of which goes on past a checkpoint."""
    every = checkpoint_every or steps
    while start < steps:
        stop = min(steps, start - start % every + every)
        count = min(at_once, stop - start)
        yield Dispatch(start, count, saves=start + count == stop)
        start += count


def padded(batches: Any, more: int) -> Any:
    """Arrays [k, b, …] with `more` copies of the last step's, which no step sees."""
    if not more:
        return batches
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], more, axis=0)]), batches)


def checked(
    metrics: dict[str, jax.Array],
    state: dict[str, Any],
    dispatch: Dispatch,
    stage: str,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    """The metrics as numbers, once the loss is found finite, and the weights if they are saved."""
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    loss = numbers["loss"]
    # A loss is that of the weights before the step, so those to be saved are looked at as well.
    if np.isfinite(loss) and not (dispatch.saves and not _finite(state["params"])):
        return numbers
    good = checkpoints.latest()
    kept = "there is no checkpoint yet"
    if good:
        kept = f"the last good checkpoint is {checkpoints.folder / str(good)}"
    raise UserError(
        f"{stage}: not a number any more by step {dispatch.end} (loss {loss:.4g}); {kept}; "
        "lower the learning rate"
    )


@jax.jit
def _finite(params: Any) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    return jnp.stack(leaves).all()
