"""Embedding files: the new words of Textual Inversion, one word in one file."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from styledrop_jax.errors import UserError, few

_NAMELESS = ("emb_params", "*")  # the keys of kohya's and A1111's tensors, which say no word
_WORD = "styledrop_jax.word"
_TWO_TOWERS = {"clip_l", "clip_g"}


def file_names(words: Iterable[str]) -> dict[str, str]:
    """{word: its file}: "<hut>" → "hut.safetensors", since some file systems forbid brackets."""
    found: dict[str, str] = {}
    taken = set()
    for word in words:
        stem = re.sub(r'[<>:"/|?*\\]', "", word) or "word"
        name = stem
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        found[word] = f"{name}.safetensors"
    return found


def nameless(word: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file as kohya's scripts write it and A1111 reads it.

    There the file's name is the word; ours is in the metadata too, for `read`.
    """
    return {_NAMELESS[0]: rows}, {_WORD: word}


def read(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, width: int
) -> dict[str, np.ndarray]:
    """{word: rows, float32 [n, d]} of an embedding file, of diffusers, A1111 or kohya's scripts.

    diffusers names its tensor by the word. The others do not hold it: the file's name is it.

    Args:
        path: the file. tensors, metadata: what it holds.
        width: d, of the text tower.

    Raises:
        UserError: the rows of SDXL's two towers or of another width, or no table of rows.
    """
    shapes = []
    rows = {}
    for name, tensor in tensors.items():
        shapes.append(f"{name} {tensor.shape}")
        if tensor.ndim in (1, 2) and tensor.shape[-1] == width:
            word = name
            if len(tensors) == 1 and name in _NAMELESS:
                word = metadata.get(_WORD, path.stem)
            rows[word] = np.atleast_2d(np.asarray(tensor, np.float32))
    if _TWO_TOWERS & set(tensors):
        raise UserError(
            f"{path}: found {few(shapes)}, the rows of SDXL's two text towers, expected one's"
        )
    if not rows or len(rows) < len(tensors):
        found = few(shapes) if shapes else "nothing"
        raise UserError(
            f"{path}: found {found}, expected a LoRA, or rows of length {width} for each word"
        )
    return rows
