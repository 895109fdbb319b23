"""Scenes: what an example of the corpus shows, how its caption says it, and the picture."""

import dataclasses
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from styledrop_jax.emoji.drawings import SIZE, Artist
from styledrop_jax.emoji.treatments import Treatment
from styledrop_jax.emoji.words import UNCOUNTED

BACKGROUNDS = {
    "white": (255, 255, 255),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 211, 66),
    "green": (76, 160, 83),
    "light green": (186, 226, 160),
    "blue": (58, 111, 216),
    "light blue": (168, 214, 245),
    "purple": (132, 84, 186),
    "pink": (246, 172, 200),
    "brown": (134, 92, 60),
    "gray": (150, 154, 160),
    "black": (20, 20, 24),
    "beige": (238, 222, 190),
}
"""Name → RGB. White is never named in a caption."""

_POSITIONS = {
    "at the top left": (0.0, 0.0),
    "at the top": (0.0, 0.5),
    "at the top right": (0.0, 1.0),
    "on the left": (0.5, 0.0),
    "in the middle": (0.5, 0.5),
    "on the right": (0.5, 1.0),
    "at the bottom left": (1.0, 0.0),
    "at the bottom": (1.0, 0.5),
    "at the bottom right": (1.0, 1.0),
}
_SMALL, _LARGE, _PAIRED = 32, 84, 34  # side of the drawing's square, in pixels
_COUNTS = {"two": 2, "three": 3, "four": 4}
_COLOURS = tuple(name for name in BACKGROUNDS if name != "white" and " " not in name)
_UNTRAINED = {
    "apple": ("three",),
    "balloon": ("three",),
    "car": ("red", "two"),
    "cat": ("blue", "two"),
    "elephant": ("pink",),
    "guitar": ("orange",),
    "heart": ("black", "four"),
    "house": ("purple",),
    "key": ("two",),
    "star": ("green", "three"),
    "tree": ("two",),
    "umbrella": ("yellow",),
}
"""Concept → the colours and counts that no example has of it, to see whether a model composes them."""
_TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "an emoji of {}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One example in words.

    Attributes:
        drawings: indices into the corpus's drawings, by the same artist; of several alike, each.
        names: the concepts' names used in the caption, in the same order; of several alike, one.
        artist: who drew them.
        treatment: what was done to the picture.
        background: a key of `BACKGROUNDS`.
        layout: `centred`, `small`, `large`, `paired` or `several`.
        position: where a small drawing lies, a phrase; else empty.
        colour: a key of `BACKGROUNDS` that the thing is tinted with; empty if it has its own colours.
    """

    drawings: tuple[int, ...]
    names: tuple[str, ...]
    artist: Artist
    treatment: Treatment
    background: str = "white"
    layout: str = "centred"
    position: str = ""
    colour: str = ""


def descriptor(artist: Artist | None, treatment: Treatment | None) -> str:
    """The style in plain words, such as "in glossy 3d pencil sketch style"; empty when nothing is named."""
    words = [part.words for part in (artist, treatment) if part is not None and part.words]
    return f"in {' '.join(words)} style" if words else ""


def noun_phrase(name: str, *, adjective: str = "") -> str:
    """ "cat" → "a cat", "apple" → "an apple", "scissors" → "scissors"; an adjective goes between."""
    plural = name.endswith("s") and not name.endswith(("ss", "us"))
    words = f"{adjective} {name}".strip()
    if name in UNCOUNTED or plural:
        return words
    silent_or_hard = (
        words.startswith(("hour", "x-ray")),
        words.startswith(("uni", "one", "euro", "u-")),
    )
    vowel = (words[0] in "aeiou" or silent_or_hard[0]) and not silent_or_hard[1]
    return f"{'an' if vowel else 'a'} {words}"


def plural(name: str) -> str | None:
    """ "cat" → "cats", "strawberry" → "strawberries"; None of what is not counted, or is many already."""
    if name in UNCOUNTED or (name.endswith("s") and not name.endswith(("ss", "us"))):
        return None
    if name.endswith("fish"):
        return name
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def draw_scene(
    rng: np.random.Generator,
    drawings: tuple[int, int],
    names: tuple[str, str],
    artist: Artist,
    treatment: Treatment,
    *,
    label: str,
) -> Scene:
    """Chooses layout, background and colour at random: mostly one drawing in the middle, on white.

    Args:
        rng: the randomness.
        drawings: two drawings by `artist`; the second is used in a scene of two things.
        names: their names.
        artist: who drew them.
        treatment: what will be done to the picture; colours are only named where it keeps them.
        label: what the corpus calls the first drawing's concept.
    """
    shares = {"centred": 0.6, "small": 0.15, "large": 0.03, "paired": 0.11, "several": 0.11}
    layout = rng.choice(list(shares), p=list(shares.values()))
    background = (
        list(BACKGROUNDS)[rng.integers(1, len(BACKGROUNDS))] if rng.random() < 0.3 else "white"
    )
    colour = (
        _COLOURS[rng.integers(len(_COLOURS))] if layout != "paired" and rng.random() < 0.35 else ""
    )
    count = list(_COUNTS)[rng.integers(len(_COUNTS))]
    untrained = _UNTRAINED.get(label, ())
    if layout == "several" and (plural(names[0]) is None or count in untrained):
        layout = "centred"
    if not treatment.keeps_colour:
        background, colour = "white", ""
    shown = {"paired": drawings, "several": drawings[:1] * _COUNTS[count]}.get(layout, drawings[:1])
    return Scene(
        drawings=shown,
        names=names if layout == "paired" else names[:1],
        artist=artist,
        treatment=treatment,
        background=background,
        layout=layout,
        position=list(_POSITIONS)[rng.integers(len(_POSITIONS))] if layout == "small" else "",
        colour=""
        if colour in (background, *untrained) or set(names[0].split()) & set(_COLOURS)
        else colour,
    )


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """Words a scene: contents with colour and count, position, background, style.

    Chance picks the template and leaves words out. An untreated picture often goes without its style, so that a bare
    prompt means a bare drawing, or names one that does not exist, so that a style the model does not know means one
    too. A treatment is always named, its artist mostly.
    """
    if scene.layout == "paired":
        left, right = (noun_phrase(name) for name in scene.names)
        content = (
            f"{left} and {right}",
            f"{left} next to {right}",
            f"{left} on the left and {right} on the right",
        )[rng.integers(3)]
    elif scene.layout == "several":
        number = next(words for words, count in _COUNTS.items() if count == len(scene.drawings))
        content = " ".join(part for part in (number, scene.colour, plural(scene.names[0])) if part)
    else:
        size = {"centred": "", "small": "small", "large": "large"}[scene.layout]
        content = noun_phrase(scene.names[0], adjective=f"{size} {scene.colour}".strip())
    roll = rng.random()
    if roll < 0.3:
        content = _TEMPLATES[rng.integers(len(_TEMPLATES))].format(content)
    elif roll < 0.36 and scene.layout == "centred" and not scene.colour:
        content = scene.names[0]
    elif (
        roll < 0.4
        and scene.layout == "centred"
        and not scene.colour
        and content.startswith(("a ", "an "))
    ):
        content = f"one {scene.names[0]}"
    style = descriptor(scene.artist, scene.treatment)
    roll = rng.random()
    if roll < (0.3 if scene.treatment.words else 0.4):
        style = descriptor(None, scene.treatment)
    elif roll > 0.75 and not scene.treatment.words:
        style = f"in {' '.join(_invented(rng) for _ in range(rng.integers(1, 4)))} style"
    ground = "" if scene.background == "white" else f"on {noun_phrase(scene.background)} background"
    return " ".join(part for part in (content, scene.position, ground, style) if part)


def _invented(rng: np.random.Generator) -> str:
    """A word of one or two syllables that means nothing, such as "drampel"."""
    onsets, vowels, codas = (
        ("b", "br", "c", "d", "dr", "f", "g", "l", "m", "p", "s", "t", "w"),
        "aeiou",
        "lmnrst",
    )
    parts = ((onsets, vowels, codas)[i % 3] for i in range(3 * rng.integers(1, 3)))
    return "".join(part[rng.integers(len(part))] for part in parts)


@lru_cache(maxsize=16)
def _resampling(size: int) -> NDArray[np.float32]:
    """Triangle-filter resampling from SIZE to `size` samples, [size, SIZE]; rows sum to one."""
    scale = SIZE / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(SIZE)) / max(scale, 1))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _places(scene: Scene) -> list[tuple[int, int, int]]:
    """(size, top, left) in pixels of each drawing's square; it may reach beyond the picture."""
    if scene.layout == "paired":
        top = (SIZE - _PAIRED) // 2
        return [(_PAIRED, top, -1), (_PAIRED, top, SIZE - _PAIRED + 1)]
    if scene.layout == "several":
        half, ends = SIZE // 2, (0, SIZE - SIZE // 2)
        middle = half // 2
        places = {
            2: [(middle, ends[0]), (middle, ends[1])],
            3: [(ends[0], middle), (ends[1], ends[0]), (ends[1], ends[1])],
            4: [(top, left) for top in ends for left in ends],
        }
        return [(half, top, left) for top, left in places[len(scene.drawings)]]
    if scene.layout == "small":
        free = SIZE - _SMALL
        down, across = _POSITIONS[scene.position]
        return [(_SMALL, round(down * free), round(across * free))]
    size = _LARGE if scene.layout == "large" else SIZE
    return [(size, (SIZE - size) // 2, (SIZE - size) // 2)]


def _tinted(layer: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """A drawing in the tones of one colour: its median lightness becomes it, darker parts its shade, lighter its tint.

    Args:
        layer: RGBA, colours to 255 and alpha to 1, [4, h, w].
        colour: RGB to 255, [3].
    """
    lightness = layer[:3].mean(axis=0)
    inked = lightness[layer[3] > 0.5]
    middle = np.clip(np.median(inked) if inked.size else 128, 40, 215)
    shade = np.minimum(lightness / middle, 1)
    tint = 0.85 * np.clip((lightness - middle) / (255 - middle), 0, 1)
    return colour[:, None, None] * shade * (1 - tint) + 255 * tint


def picture(scene: Scene, drawings: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draws a scene.

    Args:
        scene: what to draw.
        drawings: RGBA with straight alpha, uint8 [n, SIZE, SIZE, 4].

    Returns:
        The treated picture, uint8 [SIZE, SIZE, 3].
    """
    # Channels come first while drawing: rows of one channel lie together, which halves the time.
    canvas = np.empty((3, SIZE, SIZE), np.float32)
    canvas[:] = np.array(BACKGROUNDS[scene.background], np.float32)[:, None, None]
    for index, (size, top, left) in zip(scene.drawings, _places(scene), strict=True):
        layer = np.ascontiguousarray(drawings[index].transpose(2, 0, 1), np.float32)  # [4, h, w]
        layer[3] *= np.float32(1 / 255)
        if scene.colour:
            layer[:3] = _tinted(layer, np.array(BACKGROUNDS[scene.colour], np.float32))
        layer[:3] *= layer[3]
        if size != SIZE:
            layer = _resampling(size) @ layer @ _resampling(size).T
        rows, columns = (
            slice(max(top, 0), min(top + size, SIZE)),
            slice(max(left, 0), min(left + size, SIZE)),
        )
        layer = layer[
            :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        canvas[:, rows, columns] *= 1 - layer[3]
        canvas[:, rows, columns] += layer[:3]
    image = np.minimum(canvas + np.float32(0.5), 255).astype(np.uint8)
    return scene.treatment.apply(np.ascontiguousarray(image.transpose(1, 2, 0)))
