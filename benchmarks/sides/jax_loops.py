"""Our loops: those of `stages.train` and `stages.sample`, without the files of a run."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sides.job import LEARNING_RATE, Job
from styledrop_jax import guidance, trainable, tree
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.pipelines.base import Pipeline, SampleSettings, TrainSettings
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, mesh, optim
from styledrop_jax.training.step import make_train_step


def training(
    job: Job, model: Pipeline, what: Trainable, batches: Sequence[objective.Batch]
) -> Callable[[], int]:
    """One turn of training.

    Images and prompts are encoded once. Several steps are one dispatch, and the loss is looked at
    after each dispatch.
    """
    settings = TrainSettings(
        learning_rate=LEARNING_RATE, batch_size=job.batch, text_dropout=0.0, remat=False
    )
    tuned = trainable.attach(model, what, rngs=nnx.Rngs(0))
    data, loss = objective.prepare(tuned, what, batches, settings)
    graphdef, params, frozen = loop.split(data, trainable.trained(what))
    optimizer = optim.make(settings.learning_rate)
    devices = model.devices
    state, shardings = loop.placed(params, optimizer, devices)
    frozen = mesh.place(frozen, devices)
    step = make_train_step(loss, optimizer, shardings=shardings)
    rows = objective.rows(batches, batch_size=settings.batch_size, seeds=range(len(batches)))
    key = jax.random.key(0)
    done = 0

    def run() -> int:
        nonlocal state, done
        for _ in range(job.train_steps // job.steps_per_call):
            batch = mesh.shard(rows(done, job.steps_per_call), devices)
            with mesh.used(devices):
                state, metrics = step(graphdef, state, frozen, batch, job.steps_per_call, key)
            done += job.steps_per_call
            assert np.isfinite(jax.device_get(metrics)["loss"])
        jax.block_until_ready(state)
        return job.train_steps

    return run


def sampling(
    job: Job, branches: Sequence[guidance.Branch], settings: SampleSettings
) -> Callable[[], int]:
    """One turn of sampling."""

    def run() -> int:
        for i in range(job.batches):
            seeds = range(i * job.batch, (i + 1) * job.batch)
            for images in guidance.generate(branches, seeds, settings=settings):
                assert np.isfinite(images).all()
        return job.batches * job.batch

    return run


def adapted(job: Job, model: Pipeline, what: Trainable) -> tuple[nnx.GraphDef, Any, Any]:
    """The denoiser with an adapter of random weights, taken apart; both sides use the same adapter.

    Writes its weights to `adapter.npz`.

    Returns:
        the graph; the adapter's weights; all other weights.
    """
    tuned = trainable.attach(model, what, rngs=nnx.Rngs(0))
    graphdef, params, frozen = loop.split(tuned.denoiser, trainable.trained(what))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype), params)
    tensors: dict[str, Any] = tree.flatten(params)
    np.savez(job.work / "adapter.npz", **tensors)
    return graphdef, params, frozen


def flat(gradient: Any) -> np.ndarray:
    """A gradient as one vector, in the order of the adapter's names."""
    leaves = tree.flatten(gradient).values()
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def peak() -> float:
    """MiB that the allocator of the device had in use at most."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] / 2**20
