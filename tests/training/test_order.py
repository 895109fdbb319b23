"""Streams: whole epochs, and nothing to remember between steps."""

import numpy as np
import pytest

from styledrop_jax.training.order import indices, of_one_kind


def _run(steps: range, **settings) -> np.ndarray:
    return np.concatenate([indices(step, **settings) for step in steps])


@pytest.mark.parametrize(
    ("count", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 5), (7, 7), (1000, 3)]
)
def test_every_epoch_sees_each_example_once(count, batch_size):
    seen = _run(range(-(-3 * count // batch_size)), count=count, batch_size=batch_size, seed=0)
    assert seen.dtype == np.int32
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_step_alone_says_what_it_sees():
    settings = {"count": 10, "batch_size": 4, "seed": 3}
    in_order = [indices(step, **settings) for step in range(30)]
    for step in (29, 2, 17):
        np.testing.assert_array_equal(indices(step, **settings), in_order[step])


def test_epochs_and_seeds_are_shuffled_differently():
    first = _run(range(2), count=20, batch_size=20, seed=0)
    assert list(first[:20]) != list(range(20)) and list(first[:20]) != list(first[20:])
    assert list(first) != list(_run(range(2), count=20, batch_size=20, seed=1))


def test_streams_of_unequal_sizes_do_not_repeat_one_pairing():
    """A short and a long stream side by side: every pair comes up."""
    short = _run(range(200), count=2, batch_size=1, seed=0)
    long = _run(range(200), count=5, batch_size=1, seed=1)
    assert len(set(zip(short.tolist(), long.tolist(), strict=True))) == 10


def test_the_batch_is_the_callers_to_change():
    settings = {"count": 4, "batch_size": 4, "seed": 0}
    before = indices(0, **settings).copy()
    indices(0, **settings)[:] = -1
    np.testing.assert_array_equal(indices(0, **settings), before)


def _of_kinds(kinds, steps, batch_size=4):
    settings = {"batch_size": batch_size, "kinds": np.array(kinds), "seed": 5}
    return [of_one_kind(step, **settings) for step in range(steps)]


def test_a_step_has_one_kind_and_a_kind_its_share_of_steps():
    kinds = np.array([0, 1, 0, 2, 0])
    found = _of_kinds(kinds, 4 * len(kinds))
    turns = []
    for seen in found:
        assert len(set(kinds[seen])) == 1 and seen.dtype == np.int32
        turns.append(kinds[seen[0]])
    for epoch in range(4):
        assert sorted(turns[5 * epoch : 5 * epoch + 5]) == [0, 0, 0, 1, 2]
    of_first = np.concatenate([seen for seen in found if kinds[seen[0]] == 0])
    for epoch in range(len(of_first) // 3):
        assert sorted(of_first[3 * epoch : 3 * epoch + 3]) == [0, 2, 4], "whole epochs"


def test_one_kind_is_no_other_order():
    found = _of_kinds([0] * 7, 9)
    for step, seen in enumerate(found):
        np.testing.assert_array_equal(seen, indices(step, batch_size=4, count=7, seed=5))
