"""Stable Diffusion: DreamBooth steps/s, images/s and peak memory against the reference PyTorch modules, in one run.

    source launch/environment.sh dev
    python benchmarks/sd_vs_reference.py --device cpu
    python benchmarks/sd_vs_reference.py --random sd15 --device gpu

Measures as muse_vs_reference.py does. Before anything is timed, both sides compute one DreamBooth batch at the same
noise and timesteps in float32, and draw the same noise: if the U-Net's outputs differ by more than 1e-4, or the loss,
its gradient, or what the other parts make of the same inputs does not agree, there are no ratios.
"""

import argparse
import functools
import json
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from harness import CACHED, CHECKED, Benchmark, Side, Task, make_job, process, read_flags, run
from sides.job import RANK, Job

_RANDOM = ("tiny", "emoji64", "sd15")
_GUIDANCE = 7.5  # the reference's default
_CAPTIONS = "a sks crown", "a crown"
_TASKS = {
    "full": Task("DreamBooth, whole U-Net", "steps/s", ("reference", CACHED)),
    "lora": Task("DreamBooth, LoRA", "steps/s", ("reference", CACHED)),
    "sample": Task("sampling, DDIM, guided (2 branches)", "images/s", ("reference",)),
}
_FORWARDS = {
    "full": 3,
    "lora": 2,
}  # a training step's worth: LoRA's needs the gradients of activations, not of weights
_LIMITS = {
    "output": 1e-4,
    "loss": 1e-5,
    "gradient": 1e-3,
    "text": 1e-4,
    "latents": 1e-3,
    "images": 1e-3,
}
_REFERENCE = (
    "The reference trainers, train_dreambooth.py and train_dreambooth_lora.py, need accelerate, torchvision and peft, "
    "so their modules run in the same loop here, with images and token ids already in memory, and without gradient "
    "clipping and weight decay, which ours has not either. Like them, `reference` encodes images and prompts in every "
    f"step; `{CACHED}` is the same loop without that, which is how ours trains."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, help="a diffusers folder")
    weights.add_argument(
        "--random",
        choices=_RANDOM,
        default="emoji64",
        help="random weights of that size (default emoji64)",
    )
    flags = read_flags(parser, _TASKS, steps=20)
    with tempfile.TemporaryDirectory() as work:
        job = _job(flags, Path(work))
        told = {"guidance": _GUIDANCE, "captions": _CAPTIONS}
        benchmark = Benchmark(
            side=functools.partial(_side, told=told),
            tasks=_TASKS,
            limits=_LIMITS,
            flops=functools.partial(_flops, job),
            setting=f"a step has that many images of the subject and as many of its class; {job.steps} steps of DDIM, "
            f"guidance {_GUIDANCE:g}; LoRA of rank {RANK} on the attention",
            reference=_REFERENCE,
        )
        run(benchmark, job, flags)


def _side(arm: str, *, told: dict) -> Side:
    if arm == "ours":
        from sides import jax_loops, sd_ours

        prepare, check, peak = sd_ours.prepare, sd_ours.check, jax_loops.peak
    else:
        from sides import sd_reference, torch_loops

        prepare = functools.partial(sd_reference.prepare, cached=arm == CACHED)
        check, peak = sd_reference.check, torch_loops.peak
    return Side(functools.partial(prepare, **told), functools.partial(check, **told), peak)


def _write_random(_pipe: Connection, folder: Path, name: str) -> None:
    from sides import sd_reference

    sd_reference.write_random(folder, name)


def _count_flops(pipe: Connection, folder: Path) -> None:
    from sides import sd_ours

    pipe.send(sd_ours.forward_flops(folder))


def _job(flags: argparse.Namespace, work: Path) -> Job:
    """Writes the model if its weights are to be random, and the inputs: the bundled pictures, noise and timesteps."""
    folder = flags.weights
    if not folder:
        folder = work / flags.random
        with process(_write_random, folder, flags.random):
            pass
    if not (folder / "unet").is_dir():
        raise SystemExit(
            f"--weights {folder}: no diffusers folder of a Stable Diffusion; expected one, or --random"
        )
    denoiser, codec, schedule = (
        json.loads((folder / name).read_text())
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    side, channels = denoiser["sample_size"], denoiser["in_channels"]
    job = make_job(
        flags, folder, work, pixels=side * 2 ** (len(codec["block_out_channels"]) - 1), copies=2
    )
    rng, count = np.random.default_rng(0), 2 * min(CHECKED, job.batch)
    np.savez(
        work / "check.npz",
        timesteps=rng.integers(0, schedule["num_train_timesteps"], count),
        noise=rng.standard_normal((count, side, side, channels), np.float32),
    )
    return job


def _flops(job: Job, task: str) -> float:
    """Floating-point operations of the U-Net in one unit of a task: a step, or an image."""
    with process(_count_flops, job.folder) as pipe:
        forward = pipe.recv()
    return forward * (2 * job.steps if task == "sample" else _FORWARDS[task] * 2 * job.batch)


if __name__ == "__main__":
    main()
