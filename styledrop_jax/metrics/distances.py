"""FID and KID: distances between two sets of images by their features [n, d], here CLIP's."""

import numpy as np
from numpy.typing import NDArray


def scaled(features: NDArray) -> NDArray:
    """Unit features [n, d] times √d, for which `kernel_distance` has the kernel (cosine + 1)³."""
    return features * features.shape[1] ** 0.5


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """FID: |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), with the features' means and covariances.

    It is too large for small sets: compare sets of one size, of several times d images.

    Source: 1706.08500 Eq. 6.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    cov_a = np.cov(a, rowvar=False)
    cov_b = np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    shift = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * product)


def kernel_distance(a: NDArray, b: NDArray) -> float:
    """KID (1801.01401 Eq. 4): the unbiased squared MMD under the kernel (x · y / d + 1)³.

    Its mean does not depend on the sizes of the sets, and it may be negative.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)

    def kernel(x: NDArray, y: NDArray) -> NDArray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: NDArray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
