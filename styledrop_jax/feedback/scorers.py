"""Scores of samples: what selection between rounds goes by."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import hosts
from styledrop_jax.io import image_files
from styledrop_jax.metrics.clip_scores import ClipScorer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What a scorer sees.

    Attributes:
        features: CLIP's of the samples, float32 [n, p].
        prompts: the prompt of each.
        contents: what the prompt of each asks for, without words of style.
        ids: (prompt index, image index) of each.
        references: float32 [m, h, w, 3] in [0, 1].
        shown: what the references show.
        clip: the scoring model.
        seed: for scorers that need chance.
        files: the samples themselves, for scorers that need more than their features.
    """

    features: np.ndarray
    prompts: Sequence[str]
    contents: Sequence[str]
    ids: Sequence[tuple[int, int]]
    references: np.ndarray
    shown: Sequence[str]
    clip: ClipScorer
    seed: int
    files: Sequence[Path] = ()

    def images(self) -> Iterator[np.ndarray]:
        """The samples, each float32 [h, w, 3] in [0, 1], read one after the other: those of a round
        may not fit into memory.
        """
        for file in self.files:
            image = hosts.shared(functools.partial(image_files.read_image, file))
            yield image.astype(np.float32) / 255

    def likeness(self, texts: Sequence[str]) -> np.ndarray:
        """The cosine of every image and every text, float32 [n, k]."""
        return self.features @ self.clip.text_features(texts).T


Scorer = Callable[[Scored], np.ndarray]
"""The score [n] of every sample; higher is better, unless the scorer says otherwise."""


def clip_text(samples: Scored) -> np.ndarray:
    """Cosine of image and prompt: StyleDrop's Text score (2306.00983 section 4.2)."""
    return np.sum(samples.features * samples.clip.text_features(samples.prompts), axis=1)


def clip_style(samples: Scored) -> np.ndarray:
    """Cosine of image and references: StyleDrop's Style score, a mean over the references."""
    return (samples.features @ samples.clip.image_features(samples.references).T).mean(axis=1)


def clip_content(samples: Scored) -> np.ndarray:
    """How much likelier an image is what its own prompt asks for than what all prompts do: the
    cosine with that content, less the mean over the contents.

    Words of style are left out, and what all images have in common cancels: both say nothing of
    what is shown.
    """
    contents = list(dict.fromkeys(samples.contents))
    likeness = samples.likeness(contents)
    own = [contents.index(content) for content in samples.contents]
    return likeness[np.arange(len(own)), own] - likeness.mean(axis=1)


def clip_sameness(samples: Scored) -> np.ndarray:
    """Mean cosine of an image with those of other prompts; less is better, and its weight is to be
    negative.

    A reference that leaks makes all images alike, also where CLIP has no word for what leaks.
    """
    contents = np.array(samples.contents)
    others = contents[:, None] != contents
    count = others.sum(axis=1)
    likeness = np.where(others, samples.features @ samples.features.T, 0).sum(axis=1)
    return np.where(count, likeness / np.maximum(count, 1), 0)


def clip_leakage(samples: Scored) -> np.ndarray:
    """How much likelier an image is what the references show than what all prompts ask for: the
    cosine with the words for it, less the mean over the contents of the prompts.

    Less is better, and its weight is to be negative. Of several references the likest; 0 where the
    prompt asks for what they show, which then cannot leak. A style brings all words nearer or
    farther alike: their mean cancels it.
    """
    if not samples.shown:
        return np.zeros(len(samples.contents))
    usual = samples.likeness(list(dict.fromkeys(samples.contents))).mean(axis=1, keepdims=True)
    same = np.array(samples.contents)[:, None] == np.array(samples.shown)
    excess = np.where(same, -np.inf, samples.likeness(samples.shown) - usual)
    return np.where(same.all(axis=1), 0, excess.max(axis=1))


def random(samples: Scored) -> np.ndarray:
    """Uniform in [0, 1), of the seed and the sample's place: StyleDrop's random feedback."""
    values = [np.random.default_rng((samples.seed, *pair)).random() for pair in samples.ids]
    return np.array(values)


def score(
    samples: Scored, scorers: Mapping[str, Scorer], weights: Mapping[str, float]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every scorer's score [n] by name, and the weighted sum [n] that selection goes by."""
    scores = {name: scorer(samples) for name, scorer in scorers.items()}
    total = np.zeros(len(samples.features))
    for name, weight in weights.items():
        total = total + weight * scores[name]
    return scores, total
