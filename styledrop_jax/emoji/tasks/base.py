"""What the tasks share: their description, the corpus as batches, how components are written."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from styledrop_jax import log
from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import CommonSettings
from styledrop_jax.io import hub, pretrained, sheets
from styledrop_jax.io.files import write_json
from styledrop_jax.models import clip
from styledrop_jax.models.rules import Rules
from styledrop_jax.models.tokenizer import save_tokenizer

M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Generic[M]):
    """What `pretrain` needs to know of one model.

    Attributes:
        model: freshly initialised, or with frozen parts filled in.
        trainable: what the optimiser changes.
        loss: see `step.Loss`.
        batches: see `loop.fit`.
        after: see `loop.fit`.
        sheet: an image [h, w, 3] uint8 that shows what the trained model does.
        export: writes the trained model below a folder.
    """

    model: M
    loss: Callable[[M, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    batches: Callable[[int, int], Any]
    sheet: Callable[[M], np.ndarray]
    export: Callable[[M, Path], None]
    trainable: nnx.filterlib.Filter = nnx.Param
    after: Callable[..., dict] | None = None


def examples(
    data: Corpus, settings: CommonSettings, start: int, count: int
) -> tuple[np.ndarray, list[str]]:
    """Examples [start, start + count) of the training stream.

    Returns:
        Images uint8 [n, 64, 64, 3] and their captions.
    """
    images = []
    captions = []
    for index in range(start, start + count):
        image, caption, _ = data.example(index, vocabulary=settings.vocabulary, seed=settings.seed)
        images.append(image)
        captions.append(caption)
    return np.stack(images), captions


def image_batches(data: Corpus, settings: CommonSettings) -> Callable[[int, int], jax.Array]:
    """The `batches` of a task that sees images alone: uint8 [steps, batch, 64, 64, 3]."""
    size = settings.batch_size

    def batches(start: int, count: int) -> jax.Array:
        images, _ = examples(data, settings, start * size, count * size)
        return jnp.asarray(images).reshape(count, size, *images.shape[1:])

    return batches


def to_floats(images: jax.Array | np.ndarray) -> jax.Array:
    """uint8 → float32 in [0, 1]."""
    return jnp.asarray(images).astype(jnp.float32) / 255


def reconstruction_loss(error: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L1 + L2 + L1 of the slopes of an error [b, h, w, 3], all of them means; and the L1 alone."""
    down = jnp.mean(jnp.abs(jnp.diff(error, axis=1)))
    across = jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    l1 = jnp.mean(jnp.abs(error))
    return l1 + jnp.mean(error**2) + (down + across), l1


def reconstructions(task: str, images: np.ndarray, restored: jax.Array) -> np.ndarray:
    """A sheet of images, each beside its reconstruction; says the mean error.

    Args:
        task: the name that is said.
        images: uint8 [n, h, w, 3].
        restored: float in [0, 1], of the same shape.
    """
    given = np.asarray(to_floats(images))
    found = np.asarray(restored)
    log.say(f"{task}: mean absolute error on held-out concepts {np.abs(found - given).mean():.4f}")
    pairs = np.stack([given, found], axis=1).reshape(-1, *images.shape[1:])
    return sheets.grid(list(pairs), columns=8)


def save_component(
    folder: Path, module: nnx.Module, rules: Rules, config: Mapping[str, Any]
) -> None:
    """Writes a model's config and its weights, as float16."""
    hub.save_component(folder, config, _half_precision(module, rules))


def save_text(
    text: clip.ClipText, tokenizer: PreTrainedTokenizerBase, folder: Path, *, projection: bool
) -> None:
    """Writes `text_encoder`, with its projection or without, and `tokenizer` of a pipeline."""
    tensors = _half_precision(text, clip.RULES)
    if not projection:
        tensors.pop("text_projection.weight", None)
    config = dataclasses.replace(text.config, projection=projection)
    hub.save_component(folder / "text_encoder", config.to_dict(), tensors)
    save_tokenizer(tokenizer, folder / "tokenizer")


def _half_precision(module: nnx.Module, rules: Rules) -> dict[str, np.ndarray]:
    tensors = pretrained.export(module, rules)
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def save_vocabulary(data: Corpus, settings: CommonSettings, path: Path) -> None:
    """Writes the names of the concepts that the training stream showed."""
    names: set[str] = set()
    for known, is_kept in zip(data.names, data.vocabulary(settings.vocabulary), strict=True):
        if is_kept:
            names.update(known)
    write_json(path, sorted(names))
