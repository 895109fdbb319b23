"""Trees of arrays by dotted path: the names parameters have in files, errors and counts."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx


def path_name(path: tuple) -> str:
    """`("transformer_layers", 0, "kernel")` → `"transformer_layers.0.kernel"`."""
    return ".".join(str(part) for part in path)


def flatten(state: nnx.State) -> dict[str, jax.Array]:
    """An NNX state (or pure nested dict) as {dotted path: array}, sorted by path."""
    pure = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    flat = {path_name(path): leaf for path, leaf in nnx.traversals.flatten_mapping(pure).items()}
    return dict(sorted(flat.items()))


def count(state) -> int:
    """The number of scalars in a tree of arrays or shape structs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


def differences(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> list[str]:
    """Every way in which two {name: shape} maps differ, one line each; empty when they agree."""
    lines = [
        f"missing {name} {tuple(expected[name])}" for name in sorted(set(expected) - set(found))
    ]
    lines += [
        f"unexpected {name} {tuple(found[name])}" for name in sorted(set(found) - set(expected))
    ]
    lines += [
        f"{name} has shape {tuple(found[name])}, expected {tuple(expected[name])}"
        for name in sorted(set(found) & set(expected))
        if tuple(found[name]) != tuple(expected[name])
    ]
    return lines
