"""Treatments: image functions that multiply artists into styles. A style is artist x treatment.

Each maps uint8 [h, w, 3] to uint8 [h, w, 3], the same input always to the same output. It needs
NumPy alone and takes under a millisecond at 64 pixels. Strokes, dots and cells grow with the image,
so a treatment looks alike at any size.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from styledrop_jax.emoji import pixels as px
from styledrop_jax.emoji.pixels import Float, Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Treatment:
    """One image function.

    Attributes:
        name: short name.
        words: how a prompt says it, without "in" and "style"; empty for the untreated drawing.
        apply: uint8 [h, w, 3] → uint8 [h, w, 3].
        keeps_colour: a background of a named colour is still that colour afterwards.
    """

    name: str
    words: str
    apply: Callable[[Image], Image]
    keeps_colour: bool = False


# -------------------------------------------------------------- treatments of training


def _plain(image: Image) -> Image:
    return image


def _grayscale(image: Image) -> Image:
    return px.through(px.light(px.as_float(image)), "101010", "ffffff")


def _sepia(image: Image) -> Image:
    return px.through(px.light(px.as_float(image)), "2a1505", "9c6b3a", "f6e6c4")


def _inverted(image: Image) -> Image:
    return 255 - image


def _posterised(image: Image) -> Image:
    x = px.saturate(px.as_float(image), 1.6)
    levels = np.floor(x * 2.99) / 2
    flat = np.where(px.light(x)[..., None] > 0.97, px.rgb("ffe9a8"), levels)
    return px.as_bytes(flat)


def _pencil(image: Image) -> Image:
    x = px.as_float(image)
    light = px.light(x)
    lines = px.edges(x, gain=1.6)
    shade = (light < 0.92) * (1 - light) * (px.hatching(*light.shape, 4, 1) > 0.45)
    graphite = np.maximum(lines * (0.75 + 0.25 * px.grain(x)), 0.62 * shade)
    return px.through(1 - graphite, "2e2e33", "f5f3ec")


def _chalk(image: Image) -> Image:
    x = px.as_float(image)
    dusty = px.edges(x, gain=1.8) * (0.55 + 0.45 * px.grain(x, 1))
    fill = (px.light(x) < 0.95) * (0.25 + 0.35 * (px.hatching(*dusty.shape, 3, -1) > 0.5))
    dust = px.blur(px.grain(x, 2), 2 * px.unit_of(x)) - 0.5
    board = px.rgb("22392f") + 0.05 * dust[..., None]
    coloured = board + (0.35 + 0.65 * x - board) * fill[..., None]
    return px.as_bytes(coloured + (np.float32(0.97) - coloured) * dusty[..., None])


def _neon(image: Image) -> Image:
    x = px.as_float(image)
    lines = px.edges(x, gain=2.2)
    contrast = px.largest(x) + px.largest(-x)  # of the strongest and the weakest channel
    coloured = px.saturate(x, 2.5)
    tube = coloured / np.maximum(px.largest(coloured), 0.2)[..., None]
    tube[contrast < 0.12] = px.rgb("3fe0ff")
    lit = lines[..., None] * tube
    glow = px.blur(lit, 2 * px.unit_of(x)) * np.float32(1.5)
    core = (lines * lines * lines * np.float32(0.35))[..., None]
    return px.as_bytes(lit + glow + core + px.rgb("0b0620"))


def _handheld(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    threshold = ((rows.astype(int) * 2 + columns.astype(int) * 3) % 4 + 0.5) / 4
    step = np.floor(px.light(x) * 3 + 0.72 * (threshold - 0.5) + 0.5)
    return px.through(step / 3, "0f380f", "306230", "8bac0f", "c5d86d")


def _watercolor(image: Image) -> Image:
    x = px.as_float(image)
    moved = wobbled(x)
    wet = (px.blur(moved, px.unit_of(x)) + moved) / 2
    rim = px.edges(wet, gain=1.0)[..., None] * (1.1 - wet)  # pigment gathers where the wash ends
    wash = 0.28 + 0.72 * px.saturate(wet, 1.35) - 0.5 * rim
    pigment = px.smooth_noise(*x.shape[:2], 7) * np.float32(2.6)  # the paper takes more or less
    bloom = pigment[..., None] * (1 - px.light(wet)[..., None])
    return px.as_bytes((wash + bloom) * px.rgb("fcf8ec"))


def wobbled(x: Float) -> Float:
    """An image [h, w, 3] as if drawn by an unsteady hand."""
    return x.reshape(-1, 3)[_wobble(*x.shape[:2])]


@lru_cache(maxsize=16)
def _wobble(height: int, width: int) -> NDArray:
    """Flat indices [h, w] of pixels that are moved by about a unit, as by an unsteady hand."""
    reach = 22 * px.unit(height, width)
    down = np.round(px.smooth_noise(height, width, 5) * reach).astype(int)
    across = np.round(px.smooth_noise(height, width, 6) * reach).astype(int)
    rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
    return rows * width + np.clip(np.arange(width) + across, 0, width - 1)


def _risograph(image: Image) -> Image:
    x = px.as_float(image)
    grain = 0.8 + 0.4 * (px.grain(x, 3) - 0.5)[..., None]
    pink = (1 - x[..., 1:2]) * grain * (1 - px.rgb("ff4f9a"))
    blue = (1 - x[..., :1]) * grain * (1 - px.rgb("1f6fd0"))
    return px.as_bytes(px.rgb("faf3e0") * (1 - pink) * (1 - blue))


def _sunset(image: Image) -> Image:
    x = px.as_float(image)
    rows, _ = px.positions(*x.shape[:2])
    height = (rows / rows[-1])[..., None]  # [h, 1, 1]
    sky = px.rgb("ffb347") * (1 - height) + px.rgb("ff5e7e") * height
    return px.as_bytes((0.12 + 0.88 * x) * sky)


def _night(image: Image) -> Image:
    x = px.saturate(px.as_float(image), 0.55)
    return px.as_bytes((x**1.3) * px.rgb("3b56a6") + px.rgb("050a22"))


def _thermal(image: Image) -> Image:
    light = px.blur(px.light(px.as_float(image)), px.unit_of(image))
    return px.through(1 - light, "14104a", "7a1fa2", "e8482e", "ffb300", "fffbd0")


_POP_ART = np.array([[38, 20, 110], [255, 45, 135], [255, 215, 0], [70, 215, 225]], np.uint8)


def _pop_art(image: Image) -> Image:
    x = px.as_float(image)
    step = np.floor(np.clip(px.light(px.saturate(x, 1.3)), 0, 0.999) * 4).astype(int)
    return _POP_ART[step]


def _stained_glass(image: Image) -> Image:
    x = px.as_float(image)
    means, owner, border = pane_colours(x)
    clear = means.min(1, keepdims=True) > 0.9
    filled = np.where(clear, px.rgb("bfe6ff"), means).astype(np.float32)[owner]
    glass = px.saturate(np.float32(0.6) * filled + np.float32(0.4) * x, 1.8)
    lead = np.maximum(0.6 * border, np.minimum(1.6 * px.edges(x, gain=1.4), 1) ** 2)[..., None]
    return px.as_bytes(glass * (1 - 0.9 * lead))


def pane_colours(x: Float) -> tuple[Float, NDArray, NDArray]:
    """The mean colour [n, 3] of each pane of an image [h, w, 3], and its `_panes`."""
    owner, border = _panes(*x.shape[:2])
    counts = np.bincount(owner.ravel()).astype(np.float32)
    means = np.empty((len(counts), 3))
    for channel in range(3):
        means[:, channel] = np.bincount(owner.ravel(), x[..., channel].ravel()) / counts
    return means, owner, border


@lru_cache(maxsize=16)
def _panes(height: int, width: int) -> tuple[NDArray, NDArray]:
    """A fixed pattern of glass panes: each pixel's pane [h, w], and whether it is a border [h, w].

    A pane is what is nearest to one seed. There is a seed in every square of nine units.
    """
    rng = np.random.default_rng(11)
    rows, columns = px.positions(height, width)
    across = int(np.ceil(max(height, width) / min(height, width) * 64 / 9)) + 1
    corners = np.mgrid[:across, :across].reshape(2, -1).T * 9.0  # [n, 2]
    seeds = corners + rng.uniform(0, 9, corners.shape)
    first = np.full((height, width), np.inf, np.float32)
    second = first.copy()
    owner = np.zeros((height, width), int)
    for index, (row, column) in enumerate(seeds):
        distance = np.hypot(rows - row, columns - column).astype(np.float32)
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        owner[nearer] = index
        first = np.where(nearer, distance, first)
    _, owner = np.unique(owner, return_inverse=True)
    return owner.reshape(height, width), second - first < 0.8


def _embossed(image: Image) -> Image:
    light = px.light(px.as_float(image))
    unit = px.unit_of(image)
    wide = px.padded(light, unit)
    relief = wide[2 * unit :, 2 * unit :] - wide[: -2 * unit, : -2 * unit]
    return px.through(0.55 + 0.75 * relief + 0.1 * (light - 1), "20242c", "8d95a3", "f2f6fb")


def _stamp(image: Image) -> Image:
    x = px.as_float(image)
    light = px.light(x)
    ink = 1.0 * np.maximum(light < 0.55, px.edges(x, gain=1.5) > 0.45)
    ink = np.maximum(ink, 0.35 * ((light < 0.9) & (px.hatching(*light.shape, 3, 1) > 0.5)))
    worn = ink * (px.blur(px.grain(x, 4), px.unit_of(x)) > 0.36)
    return px.through(1 - worn, "b3162c", "f7f1e3")


def _pastel(image: Image) -> Image:
    x = px.as_float(image)
    soft = 0.5 + 0.5 * px.saturate(x, 1.1)
    paper = np.where(px.light(x)[..., None] > 0.96, px.rgb("ffe3ec"), np.float32(1))
    return px.as_bytes(soft * paper)


def _comic(image: Image) -> Image:
    x = px.as_float(image)
    flat = np.floor(px.saturate(x, 1.8) * 3.99) / 3
    flat = np.where(px.light(x)[..., None] > 0.96, px.rgb("ffd93b"), flat)
    lines = px.blur(px.edges(x, gain=2.6), px.unit_of(x) // 2) > 0.5
    return px.as_bytes(flat * (1.0 - lines)[..., None])


def _xray(image: Image) -> Image:
    x = px.as_float(image)
    body = 0.75 * (1 - px.light(x)) + 0.18 * (px.light(x) < 0.96)
    lit = np.maximum(px.blur(body, px.unit_of(x)), 0.9 * px.edges(x))
    return px.through(lit, "04080f", "1f5c80", "b9ecff", "ffffff")


# -------------------------------------------------------------- held-out treatments


def _blueprint(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    grid = 0.14 * np.maximum(rows % 8 < 1, columns % 8 < 1)
    shade = 0.22 * (px.light(x) < 0.93) * (px.hatching(*x.shape[:2], 4, 1) > 0.5)
    lines = px.edges(x, gain=2.2)
    return px.through(np.maximum(np.maximum(grid, shade), lines), "12409c", "ffffff")


def _halftone(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    down = (rows + columns) * 0.7071  # the dots stand in diagonal rows
    across = (rows - columns) * 0.7071
    dot = np.hypot(down % 4 - 2, across % 4 - 2) / 2.83
    darkness = 1 - px.blur(px.light(x), px.unit_of(x))
    ink = np.clip((np.sqrt(np.clip(darkness, 0, 1)) * 1.02 - dot) * 4 * px.unit_of(x), 0, 1)
    return px.through(1 - ink, "15151a", "fffdf5")


def _mosaic(image: Image) -> Image:
    tiles, row, column = px.cells(px.as_float(image), 4)
    is_grout = ((row == 0)[:, None] | (column == 0))[..., None]
    grout = np.float32(0.78) * tiles + np.float32(0.02)
    return px.as_bytes(np.where(is_grout, grout, px.saturate(tiles, 1.3)))


def _woodcut(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    groove = np.abs(((rows + 1.6 * np.sin(columns / 6)) % 4) / 2 - 1)
    carved = (px.light(x) * 1.08 > groove + 0.06) & (px.edges(x, gain=1.8) < 0.55)
    return px.through(carved * 1.0, "1b120b", "efdcb4")


def _cross_stitch(image: Image) -> Image:
    cells, row, column = px.cells(px.as_float(image), 5)
    row = row[:, None]
    is_thread = ((row == column) | (row + column == 4))[..., None]
    is_hole = ((row % 4 == 0) & (column % 4 == 0))[..., None]
    is_sewn = px.light(cells)[..., None] < 0.93
    cloth = np.where(is_hole, px.rgb("c9b48c"), px.rgb("e9dcc0"))
    below = np.where(is_sewn, 0.4 * cells + 0.3 * cloth, cloth)
    return px.as_bytes(np.where(is_sewn & is_thread, px.saturate(cells, 1.5), below))


def _gold_foil(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    sheen = 0.62 + 0.3 * np.sin((rows + columns) / 6) + 0.16 * (px.grain(x, 9) - 0.5)
    light = px.light(x)
    inside = 0.34 * (light < 0.94) * (1 - light) + 0.16 * (light < 0.94)
    gold = np.maximum(px.edges(x, gain=2.2), inside) * sheen
    return px.through(gold, "0c0a09", "7a5312", "e3b341", "fff3b8")


def _old_screen(image: Image) -> Image:
    x = px.as_float(image)
    shift = px.unit_of(x)
    split = np.stack([np.roll(x[..., 0], shift, 1), x[..., 1], np.roll(x[..., 2], -shift, 1)], -1)
    rows, columns = px.positions(*x.shape[:2])
    line = np.where(rows.astype(int) % 3 == 0, np.float32(0.45), np.float32(1))[..., None]
    far = ((rows / rows[-1] - 0.5) ** 2 + (columns / columns[0, -1] - 0.5) ** 2) * 2
    corner = 1 - 0.55 * far[..., None]
    return px.as_bytes(split * line * corner * px.rgb("c8ffe6") + px.rgb("06120e"))


def _comic_dots(image: Image) -> Image:
    x = px.as_float(image)
    rows, columns = px.positions(*x.shape[:2])
    dot = np.hypot(rows % 4 - 1.5, columns % 4 - 1.5) / 2.6
    light = px.light(x)
    tone = np.where(dot < np.sqrt(np.clip(1 - light, 0, 1)), np.float32(0.5), np.float32(1))
    tone = np.where((light < 0.3) | (px.edges(x, gain=2.0) > 0.6), np.float32(0), tone)
    return px.through(tone, "1d1b4c", "ff7a1a", "bff3ea")


def _paper_cut(image: Image) -> Image:
    cut = 1.0 * (px.light(px.as_float(image)) < 0.96)
    return px.through(1 - cut, "5b2a86", "ffd9a0")


TRAINED_TREATMENTS = (
    Treatment(name="plain", words="", apply=_plain, keeps_colour=True),
    Treatment(name="grayscale", words="black and white photo", apply=_grayscale),
    Treatment(name="sepia", words="old sepia photo", apply=_sepia),
    Treatment(name="inverted", words="inverted negative", apply=_inverted),
    Treatment(name="posterised", words="posterized", apply=_posterised, keeps_colour=True),
    Treatment(name="pencil", words="pencil sketch", apply=_pencil),
    Treatment(name="chalk", words="chalk on blackboard", apply=_chalk),
    Treatment(name="neon", words="neon light", apply=_neon),
    Treatment(name="handheld", words="green handheld game", apply=_handheld),
    Treatment(name="watercolor", words="watercolor painting", apply=_watercolor, keeps_colour=True),
    Treatment(name="risograph", words="risograph print", apply=_risograph),
    Treatment(name="sunset", words="warm sunset", apply=_sunset),
    Treatment(name="night", words="cold blue night", apply=_night),
    Treatment(name="thermal", words="thermal camera", apply=_thermal),
    Treatment(name="pop art", words="pop art", apply=_pop_art),
    Treatment(name="stained glass", words="stained glass", apply=_stained_glass),
    Treatment(name="embossed", words="embossed silver", apply=_embossed),
    Treatment(name="stamp", words="red ink stamp", apply=_stamp),
    Treatment(name="pastel", words="pink pastel", apply=_pastel, keeps_colour=True),
    Treatment(name="comic", words="yellow comic book", apply=_comic, keeps_colour=True),
    Treatment(name="x-ray", words="glowing x-ray", apply=_xray),
)
HELD_OUT_TREATMENTS = (
    Treatment(name="blueprint", words="blueprint", apply=_blueprint),
    Treatment(name="halftone", words="halftone dots", apply=_halftone),
    Treatment(name="mosaic", words="mosaic tile", apply=_mosaic, keeps_colour=True),
    Treatment(name="woodcut", words="woodcut print", apply=_woodcut),
    Treatment(
        name="cross stitch",
        words="cross stitch",
        apply=_cross_stitch,
        keeps_colour=True,
    ),
    Treatment(name="gold foil", words="gold foil", apply=_gold_foil),
    Treatment(name="old screen", words="old television", apply=_old_screen),
    Treatment(name="comic dots", words="orange dot print", apply=_comic_dots),
    Treatment(name="paper cut", words="paper cut", apply=_paper_cut),
)
"""Never used to train a base model or its tokenizer."""
TREATMENTS = TRAINED_TREATMENTS + HELD_OUT_TREATMENTS
TREATMENTS_BY_NAME = {treatment.name: treatment for treatment in TREATMENTS}
