"""The training loop: one step function, many steps a dispatch, checkpoints, and nothing about methods or models."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from styledrop_jax import log, tree
from styledrop_jax.errors import UserError
from styledrop_jax.training import mesh, optim
from styledrop_jax.training.checkpoint import Checkpoints

Loss = Callable[[nnx.Module, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`loss(model, batch, keys) → (scalar, metrics)`, all of them means over the batch, whose arrays have a leading axis b.

`keys` [b] are of the examples, one each. Metrics are averaged over the steps of a dispatch."""


def split(model: nnx.Module, trainable: nnx.filterlib.Filter) -> tuple[nnx.GraphDef, dict, dict]:
    """The graph, the trainable state and all the rest, both as pure trees."""
    graphdef, params, frozen = nnx.split(model, trainable, ...)
    return graphdef, nnx.as_pure(params), nnx.as_pure(frozen)


def init_state(params: dict, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """{"params", "opt", "step"}: everything that a step changes. The parameters are copied: a step donates them."""
    params = jax.tree.map(jnp.array, params)
    return {"params": params, "opt": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable:
    """Builds `step(graphdef, state, frozen, batches, key) → (state, metrics)`.

    `batches` has a leading axis of steps, all run in one dispatch. The step's randomness is `fold_in(key, step)`, so a
    run depends neither on how its steps are grouped nor on where it was interrupted. Only `state` is donated.
    Written for one model; `jax.vmap` over a leading axis of `state` and `batches` trains many at once.

    The batch of a step is computed in `accumulate` parts, one after the other: the same step in less memory. To
    `optax.MultiSteps` every part would be a step of the run, with its own number, randomness and place in the log, and
    a checkpoint could fall between the parts.
    """

    def one(graphdef, frozen, key, state, batch):
        def objective(params, part, keys):
            value, metrics = loss(nnx.merge(graphdef, params, frozen), part, keys)
            return value, metrics | {"loss": value}

        gradient = functools.partial(jax.grad(objective, has_aux=True), state["params"])
        keys = jax.random.split(
            jax.random.fold_in(key, state["step"]), len(jax.tree.leaves(batch)[0])
        )
        grads, metrics = _mean_of_parts(gradient, (batch, keys), accumulate)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "step": state["step"] + 1}, metrics

    def step(graphdef, state, frozen, batches, key):
        run = functools.partial(one, graphdef, frozen, key)
        steps = jax.tree.leaves(batches)[0].shape[0]
        if steps == 1:  # a scan of one step costs the CPU its threads
            state, metrics = run(state, jax.tree.map(lambda x: x[0], batches))
            return state, metrics
        state, metrics = jax.lax.scan(run, state, batches)
        return state, jax.tree.map(lambda m: m.mean(0), metrics)

    return jax.jit(step, static_argnums=0, donate_argnums=1)


def _mean_of_parts(function: Callable, examples: tuple, parts: int) -> Any:
    """The mean of a function's results over equal parts of the examples' leading axis, one part after the other.

    A part takes every `parts`-th example, so that each device has its share of all of them.
    """
    if parts == 1:
        return function(*examples)
    cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], cut))
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        cut,
    )
    return jax.tree.map(lambda x: x / parts, total)


def fit(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    loss: Loss,
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
    start_from: dict | None = None,
    after: Callable[[int, dict, nnx.GraphDef, dict], dict] | None = None,
) -> dict:
    """Trains to `steps` from the last checkpoint in `folder`, and returns the trained parameters (a pure tree).

    They are the average of the steps if the optimiser keeps one (`optim.make`).

    Args:
        model: already carries what is trained.
        trainable: NNX filter of what is trained; everything else stays as it is.
        loss: see `Loss`.
        optimizer: an optax transformation.
        batches: `batches(start, count)` → the batches of steps [start, start + count), stacked on a leading axis.
        steps: in all.
        key: root key of the stage.
        folder: where the checkpoints go.
        logger: takes the metrics under `stage`.
        stage: the name in logs and progress bars.
        accumulate: parts that a step's batch is computed in; see `make_train_step`.
        steps_per_call: steps per dispatch, and the grain of logging.
        checkpoint_every: steps between checkpoints; 0: only the last.
        meta: kept with each checkpoint, and compared on resume.
        after: `after(step, state, graphdef, frozen) → state`, run on the host between dispatches.

    Raises:
        UserError: the loss or the weights are not finite, or the checkpoint is damaged or belongs to another setting.
    """
    graphdef, params, frozen = split(model, trainable)
    params = start_from or params
    _, _, weights, _ = nnx.split(model, trainable, nnx.Param, ...)
    log.say(f"{stage}: {tree.count(params):,} parameters train, {tree.count(weights):,} are frozen")
    state = init_state(params, optimizer)
    step_fn = make_train_step(loss, optimizer, accumulate=accumulate)
    checkpoints = Checkpoints(folder)
    meta = meta or {}
    start, state = _resume(checkpoints, folder, state, meta)
    state, frozen = mesh.replicate((state, frozen))
    logger.start(stage, step=start)
    with log.progress(stage, steps, start=start) as advance:
        done = start
        while done < steps:
            until = checkpoint_every - done % checkpoint_every if checkpoint_every else steps
            count = min(steps_per_call, steps - done, until)
            batch = mesh.shard(batches(done, count))
            state, metrics = step_fn(graphdef, state, frozen, batch, key)
            done += count
            saves = done == steps or (checkpoint_every and done % checkpoint_every == 0)
            metrics = jax.device_get(metrics)
            # A step's loss is that of the weights before it, so the weights to be saved are looked at as well.
            if not np.isfinite(metrics["loss"]) or (saves and not _finite(state["params"])):
                good = checkpoints.latest()
                kept = (
                    f"the last good checkpoint is {folder / str(good)}"
                    if good
                    else "there is no checkpoint yet"
                )
                found = f"not a number any more by step {done} (loss {metrics['loss']})"
                raise UserError(f"{stage}: {found}; {kept}; lower the learning rate")
            if after is not None:
                state = after(done, state, graphdef, frozen)
            logger.scalars(done, {name: float(value) for name, value in metrics.items()})
            advance(count, f"loss {float(metrics['loss']):.3f}")
            if saves:
                checkpoints.save(done, state, meta)
    checkpoints.close()
    return optim.averaged(state["params"], state["opt"])


def _resume(
    checkpoints: Checkpoints, folder: Path, state: dict, meta: dict[str, Any]
) -> tuple[int, dict]:
    """The step of the last checkpoint and the state it holds; 0 and `state` if there is none."""
    start = checkpoints.latest() or 0
    if not start:
        return 0, state
    restored, found = checkpoints.restore(start, state)
    if found != meta:
        raise UserError(f"{folder}: holds a checkpoint of {found}, this run has {meta}")
    return start, {**restored, "step": jnp.asarray(start, jnp.int32)}


@jax.jit
def _finite(params: dict) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
