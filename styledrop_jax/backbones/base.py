"""What the backbones share: a group of guidance branches, batches of one size, and the identity of weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx


class Group(NamedTuple):
    """Branches of guidance that run through one graph, batched as one forward.

    Attributes:
        graphdef: of the denoiser, with whatever adapter it carries.
        states: trainable state of each branch, stacked on a leading axis [k, …].
        text: the backbone's features of each branch's prompts, every array [k, b, …].
        weights: [steps, k]; the guided output is the weighted sum over all branches of all groups.
    """

    graphdef: nnx.GraphDef
    states: dict
    text: Any
    weights: jax.Array


def chunks(array: np.ndarray, size: int) -> list[np.ndarray]:
    """Pieces of one fixed length, the last padded with its own last row: one compiled program for any count."""
    pieces = [array[i : i + size] for i in range(0, len(array), size)]
    return [np.concatenate([p, np.repeat(p[-1:], size - len(p), axis=0)]) for p in pieces]


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()
