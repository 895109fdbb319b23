"""First stage: what trains in a round, on its streams, to an adapter file."""

import bisect
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from styledrop_jax import hosts, trainable, tree
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.interchange.read import read_init
from styledrop_jax.io.files import write_bytes
from styledrop_jax.methods.base import Stream
from styledrop_jax.pipelines.base import TrainSettings
from styledrop_jax.stages import objective, preview
from styledrop_jax.stages.best import step_file
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.steps import best_step
from styledrop_jax.training import checkpoint, loop, mesh, optim

STEPS_PER_CALL = 10
"""The most steps of one dispatch."""


def train_round(job: Job, number: int, streams: Sequence[Stream]) -> None:
    """Trains round `number` on `streams`, from its last checkpoint, and leaves its adapter file."""
    stage = f"round_{number}"
    settings = job.spec.round(number).train
    folder = job.run.path(stage, "checkpoints")
    if job.run.done(f"{stage}/adapter.safetensors"):
        job.logger.start(stage, step=settings.steps)
        checkpoint.remove(folder)
        return
    start = time.monotonic()
    last = job.run.path(stage, "adapter.safetensors")
    keep_count = job.spec.round(number).keep
    kept = _ends(settings, [settings.steps * i // keep_count for i in range(1, keep_count)])
    drawn = _ends(settings, preview.marks(settings.steps, job.spec.round(number).preview_every))
    what = job.trainables[number - 1]
    key = jax.random.fold_in(jax.random.key(job.spec.seed), number)
    attach_key, step_key = jax.random.split(key)
    model = trainable.attach(job.pipeline, what, rngs=nnx.Rngs(params=attach_key))
    seeds = _seeds(job.spec.seed, number, len(streams))
    batches = []
    for stream, seed in zip(streams, seeds, strict=True):
        batches.append(objective.batch(stream, job.pipeline, settings, seed=seed))
    data, loss = objective.prepare(model, what, batches, settings)

    def save(path: Path, params: Any) -> None:
        save_adapter(
            path,
            mesh.fetch(params["parts"]),
            base_name=job.pipeline.name,
            base_hash=job.pipeline.base_hash,
            config=what.to_dict(),
            round=number,
            extra={"descriptor": job.descriptor, "content": job.given[0].reference.content},
        )
        hosts.wait()

    def keep(step: int, state: dict, graphdef: nnx.GraphDef, frozen: nnx.State) -> dict:
        now = optim.averaged(state["params"], state["opt"])
        if step in kept:
            save(job.run.path(stage, step_file(step)), now)
        if step in drawn:
            preview.draw(job, number, step, lambda path: save(path, now))
        return state

    params = loop.fit(
        data,
        trainable.trained(what),
        loss,
        optim.make(settings.learning_rate, ema_decay=settings.ema_decay),
        objective.rows(batches, batch_size=settings.batch_size, seeds=seeds),
        steps=settings.steps,
        key=step_key,
        folder=folder,
        logger=job.logger,
        stage=stage,
        accumulate=settings.accumulate,
        steps_per_call=STEPS_PER_CALL,
        checkpoint_every=settings.checkpoint_every,
        meta={"base": job.pipeline.base_hash},
        after=keep,
        after_at=kept | drawn,
        start_from=_initial(job, number),
        devices=job.pipeline.devices,
    )
    _record(job, stage, params, data, streams, time.monotonic() - start)
    if kept:
        save(job.run.path(stage, step_file(settings.steps)), params)
        write_bytes(last, best_step(job, number, [*sorted(kept), settings.steps]).read_bytes())
    else:
        save(last, params)
    checkpoint.remove(folder)  # the optimizer's states are of no more use


def _ends(settings: TrainSettings, wanted: Iterable[int]) -> set[int]:
    """The ends of dispatches, which do not change for it, at or next before the steps that are
    wanted; none is the last step.
    """
    ends = [0]
    for part in loop.dispatches(0, settings.steps, STEPS_PER_CALL, settings.checkpoint_every):
        ends.append(part.end)
    return {ends[bisect.bisect(ends, step) - 1] for step in wanted} - {0, settings.steps}


def _initial(job: Job, number: int) -> Any:
    """The trainable state that a round starts from, as `trainable.parts` has it; None for a fresh
    one.
    """
    if number == 1:
        state = job.start
    elif job.spec.round(number).start == "last":
        last = job.run.path(f"round_{number - 1}", "adapter.safetensors")
        state = read_init(last, job.pipeline).state
    else:
        state = None
    return None if state is None else {"parts": state}


def _seeds(seed: int, number: int, count: int) -> list[int]:
    """A seed for the order of each stream of a round, none of which another round or run shares."""
    children = np.random.SeedSequence((seed, number)).spawn(count)
    return [int(child.generate_state(1)[0]) for child in children]


def _record(
    job: Job,
    stage: str,
    params: dict,
    data: objective.Tuning,
    streams: Sequence[Stream],
    seconds: float,
) -> None:
    trained = tree.count(params)
    taught = [stream for stream in streams if stream.teaches and stream.section != "mix"]
    counts = {
        "trainable": trained,
        "frozen": tree.count(nnx.state(data.parts, nnx.Param)) - trained,
        "images": sum(len(stream.examples) for stream in taught),
        "training_seconds": round(seconds, 1),
    }
    job.run.update_manifest({"rounds": {stage: counts}})
