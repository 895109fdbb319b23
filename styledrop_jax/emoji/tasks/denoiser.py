"""What Muse's transformer and the U-Net share: examples that the frozen models see once."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from styledrop_jax import guidance, log, tree
from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import DenoiserSettings
from styledrop_jax.emoji.tasks.base import Task, examples
from styledrop_jax.io import pretrained, sheets
from styledrop_jax.metrics import clip_scores
from styledrop_jax.models import clip
from styledrop_jax.models.reading import Tokens
from styledrop_jax.models.tokenizer import load_tokenizer
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline, SampleSettings, TrainSettings
from styledrop_jax.training import order

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
_CHUNK = 200  # examples that are encoded between two moves of the progress bar


class Conditioned(nnx.Module):
    """A denoiser with the frozen text tower and the ids of the empty prompt beside it."""

    def __init__(self, denoiser: nnx.Module, text: clip.ClipText, empty: np.ndarray):
        self.denoiser = denoiser
        self.text = text
        self.empty = nnx.Variable(jnp.asarray(empty))

    def dropped(self, ids: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
        """Token ids with some rows replaced by the empty prompt's.

        Args:
            ids: [b, t], of any integer type.
            keys: [b].
            probability: that a row is replaced.

        Returns:
            int32 [b, t].
        """
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
        return jnp.where(drop[:, None], self.empty[...], ids.astype(jnp.int32))


def denoiser_task(
    model: Pipeline,
    settings: DenoiserSettings,
    data: Corpus,
    workdir: Path,
    *,
    encode: Callable[[np.ndarray], dict[str, np.ndarray]],
    targets: Callable[[dict[str, jax.Array]], Any],
    train: TrainSettings,
    sample: SampleSettings,
    export: Callable[[Conditioned, Path], None],
) -> Task[Conditioned]:
    """The task of a pipeline's denoiser.

    Args:
        model: all of the pipeline; its denoiser trains.
        settings: of the task. Those of the denoiser's parameters train whose names the regular
            expression `settings.trained` finds.
        data: the corpus.
        workdir: keeps the packed examples.
        encode: images [n, 64, 64, 3] uint8 → named arrays [n, …], which are packed.
        targets: a batch of these → what the loss takes.
        train: what the loss reads.
        sample: how the images of the sheet are sampled.
        export: see `Task`.
    """

    of_images = model.loss(train)

    def to_arrays(images: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
        return encode(images) | {"ids": model.text_ids(captions).astype(np.uint16)}

    def loss(
        trained: Conditioned, batch: dict[str, jax.Array], keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        drop_keys, loss_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        ids = trained.dropped(batch["ids"], drop_keys, settings.text_dropout)
        text = jax.lax.stop_gradient(model.text_features(trained.text, Tokens(ids[:, None])))
        value, metrics = of_images(trained.denoiser, targets(batch), text, loss_keys)
        return value.mean(), jax.tree.map(jnp.mean, metrics)

    def is_trained(path: tuple, value: Any) -> bool:
        return re.search(settings.trained, tree.path_name(path)) is not None

    def sheet(trained: Conditioned) -> np.ndarray:
        return _samples(dataclasses.replace(model, denoiser=trained.denoiser), sample)

    return Task(
        model=Conditioned(model.denoiser, model.text, model.text_ids([""])[0]),
        trainable=nnx.All(nnx.Param, nnx.PathContains("denoiser"), is_trained),
        loss=loss,
        batches=_packed(settings, data, to_arrays, workdir / "pack.safetensors"),
        sheet=sheet,
        export=export,
    )


def _packed(
    settings: DenoiserSettings,
    data: Corpus,
    encode: Callable[[np.ndarray, list[str]], dict[str, np.ndarray]],
    path: Path,
) -> Callable[[int, int], dict[str, jax.Array]]:
    """The batches of the first `settings.pack` examples, encoded once.

    Args:
        settings: of the task.
        data: the corpus.
        encode: images [n, 64, 64, 3] uint8 and n captions → named arrays [n, …].
        path: keeps the results, a safetensors file.

    Returns:
        `batches` of `loop.fit`: named arrays [steps, batch, …], each epoch in an order of its own.
    """
    count = settings.pack
    if not path.exists():
        parts: dict[str, list[np.ndarray]] = {}
        with log.progress(f"{settings.task}: encoding the corpus", count) as advance:
            for start in range(0, count, _CHUNK):
                size = min(_CHUNK, count - start)
                for name, array in encode(*examples(data, settings, start, size)).items():
                    parts.setdefault(name, []).append(array)
                advance(size)
        pretrained.save(path, {name: np.concatenate(part) for name, part in parts.items()})
    arrays = load_file(path)

    def batches(start: int, steps: int) -> dict[str, jax.Array]:
        rows = []
        for step in range(start, start + steps):
            rows.append(
                order.indices(step, batch_size=settings.batch_size, count=count, seed=settings.seed)
            )
        return {name: jnp.asarray(array[np.stack(rows)]) for name, array in arrays.items()}

    return batches


def _samples(model: Pipeline, settings: SampleSettings) -> np.ndarray:
    """A sheet [h, w, 3] uint8 of four samples of each of eight prompts."""
    prompts = []
    for prompt in _PROMPTS:
        prompts += [prompt] * 4
    branches = guidance.classifier_free(guidance.bare(model), prompts, settings)
    chunks = guidance.generate(branches, range(len(prompts)), settings=settings)
    return sheets.grid(
        list(np.concatenate(list(chunks))),
        columns=8,
        captions=prompts,
        scale=128 // model.resolution,
    )


def load_text(folder: Path) -> tuple[clip.ClipText, PreTrainedTokenizerBase]:
    """The text tower and the tokenizer of an exported CLIP, or of a pipeline's folder."""
    if (folder / "text_encoder").is_dir():
        text = stable_diffusion_files.TEXT.load(folder / "text_encoder")
        return text, load_tokenizer(folder / "tokenizer")
    whole = clip_scores.ClipScorer.load(folder)
    return whole.model.text, whole.tokenizer
