"""Our loops, which are those of `personalize`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sides.job import LEARNING_RATE, Job
from styledrop_jax import guidance, trainable
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, mesh, optim


def training(
    job: Job,
    model: Pipeline,
    plan: trainable.Trainable,
    sources: Sequence[objective.Stream],
    hyper: Mapping[str, Any],
) -> Callable[[], int]:
    """One turn of training: images and prompts encoded once, several steps a dispatch, metrics after each."""
    tuned = trainable.attach(model, plan, rngs=nnx.Rngs(0))
    data, loss = objective.prepare(tuned, plan, sources, hyper)
    graphdef, params, frozen = loop.split(data, plan.filter())
    optimizer = optim.make(LEARNING_RATE)
    state, frozen = mesh.replicate((loop.init_state(params, optimizer), frozen))
    step = loop.make_train_step(loss, optimizer)
    batches, key, done = (
        objective.batches(sources, batch_size=job.batch, seed=0),
        jax.random.key(0),
        0,
    )

    def run() -> int:
        nonlocal state, done
        for _ in range(job.train_steps // job.steps_per_call):
            state, metrics = step(
                graphdef, state, frozen, mesh.shard(batches(done, job.steps_per_call)), key
            )
            done += job.steps_per_call
            assert np.isfinite(jax.device_get(metrics)["loss"])
        jax.block_until_ready(state)
        return job.train_steps

    return run


def sampling(
    job: Job, branches: Sequence[guidance.Branch], settings: SampleSettings
) -> Callable[[], int]:
    """One turn of drawing."""

    def run() -> int:
        for i in range(job.batches):
            seeds = range(i * job.batch, (i + 1) * job.batch)
            for images in guidance.generate(
                branches, seeds, settings=settings, batch_size=job.batch
            ):
                assert np.isfinite(images).all()
        return job.batches * job.batch

    return run


def peak() -> float:
    """MiB that the allocator of the device had in use at most."""
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
