"""CLIP: the judge, and the text tower of the other models."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from styledrop_jax import log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks.base import Task, examples, unit
from styledrop_jax.io import hub, pretrained, sheets
from styledrop_jax.metrics import clip_scores
from styledrop_jax.models import clip
from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer, tokenize, train_tokenizer


def _clip_loss(
    model: clip.Clip, batch: dict, keys: jax.Array, *, seen: float
) -> tuple[jax.Array, dict]:
    """The symmetric contrastive loss (Radford et al., 2103.00020, Fig. 3) of a batch of pictures and captions.

    Of each picture a random share `seen` of the patches is looked at (FLIP, 2212.00794).
    """
    patches = (model.config.vision.image_size // model.config.vision.patch_size) ** 2
    orders = jax.vmap(lambda key: jax.random.permutation(key, patches))(keys)
    kept = orders[:, : round(seen * patches)] if seen < 1 else None
    logits = model(batch["ids"], unit(batch["images"]), kept)  # [b, b]
    labels = jnp.arange(logits.shape[0])
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    return (rows + columns).mean() / 2, {"accuracy": (logits.argmax(-1) == labels).mean()}


def varied(image: np.ndarray, caption: str, rng: np.random.Generator) -> np.ndarray:
    """A drawing turned, stretched and moved a little, half of those mirrored whose caption names no side.

    Seven artists drew each thing once: without this CLIP learns their drawings, not what they have in common.

    Args:
        image: uint8 [h, w, 3].
        caption: its caption.
        rng: the randomness.
    """
    h, w, _ = image.shape
    turn, scale, stretch, slant = rng.uniform((-0.2, -0.15, -0.1, -0.1), (0.2, 0.15, 0.1, 0.1))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ [[np.exp(scale + stretch), slant], [0, np.exp(scale - stretch)]]
    if rng.random() < 0.5 and not re.search(r"\b(left|right)\b", caption):
        matrix[:, 0] *= -1
    middle, pad = np.array([w, h]) / 2, h // 4
    offset = middle + pad - matrix @ middle + rng.uniform(-3, 3, 2)
    coefficients = np.column_stack([matrix, offset]).ravel()
    bordered = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    return np.asarray(
        bordered.transform((w, h), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    )


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    """Trains both towers; from `config.init`, a `clip` folder, the vision tower alone."""
    size = config.batch_size
    folder = workdir / "tokenizer"
    if config.init:
        start = clip_scores.ClipScorer.load(Path(config.init))
        model, tokenizer = start.model, start.tokenizer
    else:
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(
                train_tokenizer(data.captions(), config.vocab_size, config.max_length), folder
            )
        tokenizer = load_tokenizer(folder)
        layers = {name: config[name] for name in ("text_layers", "vision_layers")}
        sizes = clip.ClipConfig.emoji64(vocab_size=len(tokenizer), width=config.width, **layers)
        model = clip.Clip(sizes, rngs=nnx.Rngs(config.seed))

    def batches(start: int, count: int) -> dict[str, jax.Array]:
        images, captions = examples(data, config, start * size, count * size)
        rngs = (
            np.random.default_rng((config.seed, i))
            for i in range(start * size, (start + count) * size)
        )
        images = np.stack([varied(*one) for one in zip(images, captions, rngs, strict=True)])
        ids = tokenize(tokenizer, captions, config.max_length)
        return {
            "images": jnp.asarray(images).reshape(count, size, *images.shape[1:]),
            "ids": jnp.asarray(ids).reshape(count, size, -1),
        }

    def picture(trained: clip.Clip) -> np.ndarray:
        images, captions = data.held_out_pairs(200)
        ids = tokenize(tokenizer, captions, config.max_length)
        logits = nnx.jit(lambda model, ids, x: model(ids, x))(trained, ids, unit(images))
        best = np.argsort(-np.asarray(logits), axis=1)
        hits = best == np.arange(len(captions))[:, None]
        log.say(
            f"clip: image→text recall@1 {hits[:, :1].any(1).mean():.1%}, @5 {hits[:, :5].any(1).mean():.1%} "
            f"among {len(captions)} held-out pairs"
        )
        shown = [captions[row[0]] for row in best[:32]]
        return sheets.grid([np.asarray(unit(x)) for x in images[:32]], columns=8, captions=shown)

    def export(trained: clip.Clip, out: Path) -> None:
        tensors = pretrained.export(trained, clip.RULES, dtype=np.float16)
        hub.save_component(out / "clip", model.config.to_dict(), tensors)
        save_tokenizer(tokenizer, out / "clip")

    vision = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("text")))
    trainable = vision if config.init else nnx.Param
    loss = functools.partial(_clip_loss, seen=config.seen)
    return Task(
        model=model, loss=loss, batches=batches, picture=picture, export=export, trainable=trainable
    )
