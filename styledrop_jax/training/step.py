"""One step of training, or several in one dispatch, as a program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from styledrop_jax.training import mesh

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`loss(model, batch, keys) → (scalar, metrics)`, all of them means over the batch.

The arrays of the batch have a leading axis b, and `keys` [b] are of the examples, one each. Metrics
are averaged over the steps of a dispatch.
"""


class Choice(NamedTuple):
    """Losses of which a batch has one, because they are of arrays of other shapes.

    Attributes:
        losses: of one set of metrics.
        which: (model, batch) → int32 [], the one that a batch has.
    """

    losses: Sequence[Loss]
    which: Callable[[Any, Any], jax.Array]


class Over(NamedTuple):
    """The axes of models in the leaves of a tree, by its structure: 0 where each has its own, None
    where they share.
    """

    structure: Any
    axes: tuple[int | None, ...]


Losses = Loss | Sequence[Choice]
"""A loss, or a sum of choices, whose metrics are summed too."""


def make_train_step(
    loss: Losses,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    shardings: Any = None,
    over: Over | None = None,
) -> Callable:
    """Builds `step(graphdef, state, frozen, batches, count, key) → (state, metrics)`.

    `batches` has a leading axis of steps, of which the first `count` are run, in one dispatch: one
    program for any number of steps. The step's randomness is `fold_in(key, step)`, so a run depends
    neither on how its steps are grouped nor on where it was interrupted. Only `state` is donated.
    It is written for one model; see `over`.

    The batch of a step is computed in `accumulate` parts, one after the other: the same step in
    less memory. To `optax.MultiSteps` every part would be a step of the run, with its own number,
    randomness and place in the log, and a checkpoint could fall between the parts.

    `shardings` are those of the state, a tree like it, which it keeps; None leaves them to XLA.

    With `over`, of the leaves of `frozen`, it trains many at once, each of the devices in use its
    own if they divide: all leaves of `state` have a leading axis of models, those of `batches` one
    after that of steps, and metrics are [models].
    """

    @functools.partial(jax.jit, static_argnums=0)  # so that it is traced once for both its uses
    def one(graphdef, frozen, key, state, batch):
        gradient = functools.partial(_gradient, loss, graphdef, state["params"], frozen)
        step_key = jax.random.fold_in(key, state["step"])
        keys = jax.random.split(step_key, len(jax.tree.leaves(batch)[0]))
        grads, metrics = _mean_of_parts(gradient, (batch, keys), accumulate)
        if shardings is not None:  # so that a device sums up its own part of them alone
            grads = jax.lax.with_sharding_constraint(grads, shardings["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "step": state["step"] + 1}, metrics

    def step(graphdef, state, frozen, batches, count, key):
        run = functools.partial(one, graphdef, frozen, key)

        def batch_of(i):
            return jax.tree.map(lambda x: x[i], batches)

        def body(i, carried):
            state, total = carried
            state, metrics = run(state, batch_of(i))
            return state, jax.tree.map(jnp.add, total, metrics)

        _, shapes = jax.eval_shape(run, state, batch_of(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, total = jax.lax.fori_loop(0, count, body, (state, zeros))
        return state, jax.tree.map(lambda m: m / count, total)

    def many(graphdef, state, frozen, batches, count, key):
        axes = (0, over and over.structure.unflatten(over.axes), 1, None, None)
        run = jax.vmap(functools.partial(step, graphdef), axes)
        return mesh.apart(run, axes)(state, frozen, batches, count, key)

    kept = None if shardings is None else (shardings, None)
    program = step if over is None else many
    return jax.jit(program, static_argnums=0, donate_argnums=1, out_shardings=kept)


@functools.lru_cache(maxsize=8)
def shared_train_step(
    loss: Losses,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int,
    over: Over | None = None,
) -> Callable:
    """`make_train_step`, once for all trainings whose loss and optimiser are equal: what was traced
    and compiled for the first serves the others of the same shapes.

    They are kept, and so is what they hold.
    """
    return make_train_step(loss, optimizer, accumulate=accumulate, over=over)


def _gradient(loss: Losses, graphdef: Any, params: Any, frozen: Any, batch: Any, keys: Any) -> Any:
    """The gradients, a tree like `params`, and the metrics with the loss."""

    def of(one: Loss) -> Callable[..., Any]:
        def objective(params, batch, keys):
            value, metrics = one(nnx.merge(graphdef, params, frozen), batch, keys)
            return value, metrics | {"loss": value}

        return jax.grad(objective, has_aux=True)

    if callable(loss):
        return of(loss)(params, batch, keys)
    model = nnx.merge(graphdef, params, frozen)
    found = []
    for choice in loss:  # outside of the gradients: else memory would be kept for all
        forms = [of(one) for one in choice.losses]
        found.append(jax.lax.switch(choice.which(model, batch), forms, params, batch, keys))
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), found)


def _mean_of_parts(function: Callable, examples: tuple, parts: int) -> Any:
    """The mean of a function's results over equal parts of the examples, computed in turn.

    A part takes every `parts`-th example, so that each device has its share of all of them.
    """
    if parts == 1:
        return function(*examples)
    cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], cut))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    total, _ = jax.lax.scan(add, zeros, cut)
    return jax.tree.map(lambda x: x / parts, total)
