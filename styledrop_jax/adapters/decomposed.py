"""Singular value decompositions of weights, kept in the user's cache folder: of a large model they
take minutes, and are the same whenever it is loaded.
"""

import contextlib
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from styledrop_jax import cache
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_bytes

_SMALL = 2**14  # numbers: what is smaller is decomposed as fast as it is read
_SIZE = 16 * 2**30  # bytes in all, of which those go that were used longest ago
_NAMES = ("u", "s", "vt")

Factors = tuple[jax.Array, jax.Array, jax.Array]
"""u [m, r], s [r] and vt [r, n], r the smaller side."""


def decomposed(matrix: jax.Array) -> Factors:
    """The singular value decomposition of float32 [m, n], to the bits of the first time that a
    matrix of the same numbers was decomposed on this machine.

    They are in `decompositions` of the cache folder, in files by their content's SHA-256. Where it
    cannot be written, or a file is damaged, the matrix is decomposed anew.
    """
    traced = isinstance(matrix, Tracer)
    if traced or matrix.size < _SMALL or not matrix.is_fully_addressable:
        return _svd(matrix)
    array = np.asarray(matrix)
    content = hashlib.sha256(f"{array.shape}".encode())
    content.update(array.tobytes())
    path = cache.folder() / "decompositions" / f"{content.hexdigest()}.safetensors"
    found = _read(path, array.shape)
    if found is None:
        found = _svd(matrix)
        _keep(path, found)
    return found


def _svd(matrix: jax.Array) -> Factors:
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u, s, vt


def _read(path: Path, shape: tuple[int, ...]) -> Factors | None:
    """What the file holds, if that is a decomposition of such a matrix."""
    rank = min(shape)
    expected = {"u": (shape[0], rank), "s": (rank,), "vt": (rank, shape[1])}
    try:
        found = load_file(path)
        path.touch()
    except (OSError, SafetensorError):
        return None
    if {name: array.shape for name, array in found.items()} != expected:
        return None
    u, s, vt = (jnp.asarray(found[name], jnp.float32) for name in _NAMES)
    return u, s, vt


def _keep(path: Path, factors: Factors) -> None:
    """Writes the file, and removes others where they are too many."""
    arrays = {name: np.ascontiguousarray(x) for name, x in zip(_NAMES, factors, strict=True)}
    with contextlib.suppress(UserError, OSError):
        write_bytes(path, save(arrays))
        room = _SIZE
        files = [(file.stat().st_mtime, file) for file in path.parent.glob("*.safetensors")]
        for _, file in sorted(files, reverse=True):
            room -= file.stat().st_size
            if room < 0:
                file.unlink(missing_ok=True)
