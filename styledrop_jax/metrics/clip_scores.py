"""CLIP's view of images: features, text score, retrieval recall, and the interval of a mean.

The text score is that of StyleDrop §4.2 (arXiv:2306.00983): a cosine of CLIP features.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.paths import shown_path
from styledrop_jax.models.clip import RULES, Clip
from styledrop_jax.models.clip_config import ClipConfig
from styledrop_jax.models.config_json import require_layers
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer, tokenize
from styledrop_jax.training import mesh


def preprocess(images: jax.Array, size: int) -> jax.Array:
    """[n, h, w, 3] in [0, 1] → [n, size, size, 3], as CLIP's image processor does it.

    Bicubic with antialiasing until the shorter side is `size`, then the middle square.
    """
    n, h, w, _ = images.shape
    if (h, w) == (size, size):
        return images
    short = min(h, w)
    new = (int(h * size / short), int(w * size / short))  # the reference rounds down
    images = jax.image.resize(images, (n, *new, 3), "cubic", antialias=True).clip(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return images[:, top : top + size, left : left + size]


class ClipScorer:
    """Scores images against prompts and against other images.

    Everything runs in chunks of one size. So an image's score does not depend on what it is scored
    with, and one compiled program serves any number of images.

    Args:
        model: both towers.
        tokenizer: the model's.
        batch_size: images, or prompts, in a chunk.
    """

    def __init__(self, model: Clip, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 32):
        self.model = model
        self.tokenizer = tokenizer
        self.length = model.config.text.max_position_embeddings
        self.batch_size = batch_size
        graphdef, self._state = nnx.split(model)
        self._devices = mesh.of(self._state)
        size = model.config.vision.image_size

        def of_images(state: nnx.State, images: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).image_features(preprocess(images, size))

        def of_texts(state: nnx.State, ids: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).text_features(ids)

        self._of_images = jax.jit(of_images)
        self._of_texts = jax.jit(of_texts)

    @classmethod
    def load(cls, folder: Path, *, batch_size: int = 32, devices: Mesh | None = None) -> Self:
        """From a folder with a `CLIPModel` and its tokenizer, on `devices`; None is all.

        Raises:
            UserError: the folder holds no such model, or its files do not fit together.
        """
        values = hub.read_config(folder)
        try:
            config = ClipConfig.from_dict(values)
        except UserError as error:
            raise UserError(f"{shown_path(folder / 'config.json')}: {error}") from None
        tensors = pretrained.Tensors(pretrained.weight_files(folder, "model"), RULES)
        for tower in (config.text, config.vision):
            require_layers(tower, len(tensors), source=str(folder))
        with mesh.used(devices or mesh.make()):
            model = pretrained.load(
                lambda: Clip(config, rngs=pretrained.ONE_KEY),
                tensors,
                RULES,
                source=str(folder),
                place=mesh.placer(),
            )
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, config.text, source=str(folder))
        return cls(model, tokenizer, batch_size=batch_size)

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """[n, h, w, 3] in [0, 1], any size → unit features, float32 [n, p]."""
        compute = functools.partial(self._of_images, self._state)
        return mesh.in_chunks(compute, np.asarray(images), self.batch_size, self._devices)

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """n prompts → unit features, float32 [n, p]. Each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        ids = tokenize(self.tokenizer, distinct, self.length)
        compute = functools.partial(self._of_texts, self._state)
        features = mesh.in_chunks(compute, ids, self.batch_size, self._devices)
        return features[[distinct.index(prompt) for prompt in prompts]]

    def text_score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """The cosine of every image [n, h, w, 3] and its own prompt, float32 [n]."""
        if len(images) != len(prompts):
            raise ValueError(
                f"{len(images)} images and {len(prompts)} prompts, expected one prompt an image"
            )
        return np.sum(self.image_features(images) * self.text_features(prompts), axis=1)


def recall(similarity: np.ndarray, k: int) -> float:
    """The share of rows of [n, n] whose own column is among the `k` most similar.

    Ties count against it.
    """
    own = np.diagonal(similarity)[:, None]
    return float(((similarity >= own).sum(axis=1) <= k).mean())


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of values [n] and its 95% bootstrap percentile interval: (mean, low, high)."""
    values = np.asarray(values, np.float64)
    rows = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
