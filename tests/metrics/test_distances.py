"""FID and KID against what they are for distributions that are known."""

import numpy as np
import pytest

from styledrop_jax.metrics.distances import frechet_distance, kernel_distance


def _normal(seed, n, d=4, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def test_frechet_distance_of_normals_is_its_closed_form():
    a = _normal(0, 200_000)
    b = _normal(1, 200_000, shift=0.5, scale=2.0)
    assert frechet_distance(a, b) == pytest.approx(4 * 0.5**2 + 4 * (2 - 1) ** 2, rel=0.02)


def test_frechet_distance_of_correlated_features():
    mix = np.array([[2.0, 1.0], [0.0, 0.5]])
    a = _normal(0, 400_000, d=2) @ mix
    cov = mix.T @ mix
    # against a standard normal: tr(Σ + I − 2 Σ^½)
    expected = np.trace(cov) + 2 - 2 * np.sqrt(np.linalg.eigvalsh(cov)).sum()
    assert frechet_distance(a, _normal(1, 400_000, d=2)) == pytest.approx(expected, rel=0.02)


def test_a_set_is_at_no_distance_from_itself():
    a = _normal(0, 50)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_mean_over_pairs():
    a = _normal(0, 5)
    b = _normal(1, 7, shift=1)

    def mean(left, right):
        """Of the kernel, over all pairs of different features."""
        values = []
        for x in left:
            for y in right:
                if x is not y:
                    values.append((x @ y / 4 + 1) ** 3)
        return np.mean(values)

    left = list(a)
    right = list(b)
    expected = mean(left, left) + mean(right, right) - 2 * mean(left, right)
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_is_unbiased_and_grows_with_the_shift():
    same = [kernel_distance(_normal(i, 20), _normal(1000 + i, 20)) for i in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
    near = kernel_distance(_normal(0, 200), _normal(1, 200, shift=0.3))
    far = kernel_distance(_normal(0, 200), _normal(1, 200, shift=1.0))
    assert 0 < near < far
