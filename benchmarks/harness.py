"""What the benchmarks against the reference share: the check, the timed turns and the table.

JAX and torch are imported inside the processes of their side. So this process stays small, and what
the others inherit from it too.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from sides.job import Job

ASSETS = Path(__file__).resolve().parents[1] / "styledrop_jax" / "assets"
CACHED = "reference, cached"
CHECKED = 2  # images of a batch in the check
_QUIET = 0.3  # load average of each core
_LIBRARIES = ("jax", "flax", "torch", "diffusers", "transformers")


class Pipe(Protocol):
    """One end of a pipe between two processes."""

    def send(self, obj: Any) -> None: ...

    def recv(self) -> Any: ...


class Side(NamedTuple):
    """What one arm runs in its own process.

    Attributes:
        prepare: (job, task) → what does one turn's work, to the end, and returns its units.
        check: what both sides must agree on, in float32.
        peak: MiB that the allocator of the device had in use at most.
    """

    prepare: Callable[[Job, str], Callable[[], int]]
    check: Callable[[Job], dict[str, np.ndarray]]
    peak: Callable[[], float]


class Task(NamedTuple):
    """A row of the table: its label, its unit, and the arms that ours is compared with."""

    label: str
    unit: str
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is compared.

    Attributes:
        side: an arm's name → its side. A function of a module, which imports the framework only
            when it is called.
        tasks: by the names that `--tasks` takes.
        limits: of the differences, by the names of what `Side.check` returns: of a "gradient"
            relative to its norm, of whole numbers the share that differs, else absolute.
        flops: task → floating-point operations of one unit.
        setting, reference: notes on what is measured, and on what the reference's loop is.
    """

    side: Callable[[str], Side]
    tasks: Mapping[str, Task]
    limits: Mapping[str, float]
    flops: Callable[[str], float]
    setting: str
    reference: str


@dataclasses.dataclass(kw_only=True)
class Measured:
    """What was measured of one arm.

    Attributes:
        rates: units a second in each turn.
        peak: memory, MiB. imports: memory after the imports alone, MiB.
        warm_up: seconds to load, encode, compile and take the first turn.
    """

    rates: list[float]
    peak: float
    imports: float
    warm_up: float


def read_flags(
    parser: argparse.ArgumentParser, tasks: Mapping[str, Task], *, steps: int
) -> argparse.Namespace:
    """Adds the flags of every benchmark to its own, reads them, and sets the environment by them.

    Args:
        parser: with the flags of one benchmark.
        tasks: what can be measured.
        steps: the default of `--steps`.
    """
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu"), default="cpu", help="cpu is float32, gpu bfloat16")
    add("--batch-size", type=int, default=8)
    add("--steps", type=int, default=steps, help="of decoding or denoising an image")
    add("--train-steps", type=int, default=20, help="training steps in one turn")
    add("--steps-per-call", type=int, default=10, help="training steps in one dispatch of ours")
    add("--batches", type=int, default=2, help="batches of images in one turn")
    threads = "threads of torch; on a machine whose cores are hyperthreads, fewer may be faster"
    add("--torch-threads", type=int, default=os.cpu_count(), help=threads)
    add("--repeats", type=int, default=5, help="timed turns of every arm")
    add("--tasks", nargs="+", choices=tuple(tasks), default=list(tasks))
    peak = "of the GPU; 989: H100 and H200, dense bf16"
    add("--peak-tflops", type=float, default=989.0, help=peak)
    flags = parser.parse_args()
    if flags.train_steps % flags.steps_per_call:
        parser.error(
            f"--train-steps: found {flags.train_steps}, expected a multiple of "
            f"--steps-per-call {flags.steps_per_call}"
        )
    os.environ["JAX_PLATFORMS"] = "cuda" if flags.device == "gpu" else "cpu"
    # Several processes share the device, and the peak is to be read.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    return flags


def make_job(
    flags: argparse.Namespace, folder: Path, work: Path, *, pixels: int, copies: int = 1
) -> Job:
    """The job of a model in `folder`; writes the bundled images and takes their prompts.

    Args:
        flags: see `read_flags`.
        folder: of the model.
        work: a new folder.
        pixels: the images' side.
        copies: batches of images.
    """
    lines = (ASSETS / "references" / "references.jsonl").read_text(encoding="utf-8").splitlines()
    images = []
    prompts = []
    for i in range(copies * flags.batch_size):
        entry = json.loads(lines[i % len(lines)])
        image = Image.open(ASSETS / "references" / entry["image"], formats=["PNG"]).convert("RGB")
        images.append(np.asarray(image.resize((pixels, pixels))))
        prompts.append(f"{entry['content']} {entry['descriptor']}")
    np.save(work / "images.npy", np.stack(images))
    return Job(
        folder=folder.resolve(),
        work=work,
        device=flags.device,
        prompts=tuple(prompts[: flags.batch_size]),
        steps=flags.steps,
        train_steps=flags.train_steps,
        steps_per_call=flags.steps_per_call,
        batches=flags.batches,
        torch_threads=flags.torch_threads,
    )


def run(benchmark: Benchmark, job: Job, flags: argparse.Namespace) -> None:
    """Checks, measures, and prints the table.

    Raises:
        SystemExit: the two sides do not compute the same.
    """
    load = os.getloadavg()[0]
    if load > _QUIET * (os.cpu_count() or 1):
        warning = f"warning: the load average is {load:.1f}: other work falsifies the ratios"
        print(warning, file=sys.stderr)
    checked = _compare(benchmark, job)
    found = {}
    for task in flags.tasks:
        found[task] = _measure(benchmark, job, task, repeats=flags.repeats)
    tflops = flags.peak_tflops if flags.device == "gpu" else 0.0
    _print_table(benchmark, found, tflops=tflops)
    print()
    for line in _notes(benchmark, job, found, checked=checked, load=load, tflops=tflops):
        print(f"- {line}")


# ----------------------------------------------------------------------------------- the processes


@contextlib.contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[Pipe]:
    """Runs `target(pipe, *args)` in a new process; yields the other end, and joins it.

    Raises:
        SystemExit: it failed; its own traceback is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=target, args=(there, *args), daemon=True)
    child.start()
    there.close()
    with contextlib.suppress(EOFError, BrokenPipeError):  # it died: so says its exit code
        yield here
    here.close()
    child.join()
    if child.exitcode:
        name = " ".join(arg for arg in args if isinstance(arg, str))
        raise SystemExit(f"{name}: its process ended with {child.exitcode}, see above")


def _resident() -> float:
    """Peak resident set of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _check(_pipe: Pipe, side: Callable[[str], Side], job: Job, arm: str) -> None:
    found: dict[str, Any] = side(arm).check(job)
    np.savez(job.work / f"{arm}.npz", **found)


def _serve(pipe: Pipe, side: Callable[[str], Side], job: Job, arm: str, task: str) -> None:
    """An arm's process: one turn for each "run" that comes in, then its peak memory."""
    mine = side(arm)
    imports = _resident()
    start = time.perf_counter()
    turn = mine.prepare(job, task)
    turn()
    pipe.send((imports, time.perf_counter() - start))
    with contextlib.suppress(EOFError):  # another arm died
        while pipe.recv() == "run":
            start = time.perf_counter()
            units = turn()
            pipe.send(units / (time.perf_counter() - start))
        pipe.send(_resident() if job.device == "cpu" else mine.peak())


def _compare(benchmark: Benchmark, job: Job) -> str:
    """The float32 check: one line of differences.

    Raises:
        SystemExit: the two sides do not compute the same.
    """
    for arm in ("ours", "reference"):  # ours writes what the reference reads
        with process(_check, benchmark.side, job, arm):
            pass
    shown = []
    agree = True
    with np.load(job.work / "ours.npz") as ours, np.load(job.work / "reference.npz") as reference:
        for name, limit in benchmark.limits.items():
            value = _difference(name, ours[name], reference[name])
            shown.append(f"{name} {value:.1e}")
            agree = agree and value <= limit  # a NaN is no pass either
    line = f"Differences in float32: {', '.join(shown)}."
    if not agree:
        raise SystemExit(f"the two sides do not compute the same, so there are no ratios. {line}")
    return line


def _difference(name: str, ours: np.ndarray, reference: np.ndarray) -> float:
    """See `Benchmark.limits`."""
    if ours.shape != reference.shape:
        raise SystemExit(
            f"{name}: ours has the shape {ours.shape}, the reference {reference.shape}"
        )
    if name == "gradient":
        return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
    if np.issubdtype(ours.dtype, np.integer):
        return float((ours != reference).mean())
    return float(np.abs(ours - reference).max())


def _measure(benchmark: Benchmark, job: Job, task: str, *, repeats: int) -> dict[str, Measured]:
    """Starts and warms up one arm after the other, then lets them take turns."""
    arms = ("ours", *benchmark.tasks[task].others)
    measured = {}
    pipes = {}
    with contextlib.ExitStack() as stack:
        for arm in arms:
            pipes[arm] = stack.enter_context(process(_serve, benchmark.side, job, arm, task))
            imports, warm_up = pipes[arm].recv()
            measured[arm] = Measured(rates=[], peak=0.0, imports=imports, warm_up=warm_up)
        for _ in range(repeats):
            for arm in arms:
                pipes[arm].send("run")
                measured[arm].rates.append(pipes[arm].recv())
        for arm in arms:
            pipes[arm].send("stop")
            measured[arm].peak = pipes[arm].recv()
    return measured


# --------------------------------------------------------------------------------------- the table


def _print_table(
    benchmark: Benchmark, found: Mapping[str, Mapping[str, Measured]], *, tflops: float
) -> None:
    """One row for each task and arm that ours is compared with.

    Args:
        benchmark: what is compared.
        found: task → arm → what was measured.
        tflops: the device's peak; 0 for no column of it.
    """
    head = ["task", "unit", "ours", "reference", "ratio"]
    head += ["memory, MiB: ours", "reference", "ratio"]
    if tflops:
        head += ["FLOP utilisation: ours", "reference"]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for name, arms in found.items():
        task = benchmark.tasks[name]
        flops = benchmark.flops(name) if tflops else 0.0
        for other in task.others:
            cells = _compared(arms["ours"], arms[other])
            used = [_used(arms[arm], flops, tflops) for arm in ("ours", other)] if tflops else []
            print("| " + " | ".join([f"{task.label}; {other}", task.unit, *cells, *used]) + " |")
        if not task.others:
            ours = arms["ours"]
            cells = [_spread(ours.rates), "–", "–", f"{ours.peak:,.0f}", "–", "–"]
            used = [_used(ours, flops, tflops), "–"] if tflops else []
            print("| " + " | ".join([task.label, task.unit, *cells, *used]) + " |")


def _compared(ours: Measured, theirs: Measured) -> list[str]:
    """The six cells of rates and memory."""
    ratios = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
    return [
        _spread(ours.rates),
        _spread(theirs.rates),
        f"×{_spread(ratios)}",
        f"{ours.peak:,.0f}",
        f"{theirs.peak:,.0f}",
        f"×{ours.peak / theirs.peak:.2f}",
    ]


def _used(arm: Measured, flops: float, tflops: float) -> str:
    """The share of the device's peak that an arm used."""
    return f"{statistics.median(arm.rates) * flops / tflops / 1e12:.1%}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def _notes(
    benchmark: Benchmark,
    job: Job,
    found: Mapping[str, Mapping[str, Measured]],
    *,
    checked: str,
    load: float,
    tflops: float,
) -> list[str]:
    """What stands under the table."""
    first = next(iter(found.values()))
    precision = "float32"
    if job.device == "gpu":
        precision = "bfloat16 on float32 weights (the reference's pipeline: bfloat16 weights)"
    model = "/".join(job.folder.parts[-2:]) if ASSETS in job.folder.parents else job.folder.name
    warm = []
    for task, arms in found.items():
        seconds = [f"{arm} {measured.warm_up:.1f}" for arm, measured in arms.items()]
        warm.append(f"{benchmark.tasks[task].label}: {', '.join(seconds)}")
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    lines = [
        f"{model} on the {job.device}, {precision}, batch {job.batch}; {benchmark.setting}; Adam; "
        f"ours {job.steps_per_call} steps a call. Median (min–max) of {len(first['ours'].rates)} "
        f"turns of {job.train_steps} training steps or {job.batches * job.batch} images, "
        "the arms in turn.",
        checked,
        benchmark.reference,
        f"Memory: {_memory(job, first)}.",
        f"Seconds to load, encode, compile and take the first turn: {'; '.join(warm)}.",
        f"{os.cpu_count()} cores, {job.torch_threads} torch threads, load average before the run "
        f"{load:.1f}; {', '.join(libraries)}.",
    ]
    if tflops:
        lines.append(
            "FLOP utilisation counts the denoiser's operations alone; "
            f"assumed peak {tflops:g} TFLOP/s."
        )
    return lines


def _memory(job: Job, arms: Mapping[str, Measured]) -> str:
    """What the columns of memory count."""
    if job.device == "gpu":
        return "the most that the framework's allocator had in use on the device"
    imports = []
    for arm, measured in arms.items():
        if arm != CACHED:
            imports.append(f"{arm} {measured.imports:,.0f}")
    return (
        "peak resident set of the arm's own process, of which after the imports alone: "
        + ", ".join(imports)
    )
