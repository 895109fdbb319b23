"""Scores of samples: what selection between rounds goes by."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from styledrop_jax.metrics.clip_scores import ClipScorer


class Scored(NamedTuple):
    """What a scorer sees.

    Attributes:
        images: float32 [n, h, w, 3] in [0, 1].
        prompts: the prompt of each.
        ids: (prompt index, image index) of each.
        references: float32 [m, h, w, 3] in [0, 1].
        contents: what the prompt of each asks for, without words of style.
        shown: what the references show.
        clip: the scoring model.
        seed: for scorers that need chance.
    """

    images: np.ndarray
    prompts: list[str]
    ids: list[tuple[int, int]]
    references: np.ndarray
    contents: list[str]
    shown: list[str]
    clip: ClipScorer
    seed: int


Scorer = Callable[[Scored], np.ndarray]
"""The score [n] of every sample; higher is better."""


def clip_text(samples: Scored) -> np.ndarray:
    """Cosine of image and prompt: StyleDrop's Text score (2306.00983 section 4.2)."""
    return samples.clip.text_score(samples.images, samples.prompts)


def clip_style(samples: Scored) -> np.ndarray:
    """Cosine of image and references: StyleDrop's Style score."""
    return samples.clip.style_score(samples.images, samples.references)


def clip_content(samples: Scored) -> np.ndarray:
    """How much likelier an image is what its own prompt asks for than what all prompts do: the
    cosine with that content, less the mean over the contents.

    Words of style are left out, and what all images have in common cancels: both say nothing of
    what is shown.
    """
    contents = list(dict.fromkeys(samples.contents))
    likeness = samples.clip.likeness(samples.images, contents)
    own = np.array([contents.index(content) for content in samples.contents])
    return likeness[np.arange(len(own)), own] - likeness.mean(axis=1)


def clip_sameness(samples: Scored) -> np.ndarray:
    """Mean cosine of an image with those of other prompts; less is better, and its weight is to be
    negative.

    A reference that leaks makes all images alike, also where CLIP has no word for what leaks.
    """
    features = samples.clip.image_features(samples.images)
    contents = np.array(samples.contents)
    others = contents[:, None] != contents
    count = others.sum(axis=1)
    likeness = np.where(others, features @ features.T, 0).sum(axis=1)
    return np.where(count, likeness / np.maximum(count, 1), 0)


def clip_leakage(samples: Scored) -> np.ndarray:
    """Cosine of image and the words for what the references show: what leaks from them, so that
    less is better, and its weight is to be negative.

    Of several references the likest; 0 where the prompt asks for what they show, which then
    cannot leak.
    """
    if not samples.shown:
        return np.zeros(len(samples.images))
    likeness = samples.clip.likeness(samples.images, samples.shown)
    same = np.array(samples.contents)[:, None] == np.array(samples.shown)
    worst = np.where(same, -1, likeness).max(axis=1)
    return np.where(same.all(axis=1), 0, worst)


def random(samples: Scored) -> np.ndarray:
    """Uniform in [0, 1), of the seed and the sample's place: StyleDrop's random feedback."""
    values = [np.random.default_rng((samples.seed, *pair)).random() for pair in samples.ids]
    return np.array(values)


def score(
    samples: Scored, scorers: Mapping[str, Scorer], weights: Mapping[str, float]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every scorer's score [n] by name, and the weighted sum [n] that selection goes by."""
    scores = {name: scorer(samples) for name, scorer in scorers.items()}
    total = np.zeros(len(samples.images))
    for name, weight in weights.items():
        total = total + weight * scores[name]
    return scores, total
