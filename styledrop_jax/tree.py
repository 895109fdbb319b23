"""Trees of arrays by dotted path, the names of parameters in files and errors."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx


def path_name(path: tuple) -> str:
    """`("transformer_layers", 0, "kernel")` → `"transformer_layers.0.kernel"`."""
    return ".".join(str(part) for part in path)


def flatten(state: Mapping[Any, Any]) -> dict[str, Any]:
    """An NNX state or a nested dict as {dotted path: array}, sorted by path."""
    pure = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    flat = {}
    for path, leaf in nnx.traversals.flatten_mapping(pure).items():
        flat[path_name(path)] = leaf
    return dict(sorted(flat.items()))


def count(state: Any) -> int:
    """The number of scalars in a tree of arrays or shape structs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


def differences(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> list[str]:
    """Every way in which two {name: shape} maps differ, one line each; empty if they agree."""
    lines = []
    for name in sorted(set(expected) - set(found)):
        lines.append(f"missing {name} {tuple(expected[name])}")
    for name in sorted(set(found) - set(expected)):
        lines.append(f"unexpected {name} {tuple(found[name])}")
    for name in sorted(set(found) & set(expected)):
        shape = tuple(found[name])
        if shape != tuple(expected[name]):
            lines.append(f"{name} has shape {shape}, expected {tuple(expected[name])}")
    return lines
