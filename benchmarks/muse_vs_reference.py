"""Training steps/s, images/s and peak memory against the reference PyTorch modules, on the same weights, in one run.

    source launch/environment.sh dev
    python benchmarks/muse_vs_reference.py --model emoji64 --device cpu
    python benchmarks/muse_vs_reference.py --model amused-256 --device gpu    # random weights, the public config

Prints one markdown table. Every arm runs in a process of its own, so that its peak memory is its own; the arms of a row
take turns (A B A B), so that a change of the machine's speed meets all of them. Before anything is timed, both sides
compute the same masked batch in float32 through the same adapter: if logits, loss, gradient or decoded images differ
by more than 1e-3, there are no ratios.
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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from muse_sides.job import GUIDANCE, RANK, Job
from PIL import Image

# JAX and torch are imported inside the processes of their side: this one stays small, and so does what they inherit.

_ASSETS = Path(__file__).resolve().parents[1] / "styledrop_jax" / "assets"
_TOLERANCE = 1e-3
_QUIET = 0.3  # load average of each core
_CHECKED = 2  # images in the check
_RANDOM = ("tiny", "amused-256", "amused-512")
_CACHED = "reference, cached"
_TASKS = {
    "adapter": ("StyleDrop adapter, training", "steps/s", ("reference", _CACHED)),
    "full": ("whole transformer, training", "steps/s", ("reference", _CACHED)),
    "sample": ("sampling, guided (2 branches)", "images/s", ("reference",)),
    "style": ("sampling, StyleDrop (3 branches)", "images/s", ()),
}  # name → (row, unit, the arms that ours is compared with)


@dataclasses.dataclass(kw_only=True)
class Measured:
    """One arm: units a second in each turn, peak memory and that after the imports in MiB, seconds until warm."""

    rates: list[float]
    peak: float
    imports: float
    warm_up: float


def main() -> None:
    flags = _flags()
    os.environ |= {
        "JAX_PLATFORMS": "cuda" if flags.device == "gpu" else "cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the device, and the peak is to be read
    }
    if (load := os.getloadavg()[0]) > _QUIET * (os.cpu_count() or 1):
        print(f"warning: the load average is {load:.1f}: other work falsifies the ratios", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        job, config = _job(flags, Path(work))
        check = _compare(job)
        found = {task: _measure(job, task, repeats=flags.repeats) for task in flags.tasks}
    peak = flags.peak_tflops if flags.device == "gpu" else 0.0
    head = "| task | unit | ours | reference | ratio | memory, MiB: ours | reference | ratio |"
    head += " FLOP utilisation: ours | reference |" if peak else ""
    print(head)
    print("|" + " --- |" * (head.count("|") - 1))
    for task, arms in found.items():
        print("\n".join(_rows(job, task, arms, flops=_flops(config, job, task), tflops=peak)))
    print()
    for line in _notes(job, found, check=check, load=load, tflops=peak):
        print(f"- {line}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = "emoji64 (ships with the package); amused-256, amused-512, tiny (random weights); or a diffusers folder"
    parser.add_argument("--model", default="emoji64", help=model)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="cpu is float32, gpu bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of decoding")
    parser.add_argument("--train-steps", type=int, default=20, help="training steps in one turn")
    parser.add_argument("--steps-per-call", type=int, default=10, help="training steps in one dispatch of ours")
    parser.add_argument("--batches", type=int, default=2, help="batches of images in one turn")
    threads = "threads of torch; on a machine whose cores are hyperthreads, fewer may be faster"
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count(), help=threads)
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of every arm")
    parser.add_argument("--tasks", nargs="+", choices=tuple(_TASKS), default=list(_TASKS))
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU; 989: H100 and H200, dense bf16")
    flags = parser.parse_args()
    if flags.train_steps % flags.steps_per_call:
        parser.error(f"--train-steps: {flags.train_steps} is not a multiple of --steps-per-call {flags.steps_per_call}")
    return flags


def _job(flags: argparse.Namespace, work: Path) -> tuple[Job, dict]:
    """Finds or writes the model, and writes the inputs: the bundled pictures and their prompts.

    Returns:
        the job; the transformer's config with the prompts' `text_length`.
    """
    shipped = _ASSETS / flags.model / "muse"
    folder = shipped if shipped.is_dir() else Path(flags.model).expanduser()
    if not folder.is_dir():
        if flags.model not in _RANDOM:
            raise SystemExit(f"--model {flags.model}: no such folder, and not one of emoji64, {', '.join(_RANDOM)}")
        folder = work / flags.model
        with _process(_write_random, folder, flags.model):
            pass
    config, text, codec = (
        json.loads((folder / part / "config.json").read_text()) for part in ("transformer", "text_encoder", "vqvae")
    )
    side = config["sample_size"]
    pixels = side * 2 ** (len(codec["block_out_channels"]) - 1)

    lines = (_ASSETS / "references" / "references.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(lines[i % len(lines)]) for i in range(flags.batch_size)]
    pictures = [Image.open(_ASSETS / "references" / entry["image"]).convert("RGB") for entry in entries]
    np.save(work / "images.npy", np.stack([picture.resize((pixels, pixels)) for picture in pictures]))
    rng, shape = np.random.default_rng(0), (min(_CHECKED, flags.batch_size), side, side)
    half = np.arange(side * side) < side * side // 2  # the same count in each: both means are then one
    mask = np.stack([rng.permutation(half) for _ in range(shape[0])]).reshape(shape)
    np.savez(work / "check.npz", tokens=rng.integers(0, config["codebook_size"], shape), mask=mask)
    job = Job(
        folder=folder,
        work=work,
        device=flags.device,
        prompts=tuple(f"{entry['content']} {entry['descriptor']}" for entry in entries),
        steps=flags.steps,
        train_steps=flags.train_steps,
        steps_per_call=flags.steps_per_call,
        batches=flags.batches,
        torch_threads=flags.torch_threads,
    )
    return job, config | {"text_length": text["max_position_embeddings"]}


# ----------------------------------------------------------------------------------------------------- the processes


def _resident() -> float:
    """Peak resident set of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _write_random(_pipe: Connection, folder: Path, name: str) -> None:
    from muse_sides import reference

    reference.write_random(folder, name)


def _check(_pipe: Connection, job: Job, arm: str) -> None:
    if arm == "ours":
        from muse_sides import ours as side
    else:
        from muse_sides import reference as side
    np.savez(job.work / f"{arm}.npz", **side.check(job))


def _serve(pipe: Connection, job: Job, arm: str, task: str) -> None:
    """An arm's process: one turn for each "run" that comes in, then its peak memory."""
    if arm == "ours":
        from muse_sides import ours as side

        options = {}
    else:
        from muse_sides import reference as side

        options = {"cached": arm == _CACHED}
    imports, start = _resident(), time.perf_counter()
    run = side.prepare(job, task, **options)
    run()
    pipe.send((imports, time.perf_counter() - start))
    with contextlib.suppress(EOFError):  # another arm died
        while pipe.recv() == "run":
            start = time.perf_counter()
            units = run()
            pipe.send(units / (time.perf_counter() - start))
        pipe.send(_resident() if job.device == "cpu" else side.peak())


@contextlib.contextmanager
def _process(target: Callable, *args) -> Iterator[Connection]:
    """Runs `target(pipe, *args)` in a new process; yields the other end, and joins it.

    Raises:
        SystemExit: it failed; its own traceback is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *args), daemon=True)
    process.start()
    there.close()
    with contextlib.suppress(EOFError, BrokenPipeError):  # it died: so says its exit code
        yield here
    here.close()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{' '.join(map(str, args[1:]))}: its process ended with {process.exitcode}, see above")


def _compare(job: Job) -> str:
    """The float32 check: one line of differences, or SystemExit when the two sides do not compute the same."""
    for arm in ("ours", "reference"):
        with _process(_check, job, arm):
            pass
    with np.load(job.work / "ours.npz") as file, np.load(job.work / "reference.npz") as other:
        ours, reference = dict(file), dict(other)
    differences = {name: float(np.abs(ours[name] - reference[name]).max()) for name in ("logits", "loss", "images")}
    gap, size = (np.linalg.norm(x) for x in (ours["gradient"] - reference["gradient"], reference["gradient"]))
    differences["gradient (relative)"] = float(gap / size)
    same = float((ours["tokens"] == reference["tokens"]).mean())
    line = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    line = f"Largest differences in float32: {line}; {same:.1%} of the images' tokens are the same."
    if not all(value <= _TOLERANCE for value in differences.values()) or same < 0.99:  # a NaN is no pass either
        raise SystemExit(f"the two sides do not compute the same, so there are no ratios. {line}")
    return line


def _measure(job: Job, task: str, *, repeats: int) -> dict[str, Measured]:
    """Starts and warms up one arm after the other, then lets them take turns."""
    arms = ("ours", *_TASKS[task][2])
    measured = {}
    with contextlib.ExitStack() as stack:
        pipes = {}
        for arm in arms:
            pipes[arm] = stack.enter_context(_process(_serve, job, arm, task))
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


def _flops(config: dict, job: Job, task: str) -> float:
    """Floating-point operations of the transformer's matrix products for one unit of a task.

    A training step of the adapter is a forward, and the gradients of activations, not of weights, from the first
    layer on; one of the whole transformer is three forwards.
    """
    d, c, e, t = config["hidden_size"], config["block_out_channels"], config["in_channels"], config["text_length"]
    layers, blocks = config["num_hidden_layers"], config["num_res_blocks"]
    n = config["sample_size"] ** 2
    m = n // 4 if config["downsample"] else n
    resample = 8 * m * c * c if config["downsample"] else 0
    block = 18 * m * c + 24 * m * c * c + 8 * m * t * c  # depthwise; MLP and attention; scores
    block_text = 8 * t * c * c + (2 * t * d * c if c != d else 0) + 4 * d * c
    layer = 12 * m * d * d + 6 * m * d * config["intermediate_size"] + 4 * m * t * d
    scores = 4 * m * m * d
    layer_text = 4 * t * d * d + 12 * d * d
    ends = 2 * t * config["encoder_hidden_size"] * d + 2 * n * e * c
    ends += 2 * d * (config["cond_embed_dim"] + config["micro_cond_embed_dim"] + d)
    head = 2 * n * e * (c + config["codebook_size"])
    forward = ends + 2 * (blocks * (block + block_text) + resample) + 4 * m * c * d + head
    forward += layers * (layer + scores + layer_text)
    if task == "adapter":
        backward = layers * (layer + 2 * scores) + 2 * m * c * d + blocks * block + resample + head
        return job.batch * (forward + backward)
    return forward * {"full": 3 * job.batch, "sample": 2 * job.steps, "style": 3 * job.steps}[task]


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (f"{x:.3g}" for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def _rows(job: Job, task: str, measured: dict[str, Measured], *, flops: float, tflops: float) -> list[str]:
    """One line for each arm that ours is compared with. `tflops`: the device's peak, 0 for no column."""
    label, unit, others = _TASKS[task]
    ours, rows = measured["ours"], []
    for other in others or (None,):
        theirs = measured.get(other)
        cells = [label + (f"; {other}" if other else ""), unit, _spread(ours.rates)]
        if theirs:
            ratios = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
            cells += [_spread(theirs.rates), f"×{_spread(ratios)}", f"{ours.peak:,.0f}", f"{theirs.peak:,.0f}"]
            cells += [f"×{ours.peak / theirs.peak:.2f}"]
        else:
            cells += ["–", "–", f"{ours.peak:,.0f}", "–", "–"]
        if tflops:
            used = [statistics.median(arm.rates) * flops / tflops / 1e12 if arm else None for arm in (ours, theirs)]
            cells += ["–" if share is None else f"{share:.1%}" for share in used]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _notes(job: Job, found: dict[str, dict[str, Measured]], *, check: str, load: float, tflops: float) -> list[str]:
    gpu = job.device == "gpu"
    precision = "bfloat16 on float32 weights (the reference's pipeline: bfloat16 weights)" if gpu else "float32"
    first = next(iter(found.values()))
    memory = "the most that the framework's allocator had in use on the device"
    if not gpu:
        imports = ", ".join(f"{arm} {m.imports:,.0f}" for arm, m in first.items() if arm != _CACHED)
        memory = f"peak resident set of the arm's own process, of which after the imports alone: {imports}"
    warm = "; ".join(
        f"{_TASKS[task][0]}: " + ", ".join(f"{arm} {m.warm_up:.1f}" for arm, m in arms.items())
        for task, arms in found.items()
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "diffusers", "transformers"))
    name = job.folder.parent.name if job.folder.name == "muse" else job.folder.name
    lines = [
        f"{name} on the {job.device}, {precision}, batch {job.batch}; {job.steps} decoding steps, guidance "
        f"{GUIDANCE:g}, images decoded; adapter of rank {RANK}, shared; Adam; ours {job.steps_per_call} steps a call. "
        f"Median (min–max) of {len(first['ours'].rates)} turns of {job.train_steps} training steps or "
        f"{job.batches * job.batch} images, the arms in turn.",
        check,
        "The reference trainer, train_amused.py, needs torchvision, datasets and wandb, so its modules run in the same "
        "loop here, with images and token ids already in memory. Like it, `reference` encodes images and prompts in "
        "every step (prompts once, if it is given a single image); "
        f"`{_CACHED}` is the same loop without that, which is how ours trains.",
        f"Memory: {memory}.",
        f"Seconds to load, encode, compile and take the first turn: {warm}.",
        f"{os.cpu_count()} cores, {job.torch_threads} torch threads, load average before the run {load:.1f}; "
        f"{libraries}.",
    ]
    if tflops:
        lines.append(f"FLOP utilisation counts the transformer's matrix products; assumed peak {tflops:g} TFLOP/s.")
    return lines


if __name__ == "__main__":
    main()
