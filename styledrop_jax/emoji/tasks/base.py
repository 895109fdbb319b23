"""What the tasks share: their description, the corpus as batches, and the frozen half of it, packed once."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from styledrop_jax import guidance, log, tree
from styledrop_jax.emoji import corpus
from styledrop_jax.io import hub, pretrained, sheets
from styledrop_jax.io.files import guard, write_json
from styledrop_jax.metrics import clip_scores
from styledrop_jax.models import clip
from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.training import loop, order

_PROMPTS = (
    "a cat",
    "a house",
    "three stars",
    "a car in pencil sketch style",
    "a tree in flat design neon light style",
    "a red car",
    "a small fish at the top left on a pink background",
    "a rocket in glossy 3d style",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What `pretrain` needs to know of one model.

    Attributes:
        model: freshly initialised, or with frozen parts filled in.
        trainable: what the optimiser changes.
        loss: see `loop.Loss`.
        batches: see `loop.fit`.
        after: see `loop.fit`.
        picture: draws a grid [h, w, 3] uint8 of what the trained model does.
        export: writes the trained model below a folder.
    """

    model: nnx.Module
    loss: loop.Loss
    batches: Callable[[int, int], Any]
    picture: Callable[[nnx.Module], np.ndarray]
    export: Callable[[nnx.Module, Path], None]
    trainable: nnx.filterlib.Filter = nnx.Param
    after: Callable | None = None


def examples(
    data: corpus.Corpus, config: ConfigDict, start: int, count: int
) -> tuple[np.ndarray, list[str]]:
    """Examples [start, start + count) of the training stream: uint8 images [n, 64, 64, 3] and captions."""
    pairs = [
        data.example(i, split="train", vocabulary=config.vocabulary, seed=config.seed)
        for i in range(start, start + count)
    ]
    return np.stack([image for image, _, _ in pairs]), [caption for _, caption, _ in pairs]


def drawings(data: corpus.Corpus, config: ConfigDict) -> Callable[[int, int], jax.Array]:
    """The `batches` of a task that sees pictures alone: uint8 [steps, batch, 64, 64, 3]."""
    size = config.batch_size

    def batches(start: int, count: int) -> jax.Array:
        images, _ = examples(data, config, start * size, count * size)
        return jnp.asarray(images).reshape(count, size, *images.shape[1:])

    return batches


def unit(images: jax.Array) -> jax.Array:
    """uint8 → float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def picture_loss(error: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L1 + L2 + gradient difference of a reconstruction's error [b, h, w, 3], means, and the L1 alone."""
    slopes = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    l1 = jnp.mean(jnp.abs(error))
    return l1 + jnp.mean(error**2) + slopes, l1


def reconstructions(task: str, images: np.ndarray, out: jax.Array) -> np.ndarray:
    """A sheet of uint8 images [n, h, w, 3], each beside its reconstruction, float in [0, 1]; says the mean error."""
    given, out = np.asarray(unit(images)), np.asarray(out)
    log.say(f"{task}: mean absolute error on held-out concepts {np.abs(out - given).mean():.4f}")
    return sheets.grid(list(np.stack([given, out], 1).reshape(-1, *images.shape[1:])), columns=8)


class Conditioned(nnx.Module):
    """A denoiser with the frozen text tower and the ids of the empty prompt beside it."""

    def __init__(self, denoiser: nnx.Module, text: clip.ClipText, empty: np.ndarray):
        self.denoiser = denoiser
        self.text = text
        self.empty = nnx.Variable(jnp.asarray(empty))

    def dropped(self, ids: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
        """Token ids [b, t] of any integer type → int32, each row with `probability` that of the empty prompt."""
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
        return jnp.where(drop[:, None], self.empty[...], ids.astype(jnp.int32))


def of_denoiser(
    model: Pipeline,
    config: ConfigDict,
    data: corpus.Corpus,
    workdir: Path,
    *,
    encode: Callable[[np.ndarray], dict[str, np.ndarray]],
    targets: Callable[[dict[str, jax.Array]], Any],
    hyper: Mapping[str, Any],
    settings: SampleSettings,
    export: Callable[[Conditioned, Path], None],
) -> Task:
    """The task of a pipeline's denoiser, on pictures and captions that the frozen parts see once.

    Args:
        model: all of the pipeline; its denoiser trains.
        config, data, workdir: of the task; the packed examples are kept in `workdir`. Of the denoiser's parameters
            those train whose names the regular expression `config.trained` finds: all, if it is empty.
        encode: images [n, 64, 64, 3] uint8 → named arrays [n, …], which are packed.
        targets: a batch of these → what `model.loss` takes.
        hyper: what `model.loss` reads.
        settings: how its pictures are drawn.
        export: see `Task`.
    """

    def to_arrays(images: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
        return encode(images) | {"ids": model.text_ids(captions).astype(np.uint16)}

    def loss(trained: Conditioned, batch: dict, keys: jax.Array) -> tuple[jax.Array, dict]:
        drop_keys, loss_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        ids = trained.dropped(batch["ids"], drop_keys, config.text_dropout)
        text = jax.lax.stop_gradient(model.text_features(trained.text, ids))
        value, metrics = model.loss(trained.denoiser, targets(batch), text, loss_keys, hyper)
        return value.mean(), jax.tree.map(jnp.mean, metrics)

    def named(path: tuple, value: Any) -> bool:
        return re.search(config.trained, tree.path_name(path)) is not None

    return Task(
        model=Conditioned(model.denoiser, model.text, model.text_ids([""])[0]),
        trainable=nnx.All(nnx.Param, nnx.PathContains("denoiser"), named),
        loss=loss,
        batches=_packed(config, data, to_arrays, workdir / "pack.npz"),
        picture=lambda trained: _draws(
            dataclasses.replace(model, denoiser=trained.denoiser), settings
        ),
        export=export,
    )


def _packed(
    config: ConfigDict,
    data: corpus.Corpus,
    encode: Callable[[np.ndarray, list[str]], dict[str, np.ndarray]],
    path: Path,
) -> Callable[[int, int], dict]:
    """The batches of `config.pack` examples, which the frozen models see once; the results are kept in `path`.

    Args:
        config: has `pack`, `batch_size`, `seed`, and the stream's `vocabulary`.
        data: the corpus.
        encode: images [n, 64, 64, 3] uint8 and n captions → named arrays [n, …].
        path: an `.npz` file.

    Returns:
        `batches` of `loop.fit`: named arrays [steps, batch, …], every epoch in an order of its own.
    """
    if not path.exists():
        parts, chunk = [], 200
        with log.progress(f"{config.task}: encoding the corpus", config.pack) as advance:
            for start in range(0, config.pack, chunk):
                count = min(chunk, config.pack - start)
                parts.append(encode(*examples(data, config, start, count)))
                advance(count)
        temporary = path.with_suffix(".tmp.npz")
        with guard(temporary):
            np.savez(
                temporary,
                **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
            )
            temporary.replace(path)
    with np.load(path) as found:
        arrays = dict(found)

    def batches(start: int, count: int) -> dict[str, jax.Array]:
        rows = [
            order.indices(step, batch_size=config.batch_size, count=config.pack, seed=config.seed)
            for step in range(start, start + count)
        ]
        return {name: jnp.asarray(values[np.stack(rows)]) for name, values in arrays.items()}

    return batches


def _draws(model: Pipeline, settings: SampleSettings) -> np.ndarray:
    """A sheet [h, w, 3] uint8 of what the model draws of eight prompts, four of each, at lambda_b's guidance."""
    prompts = [prompt for prompt in _PROMPTS for _ in range(4)]
    branches = guidance.base_branches(model, prompts, settings)
    chunks = guidance.generate(branches, range(len(prompts)), settings=settings, batch_size=16)
    return sheets.grid(list(np.concatenate(list(chunks))), columns=8, captions=prompts, scale=2)


def load_text(folder: Path) -> tuple[clip.ClipText, PreTrainedTokenizerBase]:
    """The text tower and the tokenizer of an exported CLIP, or of a pipeline's folder."""
    if (folder / "text_encoder").is_dir():
        text = stable_diffusion_files.TEXT.load(folder / "text_encoder")
        return text, load_tokenizer(folder / "tokenizer")
    whole = clip_scores.ClipScorer.load(folder)
    return whole.model.text, whole.tokenizer


def save_text(
    text: clip.ClipText, tokenizer: PreTrainedTokenizerBase, folder: Path, *, projection: bool
) -> None:
    """Writes `text_encoder`, with its projection or without, and `tokenizer` of a pipeline's folder."""
    tensors = pretrained.export(text, clip.RULES, dtype=np.float16)
    if not projection:
        tensors.pop("text_projection.weight", None)
    config = dataclasses.replace(text.config, projection=projection)
    hub.save_component(folder / "text_encoder", config.to_dict(), tensors)
    save_tokenizer(tokenizer, folder / "tokenizer")


def save_vocabulary(data: corpus.Corpus, config: ConfigDict, path: Path) -> None:
    """Writes the names of the concepts that the training stream showed."""
    known = data.vocabulary(config.vocabulary)
    names = {
        name for concept, kept in zip(data.names, known, strict=True) if kept for name in concept
    }
    write_json(path, sorted(names))
