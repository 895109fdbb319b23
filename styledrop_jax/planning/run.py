"""What a whole run takes: counted from its settings, measured by the compiler of a device."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax import guidance, tree
from styledrop_jax.adapters import full
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.pipelines.base import Compilable, Pipeline, TrainSettings
from styledrop_jax.pipelines.load import shapes
from styledrop_jax.planning import programs
from styledrop_jax.planning.compiler import Cost, bytes_of
from styledrop_jax.planning.devices import GB, Device
from styledrop_jax.planning.programs import Images
from styledrop_jax.spec import RoundSettings, RunSpec
from styledrop_jax.stages import objective
from styledrop_jax.stages.begin import trainables
from styledrop_jax.stages.read import Read
from styledrop_jax.stages.steps import PROMPTS
from styledrop_jax.stages.train import STEPS_PER_CALL

_CHECKPOINTS = 2  # that are on the disk at once, each with the optimiser's state
_PNG = 2.0  # bytes of a pixel; flat drawings take less
_TRIES = 4  # of what may fit, where a program does not: each is compiled


class Counts(NamedTuple):
    """What a run does.

    Attributes:
        steps: of training, in each round.
        images: that are sampled: of a class by the frozen model, by the base model, in each round.
        trained, frozen: parameters in each round.
        state: bytes of what trains and of its optimiser, at most.
        disk: bytes that the run folder grows to, about.
    """

    steps: list[int]
    images: list[int]
    trained: list[int]
    frozen: list[int]
    state: int
    disk: float


Measure = Callable[[str, Compilable], Cost]
"""(what it is, program) → its cost."""


class Part(NamedTuple):
    """A program of the run.

    Attributes:
        name: "training round 1, batch 8".
        cost: of it.
        beside: bytes on the device that it does not take as arguments.
        times: how often the body of its loop runs in the run.
    """

    name: str
    cost: Cost
    beside: int
    times: int

    @property
    def memory(self) -> float:
        """GB, as far as it is known."""
        return (self.cost.memory + self.beside) / GB


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """A run that is looked at before it starts.

    Attributes:
        spec: of the run. read: what the user gave.
        pipeline: the base model; its arrays may be shapes. what: trains in each round.
    """

    spec: RunSpec
    read: Read
    pipeline: Pipeline
    what: Sequence[Trainable]


def planned(spec: RunSpec, read: Read) -> Planned:
    """The run on the shapes of its base model.

    Raises:
        UserError: the base model is not known.
    """
    kept = jnp.dtype(spec.weights_dtype)
    pipeline = shapes(spec.base, jnp.dtype(spec.dtype), weights=kept, vae=spec.vae)
    pipeline = pipeline.reads(spec.reading)
    return Planned(spec=spec, read=read, pipeline=pipeline, what=trainables(spec, read.program))


def brief(plan: Planned) -> str:
    """One line of what the run takes, in a moment."""
    found = counts(plan)
    modules = (plan.pipeline.denoiser, plan.pipeline.autoencoder, plan.pipeline.text)
    memory = sum(bytes_of(module) for module in modules) + found.state
    return (
        f"this run: {sum(found.steps):,} training steps of {max(found.trained):,} parameters, "
        f"{sum(found.images):,} images; {memory / GB:.2f} GB of memory for weights and optimiser "
        f"alone, about {found.disk / 1e6:,.0f} MB of disk; more by `styledrop plan`"
    )


def images(spec: RunSpec, read: Read) -> list[int]:
    """How many images the frozen model makes of a class, the base model of the prompts, and each
    round."""
    generated = [stream.generated[1] for stream in read.program.streams if stream.generated]
    redrawn = read.program.redrawn
    sources = 1
    if redrawn is not None:
        sources = sum(item.section == redrawn.section for item in read.given)
    found = [sum(generated), len(read.said) * sources]
    for number in range(1, spec.rounds + 1):
        stage = spec.round(number)
        prompts = len(read.by_round.get(number, read.said)) * sources
        count = prompts * (stage.sample.images_per_prompt + spec.candidates(number))
        if stage.keep > 1:
            count += stage.keep * min(prompts, PROMPTS)
        found.append(count)
    return found


def counts(plan: Planned) -> Counts:
    """What the run does; nothing is lowered."""
    spec = plan.spec
    made = images(spec, plan.read)
    pixels = plan.pipeline.resolution**2
    disk = sum(made) * pixels * _PNG
    steps = []
    trained = []
    frozen = []
    largest = 0
    known: dict[Trainable, tuple[Any, Any]] = {}
    for number in range(1, spec.rounds + 1):
        stage = spec.round(number)
        what = plan.what[number - 1]
        if what not in known:
            known[what] = programs.trained(plan.pipeline, what)
        state, rest = known[what]
        steps.append(stage.train.steps)
        trained.append(tree.count(state))
        frozen.append(tree.count(rest))
        size = bytes_of(state)
        kept = stage.keep if stage.keep > 1 else 0
        disk += size * (1 + kept)
        averages = 1 if stage.train.ema_decay else 0
        largest = max(largest, size * (3 + averages))
    disk += largest * _CHECKPOINTS
    return Counts(steps, made, trained, frozen, largest, disk)


def parts(plan: Planned, counted: Counts, device: Device, measure: Measure) -> Iterator[Part]:
    """The programs of a run: the training step and the sampler of the round that takes most, and
    the decoder.

    Args:
        measure: (what it is, program) → its cost.
    """
    number = _largest(plan, counted)
    stage = plan.spec.round(number)
    what = plan.what[number - 1]
    name = f"training, round {number}, batch {stage.train.batch_size}"
    if stage.train.accumulate > 1:  # the body of whose loop is counted once
        name += f" in {stage.train.accumulate} parts"
    cost = measure(name, _training(plan, number, stage, device))
    sizes = _sizes(plan.pipeline, device)
    times = 0
    for i, steps in enumerate(counted.steps, 1):
        times += steps * plan.spec.round(i).train.accumulate
    yield Part(name, cost, _beside(sizes, what), times)
    batch = guidance.at_once(stage.sample, device.mesh, cpu=device.described is None)
    sampling = dataclasses.replace(stage.sample, batch_size=batch)
    chunks = sum(math.ceil(count / batch) for count in counted.images)
    said = [prompt.text for prompt in plan.read.by_round.get(number, plan.read.said)]
    read_in = _chunks(plan, [*said, stage.sample.negative_prompt])
    found = programs.sampling(plan.pipeline, what, sampling, device.mesh, read_in)
    for name, program in found.items():
        label = f"{name}, batch {_batch(program, batch)}"
        cost = measure(label, program)
        beside = sizes["text"] + sizes["autoencoder"]
        times = chunks * stage.sample.steps
        if name == "decoding":
            beside = sizes["text"] + sizes["denoiser"]
            times = chunks * math.ceil(batch / _batch(program, batch))
        yield Part(label, cost, beside, times)


def advice(
    plan: Planned, counted: Counts, part: Part, device: Device, measure: Measure
) -> Iterator[str]:
    """What would make the training step fit into a chip, a line for each try: settings that give
    the same result in less memory.
    """
    number = _largest(plan, counted)
    stage = plan.spec.round(number)
    batch = stage.train.batch_size
    tries = []
    for remat in (False, True):
        for pieces in range(stage.train.accumulate, batch + 1):
            if batch % (pieces * device.chips) == 0 and remat >= stage.train.remat:
                tries.append(dataclasses.replace(stage.train, accumulate=pieces, remat=remat))
    tries.sort(key=lambda train: (train.remat + math.log2(train.accumulate), train.accumulate))
    for train in tries[1 : 1 + _TRIES]:
        words = _changed(number, stage.train, train)
        program = _training(plan, number, dataclasses.replace(stage, train=train), device)
        found = part._replace(cost=measure(words, program))
        if found.memory <= device.memory:
            yield f"{words} would fit: {found.memory:.1f} GB, for the same result"
            return
        yield f"{words} would not fit either: {found.memory:.1f} GB"
    if len(tries) < 2:
        yield "nothing is left that takes less for the same result; --device names a larger device"


def _changed(number: int, old: TrainSettings, new: TrainSettings) -> str:
    """The flags that make one of the other."""
    words = []
    if new.accumulate != old.accumulate:
        each = new.batch_size // new.accumulate
        words.append(f"--config.round_{number}.train.accumulate {new.accumulate} ({each} at once)")
    if new.remat != old.remat:
        words.append(f"--config.round_{number}.train.remat true")
    return " ".join(words)


def _training(plan: Planned, number: int, stage: RoundSettings, device: Device) -> Compilable:
    streams = []
    said = []
    side = plan.pipeline.resolution
    own = objective.sizes(plan.read.program.streams, plan.pipeline)
    for stream, sizes in zip(plan.read.program.streams, own, strict=True):
        made = stream.generated[1] if stream.generated else 0
        prompts = len({example.prompt for example in stream.examples}) + bool(made)
        sizes = [*sizes, *[(side, side)] * made]
        streams.append(Images(sizes, stream.weight, bool(stream.unmix), prompts))
        said += [example.prompt for example in stream.examples]
    what = plan.what[number - 1]
    return programs.training(
        plan.pipeline,
        what,
        streams,
        stage.train,
        steps=STEPS_PER_CALL,
        devices=device.mesh,
        chunks=_chunks(plan, said),
    )


def _chunks(plan: Planned, prompts: Sequence[str]) -> int:
    """How many chunks prompts are read in beside each other."""
    return int(max(plan.pipeline.text_chunks(prompts), default=1))


def _largest(plan: Planned, counted: Counts) -> int:
    """The round whose step takes most memory, as far as that is known without a compiler."""

    def size(number: int) -> tuple[float, int]:
        train = plan.spec.round(number).train
        return train.batch_size / train.accumulate, counted.trained[number - 1]

    return max(range(1, plan.spec.rounds + 1), key=size)


def _batch(program: Compilable, batch: int) -> int:
    """The images of a program's batch: a decoder may take fewer than the sampler."""
    last = program.arguments[-1]
    return last.shape[0] if isinstance(last, jax.ShapeDtypeStruct) and last.shape else batch


def _sizes(pipeline: Pipeline, device: Device) -> dict[str, int]:
    """Bytes of the base model's modules on a chip."""
    found = {}
    for name in ("denoiser", "autoencoder", "text"):
        weights = nnx.as_pure(nnx.state(getattr(pipeline, name)))
        found[name] = bytes_of(programs.placed(weights, device.mesh))
    return found


def _beside(sizes: Mapping[str, int], what: Trainable) -> int:
    """Bytes of the base model on a chip that a training step does not take as arguments: what is
    not in it, and the originals of weights that train.
    """
    total = sizes["autoencoder"]
    if isinstance(what.denoiser, full.Config):
        total += sizes["denoiser"]
    if isinstance(what.text, full.Config) or not what.trains_text:
        total += sizes["text"]
    return total
