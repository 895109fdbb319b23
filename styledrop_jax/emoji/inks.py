"""Two-colour prints: one ink on one paper, in five ways of putting it there.

The treatments of `treatments.py` are single points; these span directions (what is inked, in which colours), so that a
base model trained on them is a short way from two-colour styles it has never seen. The pairs of colours keep clear of
those of the held-out treatments.
"""

from collections.abc import Callable

import numpy as np

from styledrop_jax.emoji import pixels as px
from styledrop_jax.emoji.pixels import Float, Image
from styledrop_jax.emoji.treatments import Treatment

_INKS = {
    "black": "16161a",
    "white": "ffffff",
    "red": "c62a2a",
    "blue": "2455c4",
    "green": "1f7a3d",
    "purple": "6a35a8",
    "brown": "6b4226",
    "pink": "f06ba8",
    "yellow": "ffd94a",
    "gray": "8b9097",
}
_PAIRS = (
    ("black", "pink"),
    ("black", "gray"),
    ("white", "red"),
    ("white", "green"),
    ("white", "brown"),
    ("red", "white"),
    ("blue", "white"),
    ("blue", "yellow"),
    ("green", "yellow"),
    ("purple", "white"),
    ("brown", "yellow"),
    ("pink", "black"),
    ("yellow", "purple"),
    ("yellow", "red"),
)
"""(ink, paper)."""


def _lines(x: Float) -> Float:
    return px.edges(x, gain=2.2)


def _flat(x: Float) -> Float:
    return 1.0 * (px.light(x) < 0.96)


def _tones(x: Float) -> Float:
    return 1 - px.light(x)


def _hatched(x: Float) -> Float:
    shade = (px.light(x) < 0.95) * (px.hatching(*x.shape[:2], 4, 1) > px.light(x) * 0.8)
    return np.maximum(px.edges(x, gain=2.0), shade)


def _solid(x: Float) -> Float:
    """Dark parts and outlines inked, light ones left."""
    return 1.0 * np.maximum(px.light(x) < 0.5, px.edges(x, gain=1.6) > 0.5)


_WAYS = {
    "lines": _lines,
    "silhouette": _flat,
    "tones": _tones,
    "hatching": _hatched,
    "linocut": _solid,
}


def _print(way: Callable[[Float], Float], ink: str, paper: str) -> Callable[[Image], Image]:
    return lambda image: px.through(way(px.as_float(image)), paper, ink)


TWO_COLOUR = tuple(
    Treatment(
        name=f"{ink} {name} on {paper}",
        words=f"{ink} {name} on {paper} paper",
        apply=_print(way, _INKS[ink], _INKS[paper]),
    )
    for name, way in _WAYS.items()
    for ink, paper in _PAIRS
)
