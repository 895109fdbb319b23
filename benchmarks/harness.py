"""What the benchmarks against the reference share: processes that take turns, the check, and the table."""

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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sides.job import Job

# JAX and torch are imported inside the processes of their side: this one stays small, and so does what they inherit.

ASSETS = Path(__file__).resolve().parents[1] / "styledrop_jax" / "assets"
CACHED = "reference, cached"
CHECKED = 2  # images of a batch in the check
_QUIET = 0.3  # load average of each core


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
        side: an arm's name → its side; a function of a module, which imports the framework only when it is called.
        tasks: by the names that `--tasks` takes.
        limits: of the differences, by the names of what `Side.check` returns: of a "gradient" relative to its norm, of
            whole numbers the share that differs, else absolute.
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
    """One arm: units a second in each turn, peak memory and that after the imports in MiB, seconds until warm."""

    rates: list[float]
    peak: float
    imports: float
    warm_up: float


def read_flags(
    parser: argparse.ArgumentParser, tasks: Mapping[str, Task], *, steps: int
) -> argparse.Namespace:
    """Adds the flags of every benchmark to its own, reads them, and lets the environment choose the device.

    Args:
        parser: with the flags of one benchmark.
        tasks: what can be measured.
        steps: the default of `--steps`.
    """
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="cpu is float32, gpu bfloat16"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=steps, help="of decoding an image")
    parser.add_argument("--train-steps", type=int, default=20, help="training steps in one turn")
    parser.add_argument(
        "--steps-per-call", type=int, default=10, help="training steps in one dispatch of ours"
    )
    parser.add_argument("--batches", type=int, default=2, help="batches of images in one turn")
    threads = "threads of torch; on a machine whose cores are hyperthreads, fewer may be faster"
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count(), help=threads)
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of every arm")
    parser.add_argument("--tasks", nargs="+", choices=tuple(tasks), default=list(tasks))
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=989.0,
        help="of the GPU; 989: H100 and H200, dense bf16",
    )
    flags = parser.parse_args()
    if flags.train_steps % flags.steps_per_call:
        parser.error(
            f"--train-steps: {flags.train_steps} is not a multiple of --steps-per-call {flags.steps_per_call}"
        )
    os.environ |= {
        "JAX_PLATFORMS": "cuda" if flags.device == "gpu" else "cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the device, and the peak is to be read
    }
    return flags


def make_job(
    flags: argparse.Namespace, folder: Path, work: Path, *, pixels: int, copies: int = 1
) -> Job:
    """The job of a model in `folder`; writes the bundled pictures and takes their prompts.

    Args:
        flags: see `read_flags`.
        folder: of the model.
        work: a new folder.
        pixels: the pictures' side.
        copies: batches of pictures.
    """
    lines = (ASSETS / "references" / "references.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(lines[i % len(lines)]) for i in range(copies * flags.batch_size)]
    pictures = [
        Image.open(ASSETS / "references" / entry["image"]).convert("RGB") for entry in entries
    ]
    np.save(
        work / "images.npy", np.stack([picture.resize((pixels, pixels)) for picture in pictures])
    )
    return Job(
        folder=folder,
        work=work,
        device=flags.device,
        prompts=tuple(
            f"{entry['content']} {entry['descriptor']}" for entry in entries[: flags.batch_size]
        ),
        steps=flags.steps,
        train_steps=flags.train_steps,
        steps_per_call=flags.steps_per_call,
        batches=flags.batches,
        torch_threads=flags.torch_threads,
    )


def run(benchmark: Benchmark, job: Job, flags: argparse.Namespace) -> None:
    """Checks, measures, and prints the table; SystemExit when the two sides do not compute the same."""
    if (load := os.getloadavg()[0]) > _QUIET * (os.cpu_count() or 1):
        print(
            f"warning: the load average is {load:.1f}: other work falsifies the ratios",
            file=sys.stderr,
        )
    check = _compare(benchmark, job)
    found = {task: _measure(benchmark, job, task, repeats=flags.repeats) for task in flags.tasks}
    peak = flags.peak_tflops if flags.device == "gpu" else 0.0
    head = "| task | unit | ours | reference | ratio | memory, MiB: ours | reference | ratio |"
    head += " FLOP utilisation: ours | reference |" if peak else ""
    print(head)
    print("|" + " --- |" * (head.count("|") - 1))
    for task, arms in found.items():
        print(
            "\n".join(
                _rows(
                    benchmark.tasks[task],
                    arms,
                    flops=benchmark.flops(task) if peak else 0.0,
                    tflops=peak,
                )
            )
        )
    print()
    for line in _notes(benchmark, job, found, check=check, load=load, tflops=peak):
        print(f"- {line}")


# ----------------------------------------------------------------------------------------------------- the processes


@contextlib.contextmanager
def process(target: Callable, *args) -> Iterator[Connection]:
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


def _check(_pipe: Connection, side: Callable[[str], Side], job: Job, arm: str) -> None:
    np.savez(job.work / f"{arm}.npz", **side(arm).check(job))


def _serve(pipe: Connection, side: Callable[[str], Side], job: Job, arm: str, task: str) -> None:
    """An arm's process: one turn for each "run" that comes in, then its peak memory."""
    mine = side(arm)
    imports, start = _resident(), time.perf_counter()
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
    """The float32 check: one line of differences, or SystemExit when the two sides do not compute the same."""
    for arm in ("ours", "reference"):  # ours writes what the reference reads
        with process(_check, benchmark.side, job, arm):
            pass
    with np.load(job.work / "ours.npz") as ours, np.load(job.work / "reference.npz") as reference:
        found = {name: _difference(name, ours[name], reference[name]) for name in benchmark.limits}
    line = (
        "Differences in float32: "
        + ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        + "."
    )
    if not all(
        value <= benchmark.limits[name] for name, value in found.items()
    ):  # a NaN is no pass either
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
    with contextlib.ExitStack() as stack:
        pipes = {}
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


# --------------------------------------------------------------------------------------------------------- the table


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (f"{x:.3g}" for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def _rows(task: Task, measured: dict[str, Measured], *, flops: float, tflops: float) -> list[str]:
    """One line for each arm that ours is compared with. `tflops`: the device's peak, 0 for no column."""
    ours, rows = measured["ours"], []
    for other in task.others or (None,):
        theirs = measured.get(other)
        cells = [task.label + (f"; {other}" if other else ""), task.unit, _spread(ours.rates)]
        if theirs:
            ratios = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
            cells += [
                _spread(theirs.rates),
                f"×{_spread(ratios)}",
                f"{ours.peak:,.0f}",
                f"{theirs.peak:,.0f}",
            ]
            cells += [f"×{ours.peak / theirs.peak:.2f}"]
        else:
            cells += ["–", "–", f"{ours.peak:,.0f}", "–", "–"]
        if tflops:
            used = [
                statistics.median(arm.rates) * flops / tflops / 1e12 if arm else None
                for arm in (ours, theirs)
            ]
            cells += ["–" if share is None else f"{share:.1%}" for share in used]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _notes(
    benchmark: Benchmark,
    job: Job,
    found: dict[str, dict[str, Measured]],
    *,
    check: str,
    load: float,
    tflops: float,
) -> list[str]:
    gpu = job.device == "gpu"
    precision = (
        "bfloat16 on float32 weights (the reference's pipeline: bfloat16 weights)"
        if gpu
        else "float32"
    )
    first = next(iter(found.values()))
    memory = "the most that the framework's allocator had in use on the device"
    if not gpu:
        imports = ", ".join(f"{arm} {m.imports:,.0f}" for arm, m in first.items() if arm != CACHED)
        memory = f"peak resident set of the arm's own process, of which after the imports alone: {imports}"
    warm = "; ".join(
        f"{benchmark.tasks[task].label}: "
        + ", ".join(f"{arm} {m.warm_up:.1f}" for arm, m in arms.items())
        for task, arms in found.items()
    )
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "flax", "torch", "diffusers", "transformers")
    )
    model = "/".join(job.folder.parts[-2:]) if ASSETS in job.folder.parents else job.folder.name
    lines = [
        f"{model} on the {job.device}, {precision}, batch {job.batch}; {benchmark.setting}; Adam; ours "
        f"{job.steps_per_call} steps a call. Median (min–max) of {len(first['ours'].rates)} turns of {job.train_steps} "
        f"training steps or {job.batches * job.batch} images, the arms in turn.",
        check,
        benchmark.reference,
        f"Memory: {memory}.",
        f"Seconds to load, encode, compile and take the first turn: {warm}.",
        f"{os.cpu_count()} cores, {job.torch_threads} torch threads, load average before the run {load:.1f}; "
        f"{libraries}.",
    ]
    if tflops:
        lines.append(
            f"FLOP utilisation counts the denoiser's operations alone; assumed peak {tflops:g} TFLOP/s."
        )
    return lines
