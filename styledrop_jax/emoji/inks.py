"""Prints in two colours: one ink on one paper, in five ways of putting it there.

A treatment of `treatments.py` is a single point. These span directions: what is inked, and in which
colours. So a base model that trained on them is near to styles of two colours that it never saw.
The pairs of colours are far from those of the held-out treatments.
"""

import functools
from collections.abc import Callable

import numpy as np

from styledrop_jax.emoji import pixels as px
from styledrop_jax.emoji.pixels import Float, Image
from styledrop_jax.emoji.treatments import Treatment

_COLOURS = {
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


def _silhouette(x: Float) -> Float:
    return 1.0 * (px.light(x) < 0.96)


def _tones(x: Float) -> Float:
    return 1 - px.light(x)


def _hatching(x: Float) -> Float:
    light = px.light(x)
    shade = (light < 0.95) * (px.hatching(*light.shape, 4, 1) > light * 0.8)
    return np.maximum(px.edges(x, gain=2.0), shade)


def _linocut(x: Float) -> Float:
    """Ink on dark parts and outlines, none on light parts."""
    return 1.0 * np.maximum(px.light(x) < 0.5, px.edges(x, gain=1.6) > 0.5)


_WAYS = {
    "lines": _lines,
    "silhouette": _silhouette,
    "tones": _tones,
    "hatching": _hatching,
    "linocut": _linocut,
}


def _print(inked: Callable[[Float], Float], ink: str, paper: str, image: Image) -> Image:
    return px.through(inked(px.as_float(image)), _COLOURS[paper], _COLOURS[ink])


def _prints() -> tuple[Treatment, ...]:
    """Every way in every pair of colours."""
    prints = []
    for way, inked in _WAYS.items():
        for ink, paper in _PAIRS:
            treatment = Treatment(
                name=f"{ink} {way} on {paper}",
                words=f"{ink} {way} on {paper} paper",
                apply=functools.partial(_print, inked, ink, paper),
            )
            prints.append(treatment)
    return tuple(prints)


TWO_COLOUR = _prints()
