"""Pictures for the page: small ones made once, and those that a person drops on it."""

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import guard, write_bytes
from styledrop_jax.studio.folders import Missing, Studio

SIDES = (160, 320, 640)
"""Longest sides of small pictures, pixels."""
MOST_BYTES = 64 * 2**20
"""Of one upload."""
_PNG = b"\x89PNG\r\n\x1a\n"
_SMALL = 64 * 2**10  # bytes below which a picture is its own thumbnail


def thumbnail(studio: Studio, path: Path, side: int) -> Path:
    """A picture at no more than `side` pixels, a WebP of the cache; a PNG of few bytes is its own.

    Raises:
        UserError: it cannot be read as a picture.
    """
    if side not in SIDES:
        raise UserError(f"side: found {side}, expected one of {', '.join(map(str, SIDES))}")
    found = path.stat()
    if found.st_size <= _SMALL and is_png(path) and max(_size(path)) <= side:
        return path
    name = hashlib.sha256(f"{path}\0{found.st_mtime_ns}\0{found.st_size}".encode()).hexdigest()
    small = studio.state / "thumbnails" / name[:2] / f"{name}-{side}.webp"
    if not small.exists():
        reduced = image_files.within(image_files.read_image(path), side)
        buffer = io.BytesIO()
        Image.fromarray(reduced).save(buffer, format="WEBP", quality=85, method=2)
        write_bytes(small, buffer.getvalue())
    return small


def is_png(path: Path) -> bool:
    """Whether a file begins as a PNG: the only kind that is sent as it is."""
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def _size(path: Path) -> tuple[int, int]:
    """Of a PNG, from its header: (width, height)."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24:
        return (0, 0)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def keep_upload(studio: Studio, data: bytes) -> str:
    """Reads what a person dropped on the page as a picture, keeps it as a PNG, and returns its
    name.

    Raises:
        UserError: it is no picture, damaged, animated, or too large.
    """
    folder = studio.state / "uploads"
    with guard(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        layer = image_files.read_layer(temporary)
    except UserError as error:
        said = str(error).partition(": ")[2] or str(error)
        raise UserError(f"the picture: {said}") from None
    finally:
        os.unlink(temporary)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(layer)).save(buffer, format="PNG")
    name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
    write_bytes(folder / f"{name}.png", buffer.getvalue())
    return name


def upload(studio: Studio, name: str) -> Path:
    """The file of an upload; Missing if there is none of that name."""
    path = studio.state / "uploads" / f"{name}.png"
    if not re.fullmatch(r"[0-9a-f]{32}", name) or not path.is_file():
        raise Missing("no such upload; drop the picture again")
    return path
