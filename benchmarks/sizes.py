"""Which size of each shipped model a short training makes the best of: three sizes, the same floating-point operations.

    python benchmarks/sizes.py --corpus corpus --workdir runs/sizes [--teraflop 8] [--only vq,clip]

Each size is a `styledrop pretrain` of its own from random weights, with its config's settings but those of `FIXED` and
the number of steps, which XLA's count of a step's operations sets. Judged are the tokenizer and the autoencoder by the
mean absolute error on held-out concepts, CLIP by its image → text recall among 200 held-out pairs, Muse and the U-Net
by the mean loss over the last tenth of their steps, on examples mostly not seen before; those two also by the pictures
a second that they draw. Resumable.
"""

import argparse
import shutil
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from styledrop_jax import config as schema
from styledrop_jax import guidance, log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.pretrain import TASKS, pretrain
from styledrop_jax.emoji.tasks.base import Task
from styledrop_jax.io import hub
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer, recall
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.training import loop

SIZES = {
    "vq": ({"width": 4}, {"width": 8}, {"width": 16}),
    "clip": ({"width": 96}, {"width": 192}, {"width": 288}),
    "muse": ({"width": 96, "layers": 4}, {"width": 192, "layers": 6}, {"width": 288, "layers": 8}),
    "vae": ({"width": 4}, {"width": 8}, {"width": 16}),
    "unet": ({"width": 32}, {"width": 48}, {"width": 80}),
}
"""The second is what ships; of CLIP, one 128 wide."""
_SHIPPED = hub.SHIPPED / "emoji64"
FIXED = {
    "clip": {
        "text_layers": 3,
        "vision_layers": 4,
        "seen": 1.0,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "warmup": 50,
        "precision": "float32",
    },
    "muse": {
        "clip": str(_SHIPPED / "muse"),
        "codec": str(_SHIPPED / "muse" / "vqvae"),
        "pack": 16000,
    },
    "unet": {"clip": str(_SHIPPED / "sd"), "codec": str(_SHIPPED / "sd" / "vae"), "pack": 16000},
    "vae": {"init": ""},
}
DRAWING = {
    "muse": SampleSettings(steps=12, temperature=2.0, lambda_b=1.0),
    "unet": SampleSettings(steps=20, lambda_b=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument(
        "--teraflop", type=float, default=8, help="10^12 operations that each size may take"
    )
    parser.add_argument("--only", default="", help="models, with commas; all else")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus)
    rows = []
    for name in [name for name in flags.only.split(",") if name] or SIZES:
        for size in SIZES[name]:
            words = ", ".join(f"{field} {value}" for field, value in size.items())
            log.say(f"{name}, {words}")
            rows.append(f"| {name} | {words} | " + " | ".join(_row(name, size, data, flags)) + " |")
    print(
        "| model | size | parameters | Mflop an example | examples | judged | pictures/s |\n"
        + "|---" * 7
        + "|"
    )
    print("\n".join(rows))


def _row(
    name: str, size: dict[str, int], data: corpus.Corpus, flags: argparse.Namespace
) -> list[str]:
    folder = flags.workdir / "-".join([name, *map(str, size.values())])
    settings = FIXED.get(name, {}) | size | {"corpus": str(flags.corpus)}
    words = [
        word for field, value in settings.items() for word in (f"--config.{field}", str(value))
    ]
    argv = ["--config", f"configs/pretrain_{name}.py", *words]
    config, _ = schema.parse(argv, schema=schema.pretrain_schema)
    pack, shared = folder / "pack.npz", flags.workdir / f"{name}.npz"
    if shared.exists() and not pack.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, pack)
    folder.mkdir(parents=True, exist_ok=True)
    cost = _flops(TASKS[name](config, data, folder), config)
    if pack.exists() and not shared.exists():
        shutil.copyfile(pack, shared)
    steps = max(1, round(flags.teraflop * 1e12 / cost))
    config, _ = schema.parse([*argv, "--config.steps", str(steps)], schema=schema.pretrain_schema)
    pretrain(config, folder)
    weights = {"muse": "muse/transformer", "unet": "sd/unet"}.get(
        name, {"vq": "vqvae"}.get(name, name)
    )
    (file,) = (folder / "export" / weights).glob("*.safetensors")
    parameters = sum(tensor.size for tensor in load_file(file).values())
    judged, rate = _judge(name, folder, data)
    return [
        f"{parameters:,}",
        f"{cost / config.batch_size / 1e6:.0f}",
        f"{steps * config.batch_size:,}",
        judged,
        rate,
    ]


def _flops(task: Task, config: ConfigDict) -> float:
    """Floating-point operations of a step: loss and gradient."""
    graphdef, params, frozen = loop.split(task.model, task.trainable)
    batch = jax.tree.map(lambda x: x[0], task.batches(0, 1))
    keys = jax.random.split(jax.random.key(0), config.batch_size)

    def loss(params: dict) -> jax.Array:
        return task.loss(nnx.merge(graphdef, params, frozen), batch, keys)[0]

    return jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]


def _judge(name: str, folder: Path, data: corpus.Corpus) -> tuple[str, str]:
    export = folder / "export"
    if name == "clip":
        images, captions = data.held_out_pairs(200)
        scorer = ClipScorer.load(export / "clip")
        similarity = scorer.image_features(images / 255) @ scorer.text_features(captions).T
        return f"recall@1 {recall(similarity, 1):.1%}, @5 {recall(similarity, 5):.1%}", "–"
    if name in DRAWING:
        losses = [row["loss"] for row in log.read_metrics(folder, name)]
        return f"loss {np.mean(losses[-len(losses) // 10 :]):.4f}", f"{_rate(name, export):.1f}"
    images = data.held_out_images(376)
    inputs = np.float32(images / 255)
    if name == "vq":
        codec = muse_files.VQVAE.load(export / "vqvae")
        again = nnx.jit(lambda model, x: model.decode(model.encode(x)))(codec, inputs)
    else:
        codec = stable_diffusion_files.VAE.load(export / "vae")
        again = nnx.jit(lambda model, x: model.decode(model.encode(x).mode()))(codec, inputs)
    return f"error {np.abs(np.clip(again, 0, 1) - inputs).mean():.4f}", "–"


def _rate(name: str, export: Path) -> float:
    """Pictures a second, of 30 in batches of 15, once compiled."""
    model = load(str(export / {"muse": "muse", "unet": "sd"}[name]))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        branches = guidance.base_branches(model, POOL, DRAWING[name])
        list(guidance.generate(branches, range(len(POOL)), settings=DRAWING[name], batch_size=15))
        seconds.append(time.monotonic() - start)
    return len(POOL) / min(seconds)


if __name__ == "__main__":
    main()
