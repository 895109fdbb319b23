"""How an image that is no square becomes one, or keeps its shape: its middle is cut out, its sides
are padded, or it is cut to one of a few sizes.
"""

import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from styledrop_jax.io.image_files import over_white, read_layer

FITS = ("auto", "crop", "pad", "keep")
MOST_SIZES = 3  # of the images of a run: each is a program to compile

_LITTLE = 0.02  # of an image, on average, that one size more has to save
_PLAIN = 16  # what a plain border differs from its median at most, of 255: paper's and JPEG's noise


Size = tuple[int, int]
"""Height and width, pixels."""


class Fitted(NamedTuple):
    """An image as it was read.

    Attributes:
        image: uint8 [h, w, 3].
        ground: the colour that pads it, "#rrggbb", as `to_square` takes it; empty if nothing does.
        keeps: whether it keeps its shape, see `sizes`.
    """

    image: np.ndarray
    ground: str = ""
    keeps: bool = False


def read_fitted(path: str | os.PathLike[str], fit: str) -> Fitted:
    """Reads an image as `read_image` does, and decides how it becomes a square.

    Args:
        path: the image file.
        fit: "crop" cuts out the middle; "pad" fills the sides with the colour of the ground, which
            is white if the image is transparent somewhere, else the median of its border; "auto"
            pads where it is transparent or its border of one colour, and else cuts. It also cuts
            where only ground would be lost: so a drawing stays as large as it can be. "keep" does
            as "auto", but what that would cut through keeps its shape.
    """
    layer = read_layer(path)
    image = over_white(layer)
    if fit == "crop" or layer.width == layer.height:
        return Fitted(image)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    if layer.mode == "RGBA" and not np.asarray(layer)[..., 3].all():
        ground = np.array([255, 255, 255])
    elif fit != "pad" and np.abs(border - ground).max() > _PLAIN:
        return Fitted(image, keeps=fit == "keep")
    if fit != "pad" and np.abs(_outside(image) - ground).max() <= _PLAIN:
        return Fitted(image)
    return Fitted(image, "#" + ground.astype(np.uint8).tobytes().hex())


def sizes(shapes: Sequence[Size | None], offered: Sequence[Size]) -> list[Size]:
    """The size that each image is cut to: few in all, so that least is cut off.

    Args:
        shapes: height and width of each image; None is a square already.
        offered: the square, and others of about its area.

    Returns:
        of each image one of at most `MOST_SIZES` of those that are offered, fewer where one more
        would save little.
    """
    kept = [shape for shape in shapes if shape is not None]
    if not kept:
        return [offered[0]] * len(shapes)
    own = np.log([w / h for h, w in kept])
    others = np.log([w / h for h, w in offered])
    lost = 1 - np.exp(-np.abs(own[:, None] - others))  # [images, sizes], shares of the area
    squares = len(kept) < len(shapes)
    best: list[int] = []
    least = np.inf
    for count in range(1, MOST_SIZES + 1):
        for some in itertools.combinations(range(len(offered)), count):
            if squares and 0 not in some:
                continue
            total = lost[:, some].min(axis=1).mean()
            if total < least - (_LITTLE if len(best) < count else 0):
                best, least = list(some), total
    nearest = iter([offered[best[i]] for i in lost[:, best].argmin(axis=1)])
    return [offered[0] if shape is None else next(nearest) for shape in shapes]


def _outside(image: np.ndarray) -> np.ndarray:
    """The pixels [n, 3] that are not in the middle square."""
    h, w = image.shape[:2]
    upright = image if h > w else image.swapaxes(0, 1)
    side = min(h, w)
    top = (max(h, w) - side) // 2
    return np.concatenate([upright[:top], upright[top + side :]]).reshape(-1, 3).astype(int)
