"""Contact sheets: images in rows, with captions in any script."""

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import manimgx_fonts
import manimgx_fonts_cjk
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from styledrop_jax.io.image_files import to_uint8

MAX_PIXELS = 40_000_000  # of a sheet: 120 MB in memory

_MARK = (255, 106, 0)
_INK = (40, 40, 40)
_CAPTION = 14  # height of a caption, pixels
_FONT_SIZE = 10
_BASELINE = 11  # pixels below the top of a caption
_NO_CHARACTER = "\U0010ffff"  # never assigned: every font shows it as it shows what it lacks


def grid(
    images: Sequence[np.ndarray],
    *,
    columns: int | None = None,
    pad: int = 4,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    marked: Iterable[int] = (),
) -> np.ndarray:
    """Lays images out in rows, for contact sheets.

    Images of one shape fill their cells. Of several shapes, each stands in the middle of a cell
    that holds the largest, but no side of a cell is more than twice the usual side of an image:
    what is larger is reduced. All are reduced where the sheet would have more than `MAX_PIXELS`.

    Args:
        images: float [0, 1] or uint8, each [h, w, 3].
        columns: images a row; None makes the sheet about square, with a full last row where that
            can be.
        pad: the border around each image, pixels; white, or coloured for marked images.
        scale: whole number by which each pixel is repeated.
        captions: one line under each image, cut to its width.
        marked: indices of the images that get the coloured frame.

    Returns:
        uint8 [H, W, 3].
    """
    marked = set(marked)
    below = 0 if captions is None else _CAPTION
    height, width = _room(images, scale)
    if columns is None:
        columns = _columns(len(images), height + 2 * pad + below, width + 2 * pad)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    while rows * (height + 2 * pad + below) * columns * (width + 2 * pad) > MAX_PIXELS:
        if height == width == 1:
            break
        height = max(1, int(0.98 * height))
        width = max(1, int(0.98 * width))
    cell_height = height + 2 * pad + below
    cell_width = width + 2 * pad
    sheet = np.full((rows * cell_height, columns * cell_width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top = i // columns * cell_height
        left = i % columns * cell_width
        cell = sheet[top : top + cell_height, left : left + cell_width]
        if i in marked:
            cell[: height + 2 * pad] = _MARK
        room = cell[pad : pad + height, pad : pad + width]
        room[:] = 255
        _put(image, scale, room)
        if captions is not None:
            cell[-_CAPTION:] = _caption(captions[i], cell_width)
    return sheet


def _room(images: Sequence[np.ndarray], scale: int) -> tuple[int, int]:
    """(height, width) of the room for an image, pixels."""
    heights = []
    widths = []
    for image in images:
        heights.append(scale * image.shape[0])
        widths.append(scale * image.shape[1])
    height = max(heights)
    width = max(widths)
    if min(heights) == height and min(widths) == width:
        return height, width
    usual = np.median(np.sqrt(np.multiply(heights, widths)))
    largest = math.ceil(2 * usual)
    return min(height, largest), min(width, largest)


def _columns(count: int, height: int, width: int) -> int:
    """Cells [height, width] a row, so that `count` make a sheet that is about square.

    A full last row is worth a sheet that is up to twice as long as wide, or as wide as long.
    """
    best = count
    least = (True, math.inf)
    for columns in range(count, 0, -1):
        rows = -(-count // columns)
        sides = (rows * height, columns * width)
        uneven = max(sides) / min(sides)
        full = rows * columns == count and uneven <= 2
        if (not full, uneven) < least:
            best = columns
            least = (not full, uneven)
    return best


def _put(image: np.ndarray, scale: int, room: np.ndarray) -> None:
    """Puts an image into the middle of `room`, uint8 [h, w, 3]: enlarged by `scale`, or to fit."""
    image = to_uint8(image)
    h, w = image.shape[:2]
    factor = min(room.shape[0] / h, room.shape[1] / w)
    if factor >= scale:
        image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    else:
        size = (max(1, int(factor * w)), max(1, int(factor * h)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    h, w = image.shape[:2]
    top = (room.shape[0] - h) // 2
    left = (room.shape[1] - w) // 2
    room[top : top + h, left : left + w] = image


def _caption(text: str, width: int) -> np.ndarray:
    """One line of text, cut to `width`, uint8 [`_CAPTION`, width, 3]."""
    strip = Image.new("RGB", (width, _CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    text = " ".join(text.split())
    short = text[:width]  # no letter is narrower than a pixel
    line = short if short == text else f"{short}…"
    while short and _length(line) > width - 4:
        short = short[:-1].rstrip()
        line = f"{short}…"
    x = 2.0
    for font, part in _runs(line):
        draw.text((x, _BASELINE), part, fill=_INK, font=font, anchor="ls")
        x += font.getlength(part)
    return np.asarray(strip)


def _length(text: str) -> float:
    return sum(font.getlength(part) for font, part in _runs(text))


def _runs(text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """`text` in parts, each with the font that has all its letters."""
    runs = []
    font = _fonts()[0]
    for letter in text:
        last = font
        if not _has(font, letter):
            font = _font_of(letter)
        if runs and font is last:
            runs[-1] = (font, runs[-1][1] + letter)
        else:
            runs.append((font, letter))
    return runs


def _font_of(letter: str) -> ImageFont.FreeTypeFont:
    for font in _fonts():
        if _has(font, letter):
            return font
    return _fonts()[0]


@functools.lru_cache(maxsize=10_000)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    return _glyph(font, letter) != _glyph(font, _NO_CHARACTER)


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    image = Image.new("L", (3 * _FONT_SIZE, 3 * _FONT_SIZE))
    draw = ImageDraw.Draw(image)
    draw.text((_FONT_SIZE, 2 * _FONT_SIZE), letter, fill=255, font=font, anchor="ls")
    return image.tobytes()


@functools.cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    """Noto Sans for Latin, Greek and Cyrillic, for East Asian scripts, and for all others."""
    folder = Path(manimgx_fonts.__path__[0])
    first = folder / "NotoSans[wght].ttf"
    east_asian = Path(manimgx_fonts_cjk.__path__[0]) / "NotoSansCJK-VF.otf.ttc"
    others = sorted(folder.glob("*.ttf"))
    fonts = []
    for path in dict.fromkeys([first, east_asian, *others]):
        fonts.append(ImageFont.truetype(path, _FONT_SIZE))
    fonts[1].set_variation_by_axes([400])  # regular: its default is thin
    return fonts
