"""Scores of samples: what selection between rounds goes by."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from styledrop_jax.metrics.clip_scores import ClipScorer


class Samples(NamedTuple):
    """What a scorer sees.

    Attributes:
        images: float32 [n, h, w, 3] in [0, 1].
        prompts: the prompt of each.
        ids: (prompt index, image index) of each.
        references: float32 [m, h, w, 3] in [0, 1].
        clip: the scoring model.
        seed: for scorers that draw.
    """

    images: np.ndarray
    prompts: list[str]
    ids: list[tuple[int, int]]
    references: np.ndarray
    clip: ClipScorer
    seed: int


def _clip_text(samples: Samples) -> np.ndarray:
    return samples.clip.text_score(samples.images, samples.prompts)


def _clip_style(samples: Samples) -> np.ndarray:
    return samples.clip.style_score(samples.images, samples.references)


def _random(samples: Samples) -> np.ndarray:
    return np.array([np.random.default_rng((samples.seed, *pair)).random() for pair in samples.ids])


SCORERS: Mapping[str, Callable[[Samples], np.ndarray]] = {
    "clip_text": _clip_text,
    "clip_style": _clip_style,
    "random": _random,
}
"""clip_text: cosine of image and prompt (Text). clip_style: cosine of image and references (Style). random: uniform."""


def score(
    samples: Samples, weights: Mapping[str, float]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every scorer's score [n] by name, and the weighted sum [n] that selection goes by."""
    scores = {name: scorer(samples) for name, scorer in SCORERS.items()}
    return scores, sum(weight * scores[name] for name, weight in weights.items())
