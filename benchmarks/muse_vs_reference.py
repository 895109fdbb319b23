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
import functools
import json
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from harness import (
    ASSETS,
    CACHED,
    CHECKED,
    Benchmark,
    Side,
    Task,
    make_job,
    process,
    read_flags,
    run,
)
from sides.job import RANK, Job

_RANDOM = ("tiny", "amused-256", "amused-512")
_GUIDANCE = 10.0  # aMUSEd's default
_TASKS = {
    "adapter": Task("StyleDrop adapter, training", "steps/s", ("reference", CACHED)),
    "full": Task("whole transformer, training", "steps/s", ("reference", CACHED)),
    "sample": Task("sampling, guided (2 branches)", "images/s", ("reference",)),
    "style": Task("sampling, StyleDrop (3 branches)", "images/s", ()),
}
_REFERENCE = (
    "The reference trainer, train_amused.py, needs torchvision, datasets and wandb, so its modules run in the same "
    "loop here, with images and token ids already in memory. Like it, `reference` encodes images and prompts in every "
    f"step (prompts once, if it is given a single image); `{CACHED}` is the same loop without that, which is how ours "
    "trains."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = "emoji64 (ships with the package); amused-256, amused-512, tiny (random weights); or a diffusers folder"
    parser.add_argument("--model", default="emoji64", help=model)
    flags = read_flags(parser, _TASKS, steps=12)
    with tempfile.TemporaryDirectory() as work:
        job, config = _job(flags, Path(work))
        benchmark = Benchmark(
            side=_side,
            tasks=_TASKS,
            limits={"logits": 1e-3, "loss": 1e-3, "images": 1e-3, "gradient": 1e-3, "tokens": 0.01},
            flops=functools.partial(_flops, config, job),
            setting=f"{job.steps} steps of decoding, guidance {_GUIDANCE:g}; adapter of rank {RANK}, shared",
            reference=_REFERENCE,
        )
        run(benchmark, job, flags)


def _side(arm: str) -> Side:
    if arm == "ours":
        from sides import jax_loops, muse_ours

        return Side(
            functools.partial(muse_ours.prepare, guidance=_GUIDANCE),
            muse_ours.check,
            jax_loops.peak,
        )
    from sides import muse_reference, torch_loops

    prepare = functools.partial(muse_reference.prepare, cached=arm == CACHED, guidance=_GUIDANCE)
    return Side(prepare, muse_reference.check, torch_loops.peak)


def _write_random(_pipe: Connection, folder: Path, name: str) -> None:
    from sides import muse_reference

    muse_reference.write_random(folder, name)


def _job(flags: argparse.Namespace, work: Path) -> tuple[Job, dict]:
    """Finds or writes the model, and writes the inputs: the bundled pictures and their prompts.

    Returns:
        the job; the transformer's config with the prompts' `text_length`.
    """
    shipped = ASSETS / flags.model / "muse"
    folder = shipped if shipped.is_dir() else Path(flags.model).expanduser()
    if not folder.is_dir():
        if flags.model not in _RANDOM:
            raise SystemExit(
                f"--model {flags.model}: no such folder, and not one of emoji64, {', '.join(_RANDOM)}"
            )
        folder = work / flags.model
        with process(_write_random, folder, flags.model):
            pass
    config, text, codec = (
        json.loads((folder / part / "config.json").read_text())
        for part in ("transformer", "text_encoder", "vqvae")
    )
    side = config["sample_size"]
    job = make_job(flags, folder, work, pixels=side * 2 ** (len(codec["block_out_channels"]) - 1))
    rng, shape = np.random.default_rng(0), (min(CHECKED, job.batch), side, side)
    half = (
        np.arange(side * side) < side * side // 2
    )  # the same count in each: both means are then one
    mask = np.stack([rng.permutation(half) for _ in range(shape[0])]).reshape(shape)
    np.savez(work / "check.npz", tokens=rng.integers(0, config["codebook_size"], shape), mask=mask)
    return job, config | {"text_length": text["max_position_embeddings"]}


def _flops(config: dict, job: Job, task: str) -> float:
    """Floating-point operations of the transformer's matrix products for one unit of a task.

    A training step of the adapter is a forward, and the gradients of activations, not of weights, from the first
    layer on; one of the whole transformer is three forwards.
    """
    d, c, e, t = (
        config["hidden_size"],
        config["block_out_channels"],
        config["in_channels"],
        config["text_length"],
    )
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


if __name__ == "__main__":
    main()
