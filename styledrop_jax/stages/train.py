"""First stage: what trains in a round, on its streams, to an adapter file."""

import bisect
import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from styledrop_jax import hosts, log, trainable, tree
from styledrop_jax.adapters.base import Trainable, save_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.interchange.read import read_init
from styledrop_jax.io.files import write_bytes
from styledrop_jax.methods.base import Stream
from styledrop_jax.pipelines.base import TrainSettings
from styledrop_jax.stages import objective, preview
from styledrop_jax.stages.best import step_file
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.steps import best_step
from styledrop_jax.stages.words import find_words, finds
from styledrop_jax.training import checkpoint, loop, many, mesh, optim
from styledrop_jax.training.step import Losses

STEPS_PER_CALL = 10
"""The most steps of one dispatch."""


def train_round(job: Job, number: int, streams: Sequence[Stream]) -> None:
    """Trains round `number` on `streams`, from its last checkpoint, and leaves its adapter file."""
    if _is_done(job, number):
        return
    if finds(job, number):
        find_words(job, number, streams)
    else:
        training = _prepared(job, number, streams)
        training.finish(training.fitted())


def train_together(
    work: Sequence[tuple[Job, Sequence[Stream]]], number: int
) -> list[UserError | None]:
    """Trains round `number` of several runs of the same settings; returns what went wrong in each.

    Those train at once whose programs are the same: images, of one size, and prompts are as many,
    and they stand at the same step. The others follow alone, and so do all where weights are cut
    over several devices, or the devices are those of several processes.
    """
    groups: dict[Hashable, list[int]] = {}
    trainings: dict[int, _Training] = {}
    members: dict[int, many.Member] = {}
    errors: dict[int, UserError] = {}
    for i, (job, streams) in enumerate(work):
        with _kept_apart(errors, i):
            if _is_done(job, number):
                continue
            if finds(job, number):
                find_words(job, number, streams)
                continue
            trainings[i] = _prepared(job, number, streams)
            members[i] = trainings[i].member()
            together = job.spec.mesh.fsdp == 1 and jax.process_count() == 1
            alone = i if trainings[i].several_sizes or not together else None
            groups.setdefault((many.program(members[i]), alone), []).append(i)
    for group in groups.values():
        if len(group) > 1:
            trainings[group[0]].say_counts()
        found = _fitted([trainings[i] for i in group], [members[i] for i in group])
        for i, params in zip(group, found, strict=True):
            with _kept_apart(errors, i):
                if isinstance(params, UserError):
                    raise params
                trainings[i].finish(params)
    return [errors.get(i) for i in range(len(work))]


@contextlib.contextmanager
def _kept_apart(errors: dict[int, UserError], i: int) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        errors[i] = error


def _fitted(trainings: Sequence["_Training"], members: Sequence[many.Member]) -> list[Any]:
    """What each learnt, or the `UserError` of one that went wrong: at once if they fit into memory,
    else in halves.
    """
    first = trainings[0]
    if len(trainings) == 1:
        try:
            return [first.fitted()]
        except UserError as error:
            return [error]
    try:
        devices = first.job.pipeline.devices
        return many.fit(members, first.loss, first.optimizer, devices=devices, **first.schedule)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    half = len(trainings) // 2
    log.say(f"{len(trainings)} styles at once do not fit into memory; {half} may")
    return _fitted(trainings[:half], members[:half]) + _fitted(trainings[half:], members[half:])


def _is_done(job: Job, number: int) -> bool:
    """Whether a round is trained; what is left of that is then removed."""
    stage = f"round_{number}"
    if not job.run.done(f"{stage}/adapter.safetensors"):
        return False
    job.logger.start(stage, step=job.spec.round(number).train.steps)
    checkpoint.remove(job.run.path(stage, "checkpoints"))
    return True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Training:
    """A round that is to be trained.

    Attributes:
        job, number, streams: see `train_round`.
        what: trains. data, loss: see `objective.prepare`. rows: see `objective.rows`.
        key: of the steps' randomness. start: see `_initial`. began: by the clock.
        kept, drawn: the steps before the last after which the state is kept, and drawn with.
    """

    job: Job
    number: int
    streams: Sequence[Stream]
    what: Trainable
    data: objective.Tuning
    loss: Losses
    rows: Callable[[int, int], np.ndarray]
    key: jax.Array
    start: Any
    kept: Sequence[int]
    drawn: Sequence[int]
    began: float

    @property
    def stage(self) -> str:
        return f"round_{self.number}"

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        return self.job.run.path(self.stage, "checkpoints")

    @property
    def optimizer(self) -> optax.GradientTransformation:
        settings = self.job.spec.round(self.number).train
        return optim.make(settings.learning_rate, ema_decay=settings.ema_decay)

    @property
    def several_sizes(self) -> bool:
        """Whether images have several: at once with others, each step would train on all."""
        return not callable(self.loss)

    @property
    def schedule(self) -> dict[str, Any]:
        """Arguments of `loop.fit`: the same in runs of the same settings."""
        settings = self.job.spec.round(self.number).train
        return {
            "steps": settings.steps,
            "key": self.key,
            "stage": self.stage,
            "accumulate": settings.accumulate,
            "steps_per_call": STEPS_PER_CALL,
            "checkpoint_every": settings.checkpoint_every,
            "meta": {"base": self.job.pipeline.base_hash},
            "after_at": {*self.kept, *self.drawn},
            "shared": not self.job.pipeline.inpaints,  # whose loss holds the pipeline
        }

    def say_counts(self) -> None:
        """Says what trains, as `fitted` does."""
        loop.say_counts(self.data, trainable.trained(self.what), self.stage)

    def member(self) -> many.Member:
        """As one of several that train at once."""
        parts = loop.begin(self.data, trainable.trained(self.what), self.start, self.stage)
        return many.Member(
            *parts,
            batches=self.rows,
            folder=self.folder,
            logger=self.job.logger,
            after=self.keep,
        )

    def fitted(self) -> Any:
        """Trains alone, and returns what was learnt."""
        return loop.fit(
            self.data,
            trainable.trained(self.what),
            self.loss,
            self.optimizer,
            self.rows,
            folder=self.folder,
            logger=self.job.logger,
            after=self.keep,
            start_from=self.start,
            devices=self.job.pipeline.devices,
            **self.schedule,
        )

    def keep(self, step: int, state: dict, *_: Any) -> dict:
        """Keeps the state after `step` steps, or draws with it; see `loop.fit`."""
        now = optim.averaged(state["params"], state["opt"])
        if step in self.kept:
            self._save(self.job.run.path(self.stage, step_file(step)), now)
        if step in self.drawn:
            preview.draw(self.job, self.number, step, lambda path: self._save(path, now))
        return state

    def finish(self, params: Any) -> None:
        """Leaves the adapter file, of the best of the states that were kept."""
        job = self.job
        last = job.run.path(self.stage, "adapter.safetensors")
        _record(job, self.stage, params, self.data, self.streams, time.monotonic() - self.began)
        if self.kept:
            steps = job.spec.round(self.number).train.steps
            self._save(job.run.path(self.stage, step_file(steps)), params)
            best = best_step(job, self.number, [*self.kept, steps])
            write_bytes(last, best.read_bytes())
        else:
            self._save(last, params)
        checkpoint.remove(self.folder)  # the optimizer's states are of no more use

    def _save(self, path: Path, params: Any) -> None:
        job = self.job
        save_adapter(
            path,
            mesh.fetch(params["parts"]),
            base_name=job.pipeline.name,
            base_hash=job.pipeline.base_hash,
            config=self.what.to_dict(),
            round=self.number,
            extra={"descriptor": job.descriptor, "content": job.given[0].reference.content},
        )
        hosts.wait()


def _prepared(job: Job, number: int, streams: Sequence[Stream]) -> _Training:
    """Everything frozen that a round trains on is computed here."""
    began = time.monotonic()
    settings = job.spec.round(number).train
    count = job.spec.round(number).keep
    what = job.trainables[number - 1]
    key = jax.random.fold_in(jax.random.key(job.spec.seed), number)
    attach_key, step_key = jax.random.split(key)
    model = trainable.attach(job.pipeline, what, rngs=nnx.Rngs(params=attach_key))
    seeds = _seeds(job.spec.seed, number, len(streams))
    sizes = objective.sizes(streams, job.pipeline)
    if words := objective.said(sizes):
        log.say(words)
    batches = []
    for stream, seed, own in zip(streams, seeds, sizes, strict=True):
        batches.append(objective.batch(stream, job.pipeline, settings, seed=seed, sizes=own))
    data, loss = objective.prepare(model, what, batches, settings)
    return _Training(
        job=job,
        number=number,
        streams=streams,
        what=what,
        data=data,
        loss=loss,
        rows=objective.rows(batches, batch_size=settings.batch_size, seeds=seeds),
        key=step_key,
        start=_initial(job, number),
        kept=_ends(settings, [settings.steps * i // count for i in range(1, count)]),
        drawn=_ends(settings, preview.marks(settings.steps, job.spec.round(number).preview_every)),
        began=began,
    )


def _ends(settings: TrainSettings, wanted: Iterable[int]) -> Sequence[int]:
    """The ends of dispatches, which do not change for it, at or next before the steps that are
    wanted; none is the last step.
    """
    ends = [0]
    for part in loop.dispatches(0, settings.steps, STEPS_PER_CALL, settings.checkpoint_every):
        ends.append(part.end)
    found = {ends[bisect.bisect(ends, step) - 1] for step in wanted}
    return sorted(found - {0, settings.steps})


def _initial(job: Job, number: int) -> Any:
    """The trainable state that a round starts from, as `trainable.parts` has it; None for a fresh
    one.
    """
    start = job.spec.round(number).start
    state = None
    if number == 1 and job.start is not None:
        state = job.start
    elif number > 1 and start == "last":
        last = job.run.path(f"round_{number - 1}", "adapter.safetensors")
        state = read_init(last, job.pipeline).state
    elif start == "learnt":
        if job.learnt is not None and job.learnt.what == job.trainables[number - 1]:
            state = job.learnt.state
        else:
            log.say(
                f"round_{number}: starts fresh: no learnt start fits its adapter and base model"
            )
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
