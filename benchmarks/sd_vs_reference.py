"""Stable Diffusion against the reference PyTorch modules: steps/s, images/s and peak memory.

    source launch/environment.sh dev
    python benchmarks/sd_vs_reference.py --device cpu
    python benchmarks/sd_vs_reference.py --random sd15 --device gpu

Trains as DreamBooth does, and measures as muse_vs_reference.py does. Before anything is timed, both
sides compute one DreamBooth batch at the same noise and timesteps in float32, and sample from the
same noise: if the U-Net's outputs differ by more than 1e-4, or the loss, its gradient, or what the
other parts make of the same inputs does not agree, there are no ratios.
"""

import argparse
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
from harness import (
    CACHED,
    CHECKED,
    Benchmark,
    Pipe,
    Side,
    Task,
    make_job,
    process,
    read_flags,
    run,
)
from sides.job import RANK, Job

_RANDOM = ("tiny", "emoji128", "sd15")
_GUIDANCE = 7.5  # the reference's default scale
_CAPTIONS = ("a sks crown", "a crown")
_TASKS = {
    "full": Task("DreamBooth, whole U-Net", "steps/s", ("reference", CACHED)),
    "lora": Task("DreamBooth, LoRA", "steps/s", ("reference", CACHED)),
    "sample": Task("sampling, DDIM, guided (2 branches)", "images/s", ("reference",)),
}
# A training step's worth: LoRA's needs the gradients of activations, not of weights.
_FORWARDS = {"full": 3, "lora": 2}
_LIMITS = {
    "output": 1e-4,
    "loss": 1e-5,
    "gradient": 1e-3,
    "text": 1e-4,
    "latents": 1e-3,
    "images": 1e-3,
}
_REFERENCE = (
    "The reference trainers, train_dreambooth.py and train_dreambooth_lora.py, need accelerate, "
    "torchvision and peft, so their modules run in the same loop here, with images and token ids "
    "already in memory, and without gradient clipping and weight decay, which ours has not either. "
    f"Like them, `reference` encodes images and prompts in every step; `{CACHED}` is the same loop "
    "without that, which is how ours trains."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, help="a diffusers folder")
    random = "random weights of that size (default emoji128)"
    weights.add_argument("--random", choices=_RANDOM, default="emoji128", help=random)
    flags = read_flags(parser, _TASKS, steps=20)
    with tempfile.TemporaryDirectory() as work:
        job = _job(flags, _folder(flags, Path(work)), Path(work))
        benchmark = Benchmark(
            side=_side,
            tasks=_TASKS,
            limits=_LIMITS,
            flops=functools.partial(_flops, job),
            setting=(
                "a step has that many images of the subject and as many of its class; "
                f"{job.steps} steps of DDIM, guidance {_GUIDANCE:g}; "
                f"LoRA of rank {RANK} on the attention"
            ),
            reference=_REFERENCE,
        )
        run(benchmark, job, flags)


def _side(arm: str) -> Side:
    if arm == "ours":
        from sides import jax_loops, sd_ours

        prepare = sd_ours.prepare
        check = sd_ours.check
        peak = jax_loops.peak
    else:
        from sides import sd_reference, torch_loops

        prepare = functools.partial(sd_reference.prepare, cached=arm == CACHED)
        check = sd_reference.check
        peak = torch_loops.peak
    return Side(
        functools.partial(prepare, guidance_scale=_GUIDANCE, captions=_CAPTIONS),
        functools.partial(check, guidance_scale=_GUIDANCE, captions=_CAPTIONS),
        peak,
    )


def _folder(flags: argparse.Namespace, work: Path) -> Path:
    """The folder of the model; one of random weights is written first."""
    folder = flags.weights
    if folder is None:
        folder = work / flags.random
        with process(_write_random, folder, flags.random):
            pass
    if not (folder / "unet").is_dir():
        raise SystemExit(
            f"--weights {folder}: no diffusers folder of a Stable Diffusion; "
            "expected one, or --random"
        )
    return folder


def _write_random(_pipe: Pipe, folder: Path, name: str) -> None:
    from sides import sd_reference

    sd_reference.write_random(folder, name)


def _job(flags: argparse.Namespace, folder: Path, work: Path) -> Job:
    """Writes the inputs: the bundled images, noise and timesteps."""
    denoiser = json.loads((folder / "unet" / "config.json").read_text())
    codec = json.loads((folder / "vae" / "config.json").read_text())
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    side = denoiser["sample_size"]
    factor = 2 ** (len(codec["block_out_channels"]) - 1)
    job = make_job(flags, folder, work, pixels=side * factor, copies=2)
    rng = np.random.default_rng(0)
    count = 2 * min(CHECKED, job.batch)
    shape = (count, side, side, denoiser["in_channels"])
    np.savez(
        work / "check.npz",
        timesteps=rng.integers(0, schedule["num_train_timesteps"], count),
        noise=rng.standard_normal(shape, np.float32),
    )
    return job


def _flops(job: Job, task: str) -> float:
    """Floating-point operations of the U-Net in one unit of a task: a step, or an image."""
    with process(_count_flops, job.folder) as pipe:
        forward = pipe.recv()
    return forward * (2 * job.steps if task == "sample" else _FORWARDS[task] * 2 * job.batch)


def _count_flops(pipe: Pipe, folder: Path) -> None:
    from sides import sd_ours

    pipe.send(sd_ours.forward_flops(folder))


if __name__ == "__main__":
    main()
