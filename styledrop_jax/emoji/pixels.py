"""What treatments are made of: light, edges, noise, hatching.

Images are floats in [0, 1] unless a function says otherwise. Lengths are in units: one unit is the
pixels that one pixel of a 64-pixel image stands for, so that a stroke grows with the image.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [h, w, 3]
Float = NDArray[np.floating]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def as_float(image: Image) -> Float:
    return image.astype(np.float32) * np.float32(1 / 255)


def as_bytes(x: Float) -> Image:
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def light(x: Float) -> Float:
    """The lightness [h, w] of colours [h, w, 3]."""
    return x @ _LUMA


def unit(height: int, width: int) -> int:
    """The pixels of one unit in an image of this size."""
    return max(1, round(min(height, width) / 64))


def unit_of(x: NDArray) -> int:
    """The pixels of one unit in the image [h, w, ...]."""
    return unit(x.shape[0], x.shape[1])


def rgb(code: str) -> Float:
    """ "ff8000" as a colour [3]."""
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32) / 255


@lru_cache
def ramp(*codes: str) -> Image:
    """A palette of 256 colours [256, 3] that runs through the given ones, dark to light."""
    stops = np.stack([rgb(code) for code in codes])  # [n, 3]
    at = np.linspace(0, len(codes) - 1, 256)
    palette = np.empty((256, 3))
    for channel in range(3):
        palette[:, channel] = np.interp(at, np.arange(len(codes)), stops[:, channel])
    return as_bytes(palette)


def through(light: Float, *codes: str) -> Image:
    """Lightness [h, w] in the colours of a `ramp`, uint8 [h, w, 3]."""
    return ramp(*codes)[(np.clip(light, 0, 1) * 255).astype(np.uint8)]


def padded(x: Float, width: int) -> Float:
    """[h, w, ...] with `width` more pixels on every side, edges repeated; faster than np.pad."""
    rows = np.clip(np.arange(-width, x.shape[0] + width), 0, x.shape[0] - 1)
    columns = np.clip(np.arange(-width, x.shape[1] + width), 0, x.shape[1] - 1)
    return x[rows].take(columns, axis=1)


def blur(x: Float, radius: int) -> Float:
    """Box blur of [h, w, ...] over 2 radius + 1 pixels each way, edges repeated."""
    height, width = x.shape[:2]
    side = 2 * radius + 1
    wide = padded(x, radius)
    tall = np.zeros_like(wide[:height])
    for i in range(side):
        tall += wide[i : i + height]
    total = np.zeros_like(x)
    for i in range(side):
        total += tall[:, i : i + width]
    return total * np.float32(side**-2)


def largest(x: Float) -> Float:
    """Largest channel [h, w] (a reduction over so short an axis is slow)."""
    return np.maximum(np.maximum(x[..., 0], x[..., 1]), x[..., 2])


def edges(x: Float, *, gain: float = 2.0, reach: int = 0) -> Float:
    """Strength [h, w] in [0, 1] of the strongest colour change around each pixel.

    Args:
        x: [h, w, 3].
        gain: 2 counts a change of 1, in both directions together, as full strength.
        reach: pixels to each side that are looked at; 0 is one unit.
    """
    unit = reach or unit_of(x)
    wide = padded(blur(x, unit // 2) if unit > 1 else x, unit)
    across = np.abs(wide[unit:-unit, 2 * unit :] - wide[unit:-unit, : -2 * unit])
    down = np.abs(wide[2 * unit :, unit:-unit] - wide[: -2 * unit, unit:-unit])
    return np.minimum(largest(across + down) * np.float32(gain / 2), 1)


def saturate(x: Float, amount: float) -> Float:
    gray = light(x)[..., None]
    return np.clip(gray + (x - gray) * np.float32(amount), 0, 1)


@lru_cache(maxsize=64)
def noise(height: int, width: int, cell: int, seed: int) -> Float:
    """Fixed grain [h, w] in [0, 1]: one value for each cell of `cell` pixels, whatever the size."""
    grid = np.random.default_rng(seed).random((512, 512), np.float32)
    rows = np.arange(height) // cell % 512
    columns = np.arange(width) // cell % 512
    return grid[rows[:, None], columns]


def grain(x: NDArray, seed: int = 0) -> Float:
    """Noise for the image [h, w, ...], one value a unit."""
    return noise(x.shape[0], x.shape[1], unit_of(x), seed)


@lru_cache(maxsize=64)
def smooth_noise(height: int, width: int, seed: int) -> Float:
    """Fixed noise [h, w] around 0 that varies slowly, over several units."""
    length = unit(height, width)
    return blur(blur(noise(height, width, length, seed), 3 * length), 2 * length) - 0.5


@lru_cache(maxsize=64)
def positions(height: int, width: int) -> tuple[Float, Float]:
    """Coordinates in units: rows [h, 1] and columns [1, w]."""
    scale = min(height, width) / 64
    rows = np.arange(height, dtype=np.float32) / scale
    columns = np.arange(width, dtype=np.float32) / scale
    return rows[:, None], columns[None]


@lru_cache(maxsize=64)
def hatching(height: int, width: int, period: int, slope: int) -> Float:
    """Diagonal stripes [h, w] in [0, 1], `period` units apart."""
    rows, columns = positions(height, width)
    phase = (rows * slope + columns) % period / period
    return np.abs(2 * phase - 1)


def cells(x: Float, side: int) -> tuple[Float, NDArray, NDArray]:
    """Cuts an image into square cells of `side` units.

    Returns:
        The mean colour of each pixel's cell [h, w, 3], and where in its cell each row [h] and each
        column [w] lies, in units.
    """
    height, width = x.shape[:2]
    unit = unit_of(x)
    step = side * unit
    rows = np.arange(height)
    columns = np.arange(width)
    sums = np.add.reduceat(np.add.reduceat(x, rows[::step], axis=0), columns[::step], axis=1)
    tall = np.minimum(step, height - rows[::step])[:, None, None]
    wide = np.minimum(step, width - columns[::step])[None, :, None]
    means = (sums / (tall * wide)).astype(np.float32)
    of_pixels = means[rows[:, None] // step, columns // step]
    return of_pixels, rows % step // unit, columns % step // unit
