"""Styles composed of independent parts: lines, fill, inks, ground, edge; each says itself in words.

A treatment of `treatments.py` is one point. These fill the space between: a style that somebody
brings mostly lies between some that a base model has seen. Whole values of parts are held out of
training, to measure what a model makes of parts that are new to it.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from styledrop_jax.emoji import pixels as px
from styledrop_jax.emoji.pixels import Float, Image
from styledrop_jax.emoji.treatments import Treatment, pane_colours, wobbled

COLOURS = {
    "black": "16161a",
    "white": "ffffff",
    "red": "d0312d",
    "orange": "f0862e",
    "yellow": "fad23f",
    "green": "3f9a52",
    "mint": "a9e0c6",
    "blue": "2f62cf",
    "sky": "a5d5f4",
    "navy": "17264f",
    "purple": "7a48b0",
    "lilac": "cdb4e6",
    "pink": "f39ac0",
    "brown": "7a5230",
    "cream": "f6ecd2",
    "gray": "8e939a",
    "teal": "13807f",
    "maroon": "7c1f33",
}
"""Name → RGB."""
_OWN = 0.35  # of the styles keep the drawing's colours
_LEAST_CONTRAST = 0.3  # of lightness, between the ground and one ink at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a style is composed of.

    Attributes:
        line: a key of `LINES`.
        fill: a key of `FILLS`.
        inks: keys of `COLOURS`, dark to light; none for the drawing's own colours.
        ground: a key of `COLOURS`.
        texture: of the ground, a key of `TEXTURES`.
        edge: a key of `EDGES`.
    """

    line: str
    fill: str
    inks: tuple[str, ...]
    ground: str
    texture: str
    edge: str


# -------------------------------------------------------------- lines: how much ink, [h, w]


def _thin(x: Float) -> Float:
    return px.edges(x, gain=2.4, reach=1)


def _thick(x: Float) -> Float:
    unit = px.unit_of(x)
    return np.minimum(2.5 * px.blur(px.edges(x, gain=2.4), unit), 1)


def _chalk(x: Float) -> Float:
    return px.edges(x, gain=2.0) * (0.35 + 0.65 * px.grain(x, 21))


def _brush(x: Float) -> Float:
    swelling = 0.5 + 2.5 * (0.5 + 2 * px.smooth_noise(*x.shape[:2], 22))
    return np.clip(px.blur(px.edges(x, gain=2.2), px.unit_of(x)) * swelling, 0, 1)


def _double(x: Float) -> Float:
    wide = np.minimum(3 * px.blur(px.edges(x, gain=2.4), px.unit_of(x)), 1)
    return np.clip(wide - 1.4 * px.edges(x, gain=2.4, reach=1), 0, 1)


LINES: dict[str, tuple[str, Callable[[Float], Float] | None]] = {
    "none": ("", None),
    "thin": ("thin line", _thin),
    "thick": ("thick outline", _thick),
    "chalk": ("chalk line", _chalk),
    "brush": ("brush line", _brush),
    "double": ("double line", _double),
}
"""Name → its words, and where the line is."""


# -------------------------------------------------------------- fills: how much ink, of a darkness


def _flat(darkness: Float) -> Float:
    return np.ones_like(darkness)


def _unfilled(darkness: Float) -> Float:
    return np.zeros_like(darkness)


def _stripes(darkness: Float, slope: int) -> Float:
    pattern = px.hatching(*darkness.shape, 4, slope)
    return np.clip((pattern - 0.75 + 0.6 * darkness) * 4 * px.unit_of(darkness), 0, 1)


def _hatched(darkness: Float) -> Float:
    return _stripes(darkness, 1)


def _cross_hatched(darkness: Float) -> Float:
    return np.maximum(_stripes(darkness, 1), _stripes(darkness - 0.25, -1))


def _dotted(darkness: Float) -> Float:
    rows, columns = px.positions(*darkness.shape)
    dot = np.hypot(rows % 3 - 1.5, columns % 3 - 1.5) / 2.1
    return np.clip((0.35 + 0.6 * darkness - dot) * 4 * px.unit_of(darkness), 0, 1)


def _grainy(darkness: Float) -> Float:
    return 1.0 * (px.noise(*darkness.shape, 1, 23) < 0.25 + 0.75 * darkness)


def _gradient(darkness: Float) -> Float:
    rows, _ = px.positions(*darkness.shape)
    return np.broadcast_to(0.3 + 0.7 * rows / rows[-1], darkness.shape)


def _stitched(darkness: Float) -> Float:
    rows, columns = px.positions(*darkness.shape)
    down, across = rows % 4, columns % 4
    apart = np.minimum(np.abs(down - across), np.abs(down + across - 3.5))
    return np.clip(1.5 - 1.2 * apart, 0, 1)


FILLS: dict[str, tuple[str, Callable[[Float], Float]]] = {
    "flat": ("flat", _flat),
    "unfilled": ("unfilled", _unfilled),
    "hatched": ("hatched", _hatched),
    "cross-hatched": ("cross-hatched", _cross_hatched),
    "dotted": ("dotted", _dotted),
    "grainy": ("grainy", _grainy),
    "gradient": ("gradient", _gradient),
    "stitched": ("stitched", _stitched),
    "blocks": ("pixel block", _flat),
    "facets": ("faceted", _flat),
}
"""Name → its words, and how much of a pixel's ink there is."""


# -------------------------------------------------------------- grounds and edges


def _paper(ground: Float) -> Float:
    fibres = 0.06 * (px.noise(*ground.shape[:2], 1, 25) - 0.5)
    return _room(ground) + (0.1 * px.smooth_noise(*ground.shape[:2], 24) + fibres)[..., None]


def _grid(ground: Float) -> Float:
    rows, columns = px.positions(*ground.shape[:2])
    on_line = np.maximum(rows % 8 < 0.5, columns % 8 < 0.5)[..., None]
    away = np.where(px.light(ground) > 0.5, -0.14, 0.14)[..., None]
    return ground + on_line * away.astype(np.float32)


def _dusty(ground: Float) -> Float:
    dust = px.blur(px.grain(ground, 26), 2 * px.unit_of(ground)) - 0.5
    return _room(ground) + 0.25 * dust[..., None]


def _room(ground: Float) -> Float:
    """The ground a little nearer to gray, so that black and white can vary too."""
    return np.float32(0.92) * ground + np.float32(0.04)


TEXTURES: dict[str, tuple[str, Callable[[Float], Float] | None]] = {
    "plain": ("", None),
    "paper": ("paper", _paper),
    "grid": ("grid paper", _grid),
    "board": ("board", _dusty),
}
"""Name → its words, and what it does to the plain ground [h, w, 3]."""

EDGES = {"clean": "", "rough": "rough", "soft": "soft", "shadow": "shadowed", "glow": "glowing"}
"""Name → its words."""

HELD_OUT = {
    "line": ("double",),
    "fill": ("facets", "cross-hatched"),
    "inks": ("teal", "maroon"),
    "ground": ("teal", "maroon"),
    "texture": ("grid",),
    "edge": ("glow",),
}
"""Field of `Parts` → its values that no base model trains on."""


# -------------------------------------------------------------- a style


def _areas(x: Float, fill: str) -> Float:
    """A drawing's colours [h, w, 3], in blocks or facets if the fill asks for them."""
    if fill == "blocks":
        return px.cells(x, 4)[0]
    if fill != "facets":
        return x
    means, owner, _ = pane_colours(x)
    return means.astype(np.float32)[owner]


def _colour(name: str) -> Float:
    return px.rgb(COLOURS[name])


def _inked(areas: Float, inks: tuple[str, ...]) -> Float:
    """Each pixel in one of the inks, by its lightness; in its own colour where there is none."""
    if not inks:
        return px.saturate(areas, 1.2)
    table = np.stack([_colour(name) for name in inks])
    level = (px.light(areas) / 0.97 * len(inks)).astype(int)
    return table[np.minimum(level, len(inks) - 1)]


def draw(parts: Parts, image: Image) -> Image:
    """A drawing on white, uint8 [h, w, 3], in a style."""
    x = px.as_float(image)
    unit = px.unit_of(x)
    if parts.edge == "rough":
        x = wobbled(x)
    areas = _areas(x, parts.fill)
    body = np.float32(1) * (px.light(areas) < 0.97)
    if parts.edge == "soft":
        body = px.blur(body, 2 * unit)
    ground = np.broadcast_to(_colour(parts.ground), x.shape)
    texture = TEXTURES[parts.texture][1]
    if texture is not None:
        ground = texture(ground)
    if parts.edge == "shadow":
        shade = np.roll(px.blur(body, unit), (3 * unit, 3 * unit), (0, 1))
        ground = ground * (1 - 0.45 * shade[..., None])
    if parts.edge == "glow":
        light = px.blur(px.blur(body, 3 * unit), 3 * unit)
        ground = ground + (1 - ground) * 0.7 * light[..., None]
    amount = body * FILLS[parts.fill][1](1 - px.light(areas))
    canvas = ground + (_inked(areas, parts.inks) - ground) * amount[..., None]
    line = LINES[parts.line][1]
    if line is not None:
        strength = line(areas if parts.fill in ("blocks", "facets") else x)
        canvas = canvas + (_line_colour(parts) - canvas) * strength[..., None]
    return px.as_bytes(canvas)


def _line_colour(parts: Parts) -> Float:
    """The ink that is farthest from the ground; else black or white."""
    ground = px.light(_colour(parts.ground))
    options = parts.inks or ("black", "white")
    return _colour(max(options, key=lambda name: abs(px.light(_colour(name)) - ground)))


def words(parts: Parts) -> list[str]:
    """A phrase for each part that has one."""
    phrases = [EDGES[parts.edge], LINES[parts.line][0], FILLS[parts.fill][0]]
    if parts.inks:
        phrases.append(f"{' and '.join(parts.inks)} ink")
    texture = TEXTURES[parts.texture][0]
    if parts.ground != "white" or texture:
        phrases.append(f"on {parts.ground} {texture or 'ground'}")
    return [phrase for phrase in phrases if phrase]


def _is_legible(parts: Parts) -> bool:
    """Whether all parts can be seen: there is ink, one unlike the ground, and dark for a glow."""
    if parts.fill == "unfilled" and parts.line == "none":
        return False
    ground = px.light(_colour(parts.ground))
    if parts.edge == "glow" and ground > 0.75:
        return False
    contrasts = [float(abs(px.light(_colour(name)) - ground)) for name in parts.inks]
    return not contrasts or max(contrasts) > _LEAST_CONTRAST


def random_parts(rng: np.random.Generator, *, held_out: bool = False) -> Parts:
    """Parts of a style by chance.

    Args:
        rng: the randomness.
        held_out: also values that base models do not train on.
    """
    while True:
        inks: tuple[str, ...] = ()
        if rng.random() > _OWN:
            options = _values("inks", COLOURS, held_out)
            chosen = rng.choice(options, size=int(rng.choice([1, 1, 2, 2, 3, 4])), replace=False)
            inks = tuple(sorted(chosen.tolist(), key=lambda name: px.light(_colour(name))))
        parts = Parts(
            line=str(rng.choice(_values("line", LINES, held_out))),
            fill=str(rng.choice(_values("fill", FILLS, held_out))),
            inks=inks,
            ground=str(rng.choice(_values("ground", COLOURS, held_out))),
            texture=str(rng.choice(_values("texture", TEXTURES, held_out))),
            edge=str(rng.choice(_values("edge", EDGES, held_out))),
        )
        if _is_legible(parts):
            return parts


def _values(field: str, every: dict, held_out: bool) -> list[str]:
    return [name for name in every if held_out or name not in HELD_OUT[field]]


def random_style(rng: np.random.Generator) -> Treatment:
    """A style that base models train on; its words say a part of it, chosen by chance."""
    parts = random_parts(rng)
    phrases = words(parts)
    said = [phrase for phrase in phrases if rng.random() < 0.75]
    return Treatment(
        name=" ".join(phrases),
        words=" ".join(said or phrases),
        apply=functools.partial(draw, parts),
    )
