"""Which examples a step sees: a function of the step alone, so a resumed run needs no memory."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def of_one_kind(step: int, *, batch_size: int, kinds: np.ndarray, seed: int) -> np.ndarray:
    """The examples of step `step`, all of one kind: int32 [batch_size].

    A kind has as many steps as it has examples, in shuffled turns, and goes through its own as
    `indices` does.

    Args:
        kinds: int [n], of each example.
    """
    epoch, place = divmod(step, len(kinds))
    turns = kinds[_order(seed, epoch, len(kinds))]
    own = np.flatnonzero(kinds == turns[place])
    before = epoch * len(own) + int(np.count_nonzero(turns[:place] == turns[place]))
    chosen = indices(before, batch_size=batch_size, count=len(own), seed=seed)
    return own[chosen].astype(np.int32)


def indices(step: int, *, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The examples of step `step`: int32 [batch_size].

    Every epoch is one shuffled pass over all `count` of them.
    """
    examples = np.empty(batch_size, np.int32)
    for place in range(batch_size):
        epoch, position = divmod(step * batch_size + place, count)
        examples[place] = _order(seed, epoch, count)[position]
    return examples
