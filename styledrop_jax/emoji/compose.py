"""Scenes: what an example of the corpus shows, how its caption says it, and the image."""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from styledrop_jax.emoji.drawings import Artist
from styledrop_jax.emoji.treatments import Treatment
from styledrop_jax.emoji.words import UNCOUNTED

T = TypeVar("T")

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

_COLOURS = tuple(name for name in BACKGROUNDS if name != "white" and " " not in name)
_LAYOUTS = {"centred": 0.6, "small": 0.15, "large": 0.03, "paired": 0.11, "several": 0.11}
"""Layout → the share of scenes that have it."""
_SIZES = {"centred": 64, "small": 32, "large": 84, "paired": 34, "several": 32}
"""Layout → the side of a drawing's square, in 64ths of the image's."""
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
_COUNTS = {"two": 2, "three": 3, "four": 4}
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
"""Concept → the colours and counts that no example has of it: does a model compose them?"""
_TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "an emoji of {}")
_SYLLABLE = (("b", "br", "c", "d", "dr", "f", "g", "l", "m", "p", "s", "t", "w"), "aeiou", "lmnrst")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One example in words.

    Attributes:
        drawings: indices into the corpus's drawings, by the same artist; of several alike, each.
        names: the concepts' names used in the caption, in the same order; of several alike, one.
        artist: who drew them.
        treatment: what is done to the image.
        background: a key of `BACKGROUNDS`.
        layout: `centred`, `small`, `large`, `paired` or `several`.
        position: where a small drawing lies, a phrase; else empty.
        colour: a key of `BACKGROUNDS` that the thing is tinted with; empty if it has its own.
    """

    drawings: tuple[int, ...]
    names: tuple[str, ...]
    artist: Artist
    treatment: Treatment
    background: str = "white"
    layout: str = "centred"
    position: str = ""
    colour: str = ""


# -------------------------------------------------------------- words


def descriptor(artist: Artist | None, treatment: Treatment | None) -> str:
    """The style in words, "in glossy 3d pencil sketch style"; empty when nothing is named."""
    words = [part.words for part in (artist, treatment) if part is not None and part.words]
    return f"in {' '.join(words)} style" if words else ""


def noun_phrase(name: str, *, adjective: str = "") -> str:
    """ "cat" → "a cat", "scissors" → "scissors"; with an adjective, "an orange cat"."""
    words = f"{adjective} {name}".strip()
    if name in UNCOUNTED or _is_plural(name):
        return words
    if words.startswith(("uni", "one", "euro", "u-")):
        return f"a {words}"
    return f"an {words}" if words.startswith((*"aeiou", "hour", "x-ray")) else f"a {words}"


def _is_plural(name: str) -> bool:
    return name.endswith("s") and not name.endswith(("ss", "us"))


def plural(name: str) -> str | None:
    """ "cat" → "cats", "berry" → "berries"; None of what is not counted or is many already."""
    if name in UNCOUNTED or _is_plural(name):
        return None
    if name.endswith("fish"):
        return name
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, each as likely as another."""
    return options[int(rng.integers(len(options)))]


def random_scene(
    rng: np.random.Generator,
    drawings: tuple[int, int],
    names: tuple[str, str],
    artist: Artist,
    treatment: Treatment,
    *,
    label: str,
) -> Scene:
    """Chooses layout, background and colour: mostly one drawing in the middle, on white.

    Args:
        rng: the randomness.
        drawings: two drawings by `artist`; the second is used in a scene of two things.
        names: their names.
        artist: who drew them.
        treatment: what will be done to the image; colours are only named where it keeps them.
        label: what the corpus calls the first drawing's concept.
    """
    layout = str(rng.choice(list(_LAYOUTS), p=list(_LAYOUTS.values())))
    background = "white"
    if rng.random() < 0.3:
        background = list(BACKGROUNDS)[rng.integers(1, len(BACKGROUNDS))]
    colour = ""
    if layout != "paired" and rng.random() < 0.35:
        colour = choose(rng, _COLOURS)
    count = choose(rng, list(_COUNTS))
    untrained = _UNTRAINED.get(label, ())
    if layout == "several" and (plural(names[0]) is None or count in untrained):
        layout = "centred"
    if not treatment.keeps_colour:
        background = "white"
        colour = ""
    has_colour = not set(_COLOURS).isdisjoint(names[0].split())
    if colour == background or colour in untrained or has_colour:
        colour = ""
    shown = drawings[:1]
    if layout == "paired":
        shown = drawings
    elif layout == "several":
        shown = drawings[:1] * _COUNTS[count]
    return Scene(
        drawings=shown,
        names=names if layout == "paired" else names[:1],
        artist=artist,
        treatment=treatment,
        background=background,
        layout=layout,
        position=choose(rng, list(_POSITIONS)) if layout == "small" else "",
        colour=colour,
    )


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """A scene in words: contents with colour and count, position, background, style.

    Chance picks the template and leaves words out. An untreated image often goes without its style,
    so that a prompt without a style means an untreated drawing. Or it names a style that does not
    exist, so that a style which the model does not know means one too. A treatment is always named,
    its artist mostly.
    """
    content = _content(rng, scene)
    style = _style(rng, scene)
    ground = "" if scene.background == "white" else f"on {noun_phrase(scene.background)} background"
    return " ".join(f"{content} {scene.position} {ground} {style}".split())


def _content(rng: np.random.Generator, scene: Scene) -> str:
    name = scene.names[0]
    if scene.layout == "paired":
        left = noun_phrase(name)
        right = noun_phrase(scene.names[1])
        side_by_side = f"{left} on the left and {right} on the right"
        content = choose(rng, (f"{left} and {right}", f"{left} next to {right}", side_by_side))
    elif scene.layout == "several":
        number = list(_COUNTS)[len(scene.drawings) - 2]
        content = " ".join(f"{number} {scene.colour} {plural(name)}".split())
    else:
        size = "" if scene.layout == "centred" else scene.layout
        content = noun_phrase(name, adjective=f"{size} {scene.colour}".strip())
    bare = scene.layout == "centred" and not scene.colour
    roll = rng.random()
    if roll < 0.3:
        return choose(rng, _TEMPLATES).format(content)
    if roll < 0.36 and bare:
        return name
    if roll < 0.4 and bare and content.startswith(("a ", "an ")):
        return f"one {name}"
    return content


def _style(rng: np.random.Generator, scene: Scene) -> str:
    is_treated = bool(scene.treatment.words)
    roll = rng.random()
    if roll < (0.3 if is_treated else 0.4):
        return descriptor(None, scene.treatment)
    if roll > 0.75 and not is_treated:
        return invented(rng)
    return descriptor(scene.artist, scene.treatment)


def invented(rng: np.random.Generator) -> str:
    """A style that does not exist, "in drampel style"."""
    words = [_word(rng) for _ in range(rng.integers(1, 4))]
    return f"in {' '.join(words)} style"


def _word(rng: np.random.Generator) -> str:
    """A word of one or two syllables that means nothing, such as "drampel"."""
    word = ""
    for _ in range(rng.integers(1, 3)):
        for sounds in _SYLLABLE:
            word += choose(rng, sounds)
    return word


# -------------------------------------------------------------- images


@lru_cache(maxsize=16)
def _resampling(side: int, size: int) -> NDArray[np.float32]:
    """Triangle-filter resampling from `side` to `size` samples, [size, side]; rows sum to one."""
    scale = side / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(side)) / max(scale, 1))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _places(scene: Scene, side: int, size: int) -> list[tuple[int, int]]:
    """The top and the left, in pixels, of each drawing's square; it may reach beyond the image."""
    free = side - size
    middle = free // 2
    if scene.layout == "paired":
        overlap = side // 64
        return [(middle, -overlap), (middle, free + overlap)]
    if scene.layout == "several":
        row = [(middle, 0), (middle, free)]
        pyramid = [(0, middle), (free, 0), (free, free)]
        square = [(0, 0), (0, free), (free, 0), (free, free)]
        return [row, pyramid, square][len(scene.drawings) - 2]
    if scene.layout == "small":
        down, across = _POSITIONS[scene.position]
        return [(round(down * free), round(across * free))]
    return [(middle, middle)]


def _tinted(layer: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """A drawing in the tones of one colour.

    Its median lightness becomes that colour, darker parts a shade of it, lighter parts a tint.

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


def render(scene: Scene, drawings: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image of a scene.

    Args:
        scene: what it shows.
        drawings: RGBA with straight alpha, uint8 [n, s, s, 4]; s is a multiple of 64.

    Returns:
        The treated image, uint8 [s, s, 3].
    """
    # Channels come first here: rows of one channel lie together, which halves the time.
    side = drawings.shape[1]
    canvas = np.empty((3, side, side), np.float32)
    canvas[:] = np.array(BACKGROUNDS[scene.background], np.float32)[:, None, None]
    size = _SIZES[scene.layout] * side // 64
    for index, (top, left) in zip(scene.drawings, _places(scene, side, size), strict=True):
        layer = np.ascontiguousarray(drawings[index].transpose(2, 0, 1), np.float32)  # [4, h, w]
        layer[3] *= np.float32(1 / 255)
        if scene.colour:
            layer[:3] = _tinted(layer, np.array(BACKGROUNDS[scene.colour], np.float32))
        layer[:3] *= layer[3]
        if size != side:
            layer = _resampling(side, size) @ layer @ _resampling(side, size).T
        rows = slice(max(top, 0), min(top + size, side))
        columns = slice(max(left, 0), min(left + size, side))
        layer = layer[:, rows.start - top : rows.stop - top]
        layer = layer[:, :, columns.start - left : columns.stop - left]
        canvas[:, rows, columns] *= 1 - layer[3]
        canvas[:, rows, columns] += layer[:3]
    image = np.minimum(canvas + np.float32(0.5), 255).astype(np.uint8)
    return scene.treatment.apply(np.ascontiguousarray(image.transpose(1, 2, 0)))
