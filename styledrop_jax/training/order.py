"""Which examples a step sees: a function of the step alone, so a resumed run needs no memory."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def indices(step: int, *, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The examples of step `step`: int32 [batch_size].

    Every epoch is one shuffled pass over all `count` of them.
    """
    examples = np.empty(batch_size, np.int32)
    for place in range(batch_size):
        epoch, position = divmod(step * batch_size + place, count)
        examples[place] = _order(seed, epoch, count)[position]
    return examples
