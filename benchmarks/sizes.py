"""Which size of each shipped model a short training makes the best of: three sizes, equal work.

    python benchmarks/sizes.py --corpus corpus --workdir runs/sizes [--teraflop 8] [--only vq,clip]

Each size trains from random weights with the same floating-point operations. It has its config's
settings but for those of `FIXED` and the number of steps, which XLA's count of a step's operations
sets. The tokenizer and the autoencoder are judged by the mean absolute error on held-out concepts,
CLIP by its image → text recall among 200 held-out pairs, Muse and the U-Net by the mean loss over
the last tenth of their steps, on examples mostly not seen before. For those two the table also has
the images a second that they sample. Resumable.
"""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flags import of_corpus
from flax import nnx
from safetensors.numpy import load_file

from styledrop_jax import config_files, guidance, log
from styledrop_jax.emoji import corpus, settings
from styledrop_jax.emoji.pretrain import TASKS, pretrain
from styledrop_jax.emoji.settings import CommonSettings
from styledrop_jax.emoji.tasks import muse, unet
from styledrop_jax.emoji.tasks.base import Task
from styledrop_jax.io import hub
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer, recall
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.load import load
from styledrop_jax.training import loop

SIZES: dict[str, tuple[dict[str, int], ...]] = {
    "vq": ({"width": 4}, {"width": 8}, {"width": 16}),
    "clip": ({"width": 96}, {"width": 192}, {"width": 288}),
    "muse": ({"width": 96, "layers": 4}, {"width": 192, "layers": 6}, {"width": 288, "layers": 8}),
    "vae": ({"width": 4}, {"width": 8}, {"width": 16}),
    "unet": ({"width": 32}, {"width": 48}, {"width": 80}),
}
"""The second is what ships; of CLIP, one 128 wide."""
_MUSE = hub.SHIPPED / "emoji128-muse"
FIXED: dict[str, dict[str, Any]] = {
    "vq": {},
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
        "size": 128,
        "clip": str(_MUSE),
        "codec": str(_MUSE / "vqvae"),
        "pack": 16000,
    },
    "unet": {
        "size": 128,
        "clip": str(hub.SHIPPED / "emoji128"),
        "codec": str(hub.SHIPPED / "emoji128/vae"),
        "pack": 16000,
    },
    "vae": {"init": ""},
}
WEIGHTS = {
    "vq": "vqvae",
    "clip": "clip",
    "muse": "muse/transformer",
    "vae": "vae",
    "unet": "sd/unet",
}
SAMPLE = {"muse": ("muse", muse.SAMPLE), "unet": ("sd", unet.SAMPLE)}
"""The exported pipeline of a denoiser, and how it samples."""
_HEAD = "| model | size | parameters | Mflop an example | examples | judged | pictures/s |"


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument(
        "--teraflop", type=float, default=8, help="10^12 operations that each size may take"
    )
    parser.add_argument("--only", default="", help="models, with commas; all else")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus)
    rows = []
    for name in flags.only.split(",") if flags.only else SIZES:
        for size in SIZES[name]:
            words = ", ".join(f"{field} {value}" for field, value in size.items())
            log.say(f"{name}, {words}")
            rows.append(" | ".join([name, words, *_row(name, size, data, flags)]))
    print(f"{_HEAD}\n{'|---' * 7}|")
    for row in rows:
        print(f"| {row} |")


def _row(
    name: str, size: dict[str, int], data: corpus.Corpus, flags: argparse.Namespace
) -> list[str]:
    """The cells of one size after its name."""
    folder = flags.workdir / "-".join([name, *map(str, size.values())])
    folder.mkdir(parents=True, exist_ok=True)
    config = config_files.load(f"pretrain_{name}", settings.complete).to_dict()
    value = settings.from_config(config | FIXED[name] | size | {"corpus": str(flags.corpus)})
    # The examples that a denoiser learns from are encoded once for all its sizes.
    own = folder / "pack.safetensors"
    shared = flags.workdir / f"{name}.safetensors"
    if shared.exists() and not own.exists():
        shutil.copyfile(shared, own)
    cost = _flops(TASKS[name](value, data, folder), value)
    if own.exists() and not shared.exists():
        shutil.copyfile(own, shared)
    steps = max(1, round(flags.teraflop * 1e12 / cost))
    pretrain(dataclasses.replace(value, steps=steps), folder)
    (file,) = (folder / "export" / WEIGHTS[name]).glob("*.safetensors")
    parameters = sum(tensor.size for tensor in load_file(file).values())
    return [
        f"{parameters:,}",
        f"{cost / value.batch_size / 1e6:.0f}",
        f"{steps * value.batch_size:,}",
        _judged(name, folder, data),
        f"{_rate(name, folder / 'export'):.1f}" if name in SAMPLE else "–",
    ]


def _flops(task: Task[Any], value: CommonSettings) -> float:
    """Floating-point operations of a step: loss and gradient."""
    graphdef, params, frozen = loop.split(task.model, task.trainable)
    batch = jax.tree.map(lambda x: x[0], task.batches(0, 1))
    keys = jax.random.split(jax.random.key(0), value.batch_size)

    def loss(params: Any) -> jax.Array:
        return task.loss(nnx.merge(graphdef, params, frozen), batch, keys)[0]

    cost: Any = jax.jit(jax.grad(loss)).lower(params).cost_analysis()
    return cost["flops"]


def _judged(name: str, folder: Path, data: corpus.Corpus) -> str:
    if name in SAMPLE:
        losses = [row["loss"] for row in log.read_metrics(folder, name)]
        return f"loss {np.mean(losses[-len(losses) // 10 :]):.4f}"
    if name == "clip":
        images, captions = data.held_out_pairs(200)
        scorer = ClipScorer.load(folder / "export" / "clip")
        similarity = scorer.image_features(images / 255) @ scorer.text_features(captions).T
        return f"recall@1 {recall(similarity, 1):.1%}, @5 {recall(similarity, 5):.1%}"
    images = (data.held_out_images(376) / 255).astype(np.float32)
    restored = _restore(name, folder / "export")(images)
    return f"error {np.abs(np.clip(restored, 0, 1) - images).mean():.4f}"


def _restore(name: str, export: Path) -> Callable[[np.ndarray], jax.Array]:
    """Images → what the exported tokenizer or autoencoder makes of them again."""
    if name == "vq":
        tokenizer = muse_files.VQVAE.load(export / "vqvae")
        return nnx.jit(lambda images: tokenizer.decode(tokenizer.encode(images)))
    autoencoder = stable_diffusion_files.VAE.load(export / "vae")
    return nnx.jit(lambda images: autoencoder.decode(autoencoder.encode(images).mode()))


def _rate(name: str, export: Path) -> float:
    """Images a second, of 30 in batches of 15, once compiled."""
    folder, sample = SAMPLE[name]
    sample = dataclasses.replace(sample, batch_size=15)
    model = guidance.bare(load(str(export / folder)))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        branches = guidance.classifier_free(model, POOL, sample)
        for _ in guidance.generate(branches, range(len(POOL)), settings=sample):
            pass
        seconds.append(time.monotonic() - start)
    return len(POOL) / min(seconds)


if __name__ == "__main__":
    main()
