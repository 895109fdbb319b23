"""Which examples a training step sees: a function of the step alone, so that nothing has to be remembered to resume."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def indices(step: int, *, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The examples of step `step`: int32 [batch_size]. Every epoch is one shuffled pass over all `count` of them."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array(
        [_order(seed, int(p) // count, count)[int(p) % count] for p in positions], np.int32
    )
