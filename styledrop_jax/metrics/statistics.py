"""Distances of colour and of texture between images: a judge of style without a learnt model.

Both are sliced Wasserstein distances (Rabin et al. 2011) between sets of vectors of two images:
the mean, over random directions, of the distance between their sorted projections. Texture is that
of small patches at several scales, as Karras et al. compare images (arXiv:1710.10196, section 5).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

SIDE = 64
"""Images are compared at this side, in pixels."""
_DIRECTIONS = 64
_PATCH = 5
_SCALES = 3


def colour_distance(image: np.ndarray, reference: np.ndarray) -> float:
    """Between the colours of two images uint8 [h, w, 3]: 0 for the same, in shares of the range."""
    return _sliced(_resized(image).reshape(-1, 3), _resized(reference).reshape(-1, 3))


def texture_distance(image: np.ndarray, reference: np.ndarray) -> float:
    """Between the patches of lightness of two images uint8 [h, w, 3], without their means; a mean
    over scales.
    """
    one = _resized(image).mean(axis=2)
    other = _resized(reference).mean(axis=2)
    found = []
    for _ in range(_SCALES):
        found.append(_sliced(_patches(one), _patches(other)))
        one = _halved(one)
        other = _halved(other)
    return float(np.mean(found))


def _resized(image: np.ndarray) -> np.ndarray:
    """float32 [64, 64, 3] in [0, 1]."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def _halved(x: np.ndarray) -> np.ndarray:
    height, width = x.shape
    return x.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def _patches(x: np.ndarray) -> np.ndarray:
    """Every patch of [h, w] without its mean, [n, p]."""
    patches = sliding_window_view(x, (_PATCH, _PATCH)).reshape(-1, _PATCH * _PATCH)
    return patches - patches.mean(axis=1, keepdims=True)


def _sliced(one: np.ndarray, other: np.ndarray) -> float:
    """Between two sets [n, d] of as many vectors."""
    directions = np.random.default_rng(0).normal(size=(one.shape[1], _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    apart = np.sort(one @ directions, axis=0) - np.sort(other @ directions, axis=0)
    return float(np.abs(apart).mean())
