"""Muse against the reference PyTorch modules: training steps/s, images/s and peak memory.

    source launch/environment.sh dev
    python benchmarks/muse_vs_reference.py --model emoji128-muse --device cpu
    python benchmarks/muse_vs_reference.py --model amused-256 --device gpu    # random weights

Prints one markdown table; both sides have the same weights. Every arm runs in a process of its own,
so that its peak memory is its own; the arms of a row take turns (A B A B), so that a change of the
machine's speed meets all of them. Before anything is timed, both sides compute the same masked
batch in float32 through the same adapter: if logits, loss, gradient or decoded images differ by
more than 1e-3, there are no ratios.
"""

import argparse
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    ASSETS,
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

_RANDOM = ("tiny", "amused-256", "amused-512")
_GUIDANCE = 10.0  # aMUSEd's default scale
_TASKS = {
    "adapter": Task("StyleDrop adapter, training", "steps/s", ("reference", CACHED)),
    "full": Task("whole transformer, training", "steps/s", ("reference", CACHED)),
    "sample": Task("sampling, guided (2 branches)", "images/s", ("reference",)),
    "style": Task("sampling, StyleDrop (3 branches)", "images/s", ()),
}
_LIMITS = {"logits": 1e-3, "loss": 1e-3, "images": 1e-3, "gradient": 1e-3, "tokens": 0.01}
_REFERENCE = (
    "The reference trainer, train_amused.py, needs torchvision, datasets and wandb, so its modules "
    "run in the same loop here, with images and token ids already in memory. Like it, `reference` "
    "encodes images and prompts in every step (prompts once, if it is given a single image); "
    f"`{CACHED}` is the same loop without that, which is how ours trains."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = "emoji128-muse (ships with the package)"
    model = f"{shipped}; {', '.join(_RANDOM)} (random weights); or a diffusers folder"
    parser.add_argument("--model", default="emoji128-muse", help=model)
    flags = read_flags(parser, _TASKS, steps=12)
    with tempfile.TemporaryDirectory() as work:
        folder = _folder(flags.model, Path(work))
        config = _config(folder, "transformer")
        job = _job(flags, folder, Path(work), config)
        text_length = _config(folder, "text_encoder")["max_position_embeddings"]
        benchmark = Benchmark(
            side=_side,
            tasks=_TASKS,
            limits=_LIMITS,
            flops=functools.partial(_flops, config, text_length, job),
            setting=(
                f"{job.steps} steps of decoding, guidance {_GUIDANCE:g}; "
                f"adapter of rank {RANK}, shared"
            ),
            reference=_REFERENCE,
        )
        run(benchmark, job, flags)


def _side(arm: str) -> Side:
    if arm == "ours":
        from sides import jax_loops, muse_ours

        prepare = functools.partial(muse_ours.prepare, guidance_scale=_GUIDANCE)
        return Side(prepare, muse_ours.check, jax_loops.peak)
    from sides import muse_reference, torch_loops

    prepare = functools.partial(
        muse_reference.prepare, cached=arm == CACHED, guidance_scale=_GUIDANCE
    )
    return Side(prepare, muse_reference.check, torch_loops.peak)


def _folder(model: str, work: Path) -> Path:
    """The folder of a model; one of random weights is written first."""
    for folder in (ASSETS / model / "muse", Path(model).expanduser()):
        if folder.is_dir():
            return folder
    if model not in _RANDOM:
        names = ", ".join(_RANDOM)
        raise SystemExit(f"--model {model}: no such folder, and not one of emoji128-muse, {names}")
    with process(_write_random, work / model, model):
        pass
    return work / model


def _write_random(_pipe: Pipe, folder: Path, name: str) -> None:
    from sides import muse_reference

    muse_reference.write_random(folder, name)


def _config(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_text())


def _job(flags: argparse.Namespace, folder: Path, work: Path, config: Mapping[str, Any]) -> Job:
    """Writes the inputs: the bundled images and their prompts, and what the check masks.

    As much is masked of each image, so that the mean over all masked tokens is the mean of the
    images' means.
    """
    side = config["sample_size"]
    blocks = len(_config(folder, "vqvae")["block_out_channels"])
    job = make_job(flags, folder, work, pixels=side * 2 ** (blocks - 1))
    rng = np.random.default_rng(0)
    shape = (min(CHECKED, job.batch), side, side)
    half = np.tile(np.arange(side * side) < side * side // 2, (shape[0], 1))
    mask = rng.permuted(half, axis=1).reshape(shape)
    np.savez(work / "check.npz", tokens=rng.integers(0, config["codebook_size"], shape), mask=mask)
    return job


def _flops(config: Mapping[str, Any], text_length: int, job: Job, task: str) -> float:
    """Floating-point operations of the transformer's matrix products for one unit of a task.

    A training step of the adapter is a forward, and the gradients of activations, not of weights,
    from the first layer on; one of the whole transformer is three forwards.
    """
    d = config["hidden_size"]
    c = config["block_out_channels"]
    e = config["in_channels"]
    t = text_length
    layers = config["num_hidden_layers"]
    blocks = config["num_res_blocks"]
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


if __name__ == "__main__":
    main()
