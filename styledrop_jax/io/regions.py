"""The part of a picture that is generated anew: what the model sees of it, and how its seam is
blended.
"""

import numpy as np
from PIL import Image, ImageFilter

Box = tuple[int, int, int, int]
"""(left, top, right, bottom), pixels, as Pillow has it."""

_CONTEXT = 2  # side of the window over the longer side of what is generated anew
_SEAM = 0.01  # of the shorter side of the picture
_WIDEST_SEAM = 8  # pixels


def window(region: np.ndarray, least: int) -> Box:
    """The part of a picture that the model works on: the region with its surroundings.

    Args:
        region: bool [h, w], somewhere true.
        least: the side of what the model generates, pixels.

    Returns:
        a square around the region, twice as wide as the region is long and at least `least` pixels;
        moved into the picture where it would stand out, and cut where the picture is smaller.
    """
    left, top, right, bottom = Image.fromarray(region).getbbox() or (0, 0, 0, 0)
    side = max(_CONTEXT * max(right - left, bottom - top), least)
    height, width = region.shape
    first_column, last_column = _span(left, right, side, width)
    first_row, last_row = _span(top, bottom, side, height)
    return first_column, first_row, last_column, last_row


def _span(first: int, last: int, side: int, whole: int) -> tuple[int, int]:
    """`side` pixels of 0 … `whole`, around the middle of `first` … `last` or as near as can be."""
    side = min(side, whole)
    start = min(max((first + last - side) // 2, 0), whole - side)
    return start, start + side


def reduced(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A region [h, w] at another size = (height, width): true wherever any of its pixels falls."""
    shares = Image.fromarray(region.astype(np.float32))
    resized = shares.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(resized) > 0


def seam(region: np.ndarray, picture: tuple[int, ...]) -> Image.Image:
    """How much of each pixel is the model's: 0 outside the region, rising inside over a seam to
    255.

    Args:
        region: bool [h, w], of a window of the picture, somewhere true.
        picture: (h, w) of the whole picture, pixels: the seam is 1 % of its shorter side, at most 8
            pixels, and at most as deep as the region.

    Returns:
        [h, w], a mask for Pillow. There is no seam where the region ends with the picture.
    """
    width = min(round(_SEAM * min(picture)), _WIDEST_SEAM)
    left = Image.fromarray(region.astype(np.uint8))
    depth = np.zeros(region.shape, np.uint8)
    for _ in range(width + 1):
        depth += np.asarray(left)
        left = left.filter(ImageFilter.MinFilter(3))
    share = depth / depth.max()
    return Image.fromarray(np.rint(255 * share).astype(np.uint8))
