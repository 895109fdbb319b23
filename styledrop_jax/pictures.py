"""Images as users give them: in memory, as files, as folders."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from styledrop_jax.errors import UserError, check_words
from styledrop_jax.io import captions, files, image_files, paths
from styledrop_jax.pipelines.base import Pipeline

_SHOWN = 256  # pixels, the longest side of a user's picture on a sheet

Picture = Image.Image | np.ndarray | str | Path
"""An image: PIL's, an array [h, w, 3] (uint8, or float in [0, 1]), or a file."""


def array(picture: Picture) -> np.ndarray:
    """uint8 [h, w, 3] over white."""
    if isinstance(picture, str | Path):
        return image_files.read_image(picture)
    if isinstance(picture, Image.Image):
        return image_files.from_pillow(picture)
    return image_files.from_pillow(image_files.as_pillow(picture))


def named(picture: Picture | None) -> str:
    """The file that an image is; empty if it is none."""
    return str(picture) if isinstance(picture, str | Path) else ""


def digest(picture: Picture, pixels: np.ndarray) -> str:
    """SHA-256 of the file that an image is; of its `pixels` if it is none."""
    if isinstance(picture, str | Path):
        return files.digest(paths.expanded(picture))
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def region(mask: Picture | None, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h, w], where to generate anew."""
    if mask is None:
        return np.ones(shape, bool)
    size = (shape[0], shape[1])
    if isinstance(mask, str | Path):
        return image_files.read_mask(mask, size)
    layer = mask if isinstance(mask, Image.Image) else image_files.as_pillow(mask, "the mask")
    return image_files.as_mask(layer, size)


def several(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One image, the images of a folder, or several, as a list."""
    if isinstance(images, str | Path) and os.path.isdir(paths.expanded(images)):
        return list(captions.images_in(paths.expanded(images)))
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return [images]
    if not images:
        raise UserError("images: none; expected one or several")
    return list(images)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """An image to stylize.

    Attributes:
        image: uint8 [h, w, 3] at the size that the model generates.
        shown: as a sheet shows it.
        size: its own (height, width), pixels.
        content: what it shows.
        record: what its lines say of it.
    """

    image: np.ndarray
    shown: np.ndarray
    size: tuple[int, ...]
    content: str
    record: Mapping[str, str]


def prepared(given: Picture, prompt: str, pipeline: Pipeline) -> Prepared:
    """At the size that the model generates, as soon as it is read: photos may be many and large.

    Raises:
        UserError: it cannot be read, or neither the prompt nor its name says what it shows.
    """
    name = named(given)
    content = prompt.strip() or (paths.stem_words(Path(name)) if name else "")
    if not content:
        raise UserError(
            f"prompt: missing, and the name of {name or 'an image'} has no words; "
            "say what the image shows"
        )
    check_words(content, "prompt")
    image = array(given)
    size = pipeline.canvas(*image.shape[:2])
    record = {"image": name, "sha256": digest(given, image)}
    return Prepared(
        image=image_files.resized(image, size),
        shown=shown(image, pipeline.resolution),
        size=image.shape[:2],
        content=content,
        record=record,
    )


def shown(image: np.ndarray, resolution: int) -> np.ndarray:
    """A user's picture uint8 [h, w, 3] as a sheet shows it beside images of `resolution`: photos
    may be many and large.
    """
    return image_files.within(image, max(_SHOWN, resolution))


def by_size(given: Sequence[Prepared]) -> list[list[int]]:
    """The indices of the images of one size each: they are generated together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(given):
        groups.setdefault(picture.image.shape, []).append(i)
    return list(groups.values())


def repeated(encoded: Any, count: int) -> Any:
    """Every image of a tree of arrays [n, …] `count` times, next to itself."""
    return jax.tree.map(lambda x: np.repeat(x, count, axis=0), encoded)
