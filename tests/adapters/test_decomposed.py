"""Decompositions are computed once, and found again by what the weights hold."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from styledrop_jax import cache
from styledrop_jax.adapters import decomposed


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """The matrices that were decomposed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    svd = decomposed._svd
    found = []

    def counted(matrix):
        found.append(matrix.shape)
        return svd(matrix)

    monkeypatch.setattr(decomposed, "_svd", counted)
    return found


def _matrix(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _files():
    return sorted((cache.folder() / "decompositions").glob("*"))


def test_the_second_time_it_is_read_to_the_same_bits(computed):
    for shape in ((12, 5), (5, 12)):
        matrix = _matrix(shape)
        first = decomposed.decomposed(matrix)
        second = decomposed.decomposed(jnp.array(matrix))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
        u, s, vt = second
        np.testing.assert_allclose((u * s) @ vt, matrix, atol=1e-5)
    assert computed == [(12, 5), (5, 12)]


def test_another_content_or_shape_is_another_decomposition(computed):
    matrix = _matrix((6, 6))
    for other in (matrix, matrix.at[0, 0].add(1e-6), matrix.reshape(4, 9)):
        decomposed.decomposed(other)
    assert len(computed) == len(_files()) == 3


@pytest.mark.parametrize("damage", ["torn", "other"])
def test_a_damaged_file_is_made_anew(computed, damage):
    matrix = _matrix((6, 4))
    expected = decomposed.decomposed(matrix)
    (file,) = _files()
    data = file.read_bytes()
    if damage == "other":
        decomposed.decomposed(_matrix((3, 3)))
        (data,) = [other.read_bytes() for other in _files() if other != file]
    file.write_bytes(data[:-5] if damage == "torn" else data)
    for one, other in zip(decomposed.decomposed(matrix), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert computed[-1] == (6, 4) and len(computed) == (2 if damage == "torn" else 3)


def test_where_nothing_can_be_kept_it_is_computed(computed, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        decomposed.decomposed(_matrix((6, 4)))
    assert len(computed) == 2


def test_what_was_used_longest_ago_goes_first(computed, monkeypatch):
    decomposed.decomposed(_matrix((6, 4)))
    (first,) = _files()
    monkeypatch.setattr(decomposed, "_SIZE", 2 * first.stat().st_size)
    for seed in (1, 0, 2):
        time.sleep(0.05)  # a file system's clock ticks in steps of some milliseconds
        decomposed.decomposed(_matrix((6, 4), seed))
    assert first in _files() and len(_files()) == 2
