"""Two subjects in one training image (SVDiff, 2303.11305 section 3.3; after CutMix, 1905.04899)."""

import numpy as np


def halves(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The middle half of one square image beside that of another: each uint8 [r, r, 3], and so is
    the result.

    The paper does not state how the halves are cut. A subject stands in the middle, and is not
    distorted.
    """
    r = len(left)
    start = r // 4
    half = r // 2
    first = left[:, start : start + half]
    second = right[:, start : start + r - half]
    return np.concatenate([first, second], axis=1)
