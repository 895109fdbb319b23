"""Embedding files: the new words of Textual Inversion, one word in one file."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from styledrop_jax.errors import UserError, few

_NAMELESS = ("emb_params", "*")  # the keys of kohya's and A1111's tensors, which say no word
_WORD = "styledrop_jax.word"
_TOWERS = {"first": "clip_l", "second": "clip_g"}  # the tensors of a word of XL


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


def nameless(
    word: str, rows: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file as kohya's scripts write it and A1111 reads it.

    There the file's name is the word; ours is in the metadata too, for `read`.

    Args:
        word: the word.
        rows: [n, d], by the path of each text tower.
    """
    return {_TOWERS.get(path, _NAMELESS[0]): each for path, each in rows.items()}, {_WORD: word}


def read(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    *,
    widths: Mapping[str, int],
) -> dict[str, dict[str, np.ndarray]]:
    """{word: {path of a text tower: rows, float32 [n, d]}} of an embedding file, of diffusers,
    A1111 or kohya's scripts.

    diffusers names its tensor by the word. The others do not hold it: the file's name is it. So it
    is with XL, whose tensors are named by the towers.

    Args:
        path: the file. tensors, metadata: what it holds.
        widths: d, by the path of each text tower.

    Raises:
        UserError: the rows of other towers or of another width, or no table of rows.
    """
    if len(widths) > 1:
        return {metadata.get(_WORD, path.stem): _of_both(path, tensors, widths)}
    (width,) = widths.values()
    shapes = []
    rows = {}
    for name, tensor in tensors.items():
        shapes.append(f"{name} {tensor.shape}")
        if tensor.ndim in (1, 2) and tensor.shape[-1] == width:
            word = name
            if len(tensors) == 1 and name in _NAMELESS:
                word = metadata.get(_WORD, path.stem)
            rows[word] = {"": np.atleast_2d(np.asarray(tensor, np.float32))}
    if set(_TOWERS.values()) & set(tensors):
        raise UserError(
            f"{path}: found {few(shapes)}, the rows of SDXL's two text towers, expected one's"
        )
    if not rows or len(rows) < len(tensors):
        found = few(shapes) if shapes else "nothing"
        raise UserError(
            f"{path}: found {found}, expected a LoRA, or rows of length {width} for each word"
        )
    return rows


def _of_both(
    path: Path, tensors: Mapping[str, np.ndarray], widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The rows of a word in each of XL's towers."""
    rows = {}
    for tower, name in _TOWERS.items():
        tensor = np.atleast_2d(np.asarray(tensors.get(name, 0), np.float32))
        if tensor.ndim == 2 and tensor.shape[1] == widths[tower]:
            rows[tower] = tensor
    counts = {len(each) for each in rows.values()}
    if set(tensors) != set(_TOWERS.values()) or set(rows) != set(widths) or len(counts) > 1:
        shapes = [f"{name} {np.shape(tensor)}" for name, tensor in tensors.items()]
        names = " and ".join(f"{_TOWERS[tower]} (n, {width})" for tower, width in widths.items())
        raise UserError(
            f"{path}: found {few(shapes) if shapes else 'nothing'}, expected a LoRA, or the rows "
            f"of one word in SDXL's two text towers, {names}"
        )
    return rows
