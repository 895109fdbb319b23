"""Distances between two sets of pictures, by their features [n, d]: FID and KID, here in CLIP's features."""

import numpy as np
from numpy.typing import NDArray


def scaled(features: NDArray) -> NDArray:
    """Unit features [n, d] times √d, of which `kernel_distance` has the kernel (cosine + 1)³."""
    return features * features.shape[1] ** 0.5


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """FID (1706.08500 Eq. 6): |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), of the features' means and covariances.

    Too large for small sets: compare sets of one size, of several times d pictures.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(
        ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
        + np.trace(cov_a)
        + np.trace(cov_b)
        - 2 * product
    )


def kernel_distance(a: NDArray, b: NDArray) -> float:
    """KID (1801.01401 Eq. 4): the unbiased squared MMD under the kernel (x · y / d + 1)³.

    Its mean does not depend on the sizes of the sets, and it may be negative.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def kernel(x: NDArray, y: NDArray) -> NDArray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: NDArray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
