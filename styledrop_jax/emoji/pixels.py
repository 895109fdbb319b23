"""What treatments are made of: light, edges, noise, hatching. On float32 in [0, 1] unless said otherwise.

Lengths are in units: the pixels that one pixel of a 64 px image stands for, so that a stroke grows with the image.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [h, w, 3]
Float = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def as_float(image: Image) -> Float:
    return image.astype(np.float32) * np.float32(1 / 255)


def as_bytes(x: Float) -> Image:
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def light(x: Float) -> Float:
    return x @ _LUMA  # [h, w]


def unit_of(x: NDArray) -> int:
    """Pixels that one pixel of a 64 px image stands for."""
    return max(1, round(min(x.shape[:2]) / 64))


def rgb(code: str) -> Float:
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


@lru_cache
def ramp(*codes: str) -> Image:
    """A palette of 256 colours [256, 3] that runs through the given ones, dark to light."""
    stops = np.stack([rgb(code) for code in codes])  # [n, 3]
    at = np.linspace(0, len(codes) - 1, 256)
    return as_bytes(
        np.stack([np.interp(at, np.arange(len(codes)), stops[:, c]) for c in range(3)], 1)
    )


def through(light: Float, *codes: str) -> Image:
    return ramp(*codes)[(np.clip(light, 0, 1) * 255).astype(np.uint8)]


def padded(x: Float, width: int) -> Float:
    """[h, w, ...] with `width` more pixels on every side, edges repeated (np.pad costs more than the treatments)."""
    rows, columns = (np.clip(np.arange(-width, side + width), 0, side - 1) for side in x.shape[:2])
    return x[rows].take(columns, axis=1)


def blur(x: Float, radius: int) -> Float:
    """Box blur of [h, w, ...] over 2 radius + 1 pixels each way, edges repeated."""
    height, width = x.shape[:2]
    wide = padded(x, radius)
    tall = sum(wide[i : i + height] for i in range(2 * radius + 1))
    return sum(tall[:, i : i + width] for i in range(2 * radius + 1)) * np.float32(
        (2 * radius + 1) ** -2
    )


def largest(x: Float) -> Float:
    """Largest channel [h, w] (a reduction over so short an axis is slow)."""
    return np.maximum(np.maximum(x[..., 0], x[..., 1]), x[..., 2])


def edges(x: Float, *, gain: float = 2.0) -> Float:
    """Strength [h, w] in [0, 1] of the strongest colour change around each pixel, one unit away."""
    unit = unit_of(x)
    wide = padded(blur(x, unit // 2) if unit > 1 else x, unit)
    across = np.abs(wide[unit:-unit, 2 * unit :] - wide[unit:-unit, : -2 * unit])
    down = np.abs(wide[2 * unit :, unit:-unit] - wide[: -2 * unit, unit:-unit])
    return np.minimum(largest(across + down) * np.float32(gain / 2), 1)


def saturate(x: Float, amount: float) -> Float:
    grey = light(x)[..., None]
    return np.clip(grey + (x - grey) * np.float32(amount), 0, 1)


@lru_cache(maxsize=64)
def noise(height: int, width: int, cell: int, seed: int) -> Float:
    """Fixed grain [h, w] in [0, 1]: one value to each cell of `cell` pixels, the same pattern at any image size."""
    grid = np.random.default_rng(seed).random((512, 512), np.float32)
    rows, columns = np.arange(height) // cell % 512, np.arange(width) // cell % 512
    return grid[rows[:, None], columns]


@lru_cache(maxsize=64)
def positions(height: int, width: int) -> tuple[Float, Float]:
    """Coordinates in units of a 64 px image: rows [h, 1] and columns [1, w]."""
    unit = min(height, width) / 64
    return (np.arange(height, dtype=np.float32) / unit)[:, None], (
        np.arange(width, dtype=np.float32) / unit
    )[None]


def grain(x: NDArray, seed: int = 0) -> Float:
    return noise(x.shape[0], x.shape[1], unit_of(x), seed)


@lru_cache(maxsize=64)
def hatching(height: int, width: int, period: int, slope: int) -> Float:
    """Diagonal stripes [h, w] in [0, 1], `period` units apart."""
    rows, columns = positions(height, width)
    phase = (rows * slope + columns) % period / period
    return np.abs(2 * phase - 1)


def cells(x: Float, side: int) -> tuple[Float, NDArray, NDArray]:
    """Mean colour over square cells of `side` units, back at full size, and each pixel's place in its cell."""
    height, width = x.shape[:2]
    step = side * unit_of(x)
    rows, columns = np.arange(height), np.arange(width)
    sums = np.add.reduceat(np.add.reduceat(x, rows[::step], axis=0), columns[::step], axis=1)
    tall = np.diff(np.append(rows[::step], height))[:, None, None]
    wide = np.diff(np.append(columns[::step], width))[None, :, None]
    means = (sums / (tall * wide)).astype(np.float32)
    unit = unit_of(x)
    return (
        means[rows[:, None] // step, columns // step],
        rows % step // unit,
        columns % step // unit,
    )
