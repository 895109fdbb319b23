"""CLIP: the judge, and the text tower of the other models."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from transformers import PreTrainedTokenizerBase

from styledrop_jax import log
from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import ClipSettings
from styledrop_jax.emoji.tasks import base
from styledrop_jax.io import sheets
from styledrop_jax.metrics import clip_scores
from styledrop_jax.models import clip
from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer, tokenize, train_tokenizer


def _loss(
    model: clip.Clip, batch: dict[str, jax.Array], keys: jax.Array, *, seen: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The symmetric contrastive loss of images and captions (Radford et al., 2103.00020, Fig. 3).

    The model looks at a random share `seen` of the patches of each image (FLIP, 2212.00794).
    """
    patches = (model.config.vision.image_size // model.config.vision.patch_size) ** 2
    orders = jax.vmap(lambda key: jax.random.permutation(key, patches))(keys)
    kept = orders[:, : round(seen * patches)] if seen < 1 else None
    logits = model(batch["ids"], base.to_floats(batch["images"]), kept)  # [b, b]
    labels = jnp.arange(logits.shape[0])
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    return (rows + columns).mean() / 2, {"accuracy": (logits.argmax(-1) == labels).mean()}


def varied(image: np.ndarray, caption: str, rng: np.random.Generator) -> np.ndarray:
    """An image turned, stretched and moved a little; half are mirrored if the caption allows it.

    Seven artists drew each thing once. Without this CLIP learns their drawings, not what the
    drawings of a thing have in common. A caption that names a side is not mirrored.

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
    middle = np.array([w, h]) / 2
    pad = h // 4
    offset = middle + pad - matrix @ middle + rng.uniform(-3, 3, 2)
    coefficients = np.column_stack([matrix, offset]).ravel().tolist()
    bordered = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    moved = bordered.transform(
        (w, h), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _start(
    settings: ClipSettings, data: Corpus, folder: Path
) -> tuple[clip.Clip, PreTrainedTokenizerBase]:
    """The model before training and its tokenizer, which `folder` keeps if it is trained here."""
    if settings.init:
        given = clip_scores.ClipScorer.load(Path(settings.init))
        return given.model, given.tokenizer
    if not (folder / "tokenizer.json").exists():
        trained = train_tokenizer(data.captions(), settings.vocab_size, settings.max_length)
        save_tokenizer(trained, folder)
    tokenizer = load_tokenizer(folder)
    config = clip.ClipConfig.emoji64(
        vocab_size=len(tokenizer),
        width=settings.width,
        text_layers=settings.text_layers,
        vision_layers=settings.vision_layers,
    )
    return clip.Clip(config, rngs=nnx.Rngs(settings.seed)), tokenizer


def task(settings: ClipSettings, data: Corpus, workdir: Path) -> base.Task[clip.Clip]:
    """Trains both towers; from `settings.init`, a `clip` folder, the vision tower alone."""
    size = settings.batch_size
    model, tokenizer = _start(settings, data, workdir / "tokenizer")

    def batches(start: int, count: int) -> dict[str, jax.Array]:
        images, captions = base.examples(data, settings, start * size, count * size)
        for i, caption in enumerate(captions):
            rng = np.random.default_rng((settings.seed, start * size + i))
            images[i] = varied(images[i], caption, rng)
        ids = tokenize(tokenizer, captions, settings.max_length)
        return {
            "images": jnp.asarray(images).reshape(count, size, *images.shape[1:]),
            "ids": jnp.asarray(ids).reshape(count, size, -1),
        }

    compare = nnx.jit(lambda model, ids, images: model(ids, base.to_floats(images)))

    def sheet(trained: clip.Clip) -> np.ndarray:
        images, captions = data.held_out_pairs(200)
        ids = tokenize(tokenizer, captions, settings.max_length)
        best = np.argsort(-np.asarray(compare(trained, ids, images)), axis=1)
        is_own = best == np.arange(len(captions))[:, None]
        log.say(
            f"clip: image→text recall@1 {is_own[:, :1].any(1).mean():.1%}, "
            f"@5 {is_own[:, :5].any(1).mean():.1%} among {len(captions)} held-out pairs"
        )
        nearest = [captions[row[0]] for row in best[:32]]
        return sheets.grid(list(images[:32]), columns=8, captions=nearest)

    def export(trained: clip.Clip, out: Path) -> None:
        base.save_component(out / "clip", trained, clip.RULES, model.config.to_dict())
        save_tokenizer(tokenizer, out / "clip")

    vision = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("text")))
    return base.Task(
        model=model,
        trainable=vision if settings.init else nnx.Param,
        loss=functools.partial(_loss, seen=settings.seen),
        batches=batches,
        sheet=sheet,
        export=export,
    )
