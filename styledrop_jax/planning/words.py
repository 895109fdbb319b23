"""`styledrop plan`: what a run takes, in lines."""

from collections.abc import Iterator

from styledrop_jax import log
from styledrop_jax.errors import UserError
from styledrop_jax.pipelines.base import Compilable
from styledrop_jax.planning import compiler, run
from styledrop_jax.planning.compiler import Cost
from styledrop_jax.planning.devices import GB, Device, chips
from styledrop_jax.planning.run import Counts, Part, Planned
from styledrop_jax.spec import check_batches
from styledrop_jax.stages import objective

_HEAD = ("", "arguments", "temporaries", "beside", "in all GB", "Tflop", "traffic GB", "at least")


def lines(plan: Planned, device: Device) -> Iterator[str]:
    """What the run takes on a device, a line at a time as it is found.

    Raises:
        UserError: the device's chips cannot share its batches evenly.
    """
    check_batches(plan.spec, device.chips)
    counted = run.counts(plan)
    yield from _of_run(plan, counted)
    lacking = ""
    try:
        chips(device)
    except UserError as error:
        lacking = str(error)

    if lacking:
        log.say("counting operations, which takes a minute or two of a large model")

    def measure(name: str, program: Compilable) -> Cost:
        if lacking:
            return compiler.estimated(program, device)
        log.say(f"compiling for {device.name}, which may take minutes: {name}")
        return compiler.compiled(program, device)

    parts = list(run.parts(plan, counted, device, measure))
    yield ""
    yield from _table([_row(part, device) for part in parts])
    yield from _sent(parts)
    yield ""
    yield from _in_all(parts, device)
    if lacking:
        known = max(part.memory for part in parts)
        yield (
            "temporaries and traffic are not known, and so not whether it fits: it takes more than "
            f"{known:.1f} of the {device.memory:.0f} GB that JAX has on {device.name}; the "
            'device\'s compiler says more: pip install ".[compilers]"'
        )
        return
    yield from _fitting(plan, counted, parts, device, measure)


def _of_run(plan: Planned, counted: Counts) -> Iterator[str]:
    pipeline = plan.pipeline
    yield f"{pipeline.name}, {pipeline.resolution} pixels, {plan.spec.dtype}"
    _, base, *rounds = counted.images
    for number, images in enumerate(rounds, 1):
        train = plan.spec.round(number).train
        yield (
            f"round {number}: {train.steps:,} steps of batch {train.batch_size}; "
            f"{counted.trained[number - 1]:,} parameters train, "
            f"{counted.frozen[number - 1]:,} are frozen; {images:,} images"
        )
    if said := objective.said(objective.sizes(plan.read.program.streams, pipeline)):
        yield said
    if counted.images[0]:
        yield f"images of a class, once: {counted.images[0]:,}"
    yield f"images of the base model: {base:,}"
    yield f"disk: about {counted.disk / 1e6:,.0f} MB"


def _row(part: Part, device: Device) -> list[str]:
    cost = part.cost
    bound = cost.bound(device)
    return [
        part.name,
        f"{cost.arguments / GB:.2f}",
        "?" if cost.temporaries is None else f"{cost.temporaries / GB:.2f}",
        f"{part.beside / GB:.2f}",
        f"{part.memory:.2f}" if cost.temporaries is not None else f"> {part.memory:.2f}",
        f"{cost.flops / 1e12:.3g}",
        "?" if cost.traffic is None else f"{cost.traffic / GB:.3g}",
        "?" if bound is None else f"{bound * 1e3:.3g} ms",
    ]


def _table(rows: list[list[str]]) -> Iterator[str]:
    cells = [list(_HEAD), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    for row in cells:
        first = row[0].ljust(widths[0])
        others = [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([first, *others])


def _sent(parts: list[Part]) -> Iterator[str]:
    for part in parts:
        each = [f"{name} {count / GB:.3g}" for name, count in part.cost.sent.items()]
        if each:
            yield f"{part.name}: between chips, GB in one step: {', '.join(each)}"


def _in_all(parts: list[Part], device: Device) -> Iterator[str]:
    """The whole run at the device's peak."""
    flops = sum(part.times * part.cost.flops for part in parts) * device.chips
    yield f"the whole run: {flops / 1e15:,.2f} Pflop, without scoring"
    seconds = 0.0
    for part in parts:
        bound = part.cost.bound(device)
        if bound is None:
            return
        seconds += part.times * bound
    yield (
        f"at least {log.duration(seconds)} on {device.name} at {device.peak:g} Tflop/s and "
        f"{device.bandwidth:g} TB/s a chip, without loading, compiling and scoring"
    )


def _fitting(
    plan: Planned, counted: Counts, parts: list[Part], device: Device, measure: run.Measure
) -> Iterator[str]:
    for part in parts:
        if part.memory <= device.memory:
            continue
        yield f"{part.name} does not fit: {part.memory:.1f} of {device.memory:.0f} GB"
        if part is parts[0]:
            yield from run.advice(plan, counted, part, device, measure)
        else:
            yield "a smaller sample.batch_size of every round takes less, for the same images"
    if all(part.memory <= device.memory for part in parts):
        yield f"fits into {device.memory:.0f} GB"
