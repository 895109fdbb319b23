"""Words for a picture, found from the picture itself: what it shows, and how it is drawn.

The colours of its ground and of what lies on it are named, put into phrases as StyleDrop's
descriptors are, beside names of media; CLIP says which fit the picture best.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from styledrop_jax.metrics.clip_scores import ClipScorer

COLOURS = {
    "black": (16, 16, 16),
    "dark gray": (64, 64, 64),
    "gray": (139, 144, 151),
    "light gray": (208, 208, 208),
    "white": (255, 255, 255),
    "red": (208, 32, 32),
    "dark red": (122, 21, 21),
    "coral": (255, 127, 107),
    "orange": (255, 140, 26),
    "brown": (107, 66, 38),
    "beige": (232, 216, 184),
    "cream": (255, 244, 220),
    "yellow": (255, 217, 64),
    "gold": (201, 162, 39),
    "green": (42, 154, 61),
    "dark green": (18, 64, 44),
    "pale green": (159, 227, 193),
    "teal": (18, 128, 128),
    "cyan": (48, 200, 224),
    "light blue": (144, 192, 240),
    "blue": (36, 85, 196),
    "dark blue": (18, 28, 86),
    "purple": (106, 53, 168),
    "lavender": (192, 168, 232),
    "pink": (240, 107, 168),
    "pale pink": (251, 213, 229),
}
"""Names of colours, sRGB."""
MEDIA = (
    *("watercolor painting", "oil painting", "pencil sketch", "crayon drawing", "ink drawing"),
    *("charcoal drawing", "chalk on blackboard", "linocut", "woodcut print", "risograph print"),
    *("stained glass", "mosaic tile", "embroidery", "cross stitch", "paper cutout", "gold foil"),
    *("pixel art", "halftone dots", "pop art", "comic book", "line art", "blueprint"),
    *("flat design", "flat sticker", "glossy 3d", "clean poster", "soft cartoon", "pastel"),
    *("outlined cartoon", "outlined comic", "red ink stamp", "neon light", "embossed silver"),
    *("black and white photo", "old sepia photo", "thermal camera", "x-ray"),
)
_WAYS = (
    "{ink} lines on {ground} paper",
    "{ink} silhouette on {ground} paper",
    "{ink} hatching on {ground} paper",
    "{ink} linocut on {ground} paper",
    "{ink} tones on {ground} paper",
    "{ink} crayon on {ground} paper",
    "{ink} chalk on {ground} board",
    "{ink} with {other} outlines on {ground} paper",
    "flat {ink} and {other} icon",
    "{other} outlined {ink} cartoon",
)
_SIDE = 96  # pixels at which colours are counted
_INKS = 3
_APART = 10.0  # of two colours that are not the same, in the units of `_lab`
_NEUTRAL = 6.0  # chroma below which a colour is white, gray or black
_AS_NEAR = 4.0  # how much farther than the nearest another name may be
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)  # of linear sRGB
_OPPONENTS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Words for a picture.

    Attributes:
        content: what it shows, as it was given or guessed.
        guessed: whether it was.
        descriptors: phrases for how it is drawn, each of another kind, with the cosine of the
            picture and of the content under it, the likeliest first.
        hard_prompt: words that were searched for in the same way, with theirs; None if none were.
    """

    content: str
    guessed: bool
    descriptors: Sequence[tuple[str, float]]
    hard_prompt: tuple[str, float] | None = None


def describe(
    image: np.ndarray, clip: ClipScorer, *, contents: Sequence[str], number: int = 5
) -> Description:
    """Finds words for a picture.

    Args:
        image: uint8 [h, w, 3].
        clip: says how well words fit.
        contents: what it may show; one is what it does show.
        number: how many descriptors are returned.
    """
    seen = clip.image_features(image[None].astype(np.float32) / 255)[0]
    content = contents[int(np.argmax(clip.text_features(contents) @ seen))]
    found = []
    for words in phrases(image).values():
        likeness = clip.text_features([f"{content} {phrase}" for phrase in words]) @ seen
        best = int(np.argmax(likeness))
        found.append((words[best], float(likeness[best])))
    return Description(
        content=content,
        guessed=len(contents) > 1,
        descriptors=sorted(found, key=lambda item: -item[1])[:number],
    )


def phrases(image: np.ndarray) -> dict[str, list[str]]:
    """Descriptors that may fit a picture uint8 [h, w, 3]: media, and ways of putting its own
    colours on its ground, each with the colours that it may have.
    """
    ground, inks = _palette(image)
    grounds = _named([ground])
    names = _named(inks)
    found = {}
    for medium in MEDIA:
        found[medium] = [f"in {medium} style"]
    for way in _WAYS:
        for ink, other, paper in itertools.product(names, names, grounds):
            words = {"ink": ink, "other": other, "ground": paper}
            used = [word for name, word in words.items() if f"{{{name}}}" in way]
            if len(set(used)) == len(used):
                phrase = f"in {way.format(**words)} style"
                found.setdefault(way, []).append(phrase)
    return {way: list(dict.fromkeys(words)) for way, words in found.items()}


def finds(image: np.ndarray, descriptor: str) -> bool:
    """Whether a descriptor is one of `describe`'s for a picture: a way of its own colours. One that
    names a medium alone may be anybody's.
    """
    found = phrases(image)
    return any(descriptor in found[way] for way in _WAYS if way in found)


def _palette(image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The colour of a picture's border, and the most frequent ones that differ from it."""
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    flat = pixels.reshape(-1, 3)
    differs = np.linalg.norm(_lab(flat) - _lab(ground), axis=1) > _APART
    drawn = flat[differs] if differs.any() else flat
    reduced = Image.fromarray(drawn[:, None]).quantize(_INKS + 1, kmeans=2)
    colours = np.asarray(reduced.getpalette()).reshape(-1, 3)
    counts = np.bincount(np.asarray(reduced).ravel(), minlength=len(colours))
    inks = [colours[i] for i in np.argsort(-counts) if counts[i]]
    return ground, [ink for ink in inks if not _blends(ink, ground, inks)][:_INKS]


def _blends(colour: np.ndarray, ground: np.ndarray, inks: Iterable[np.ndarray]) -> bool:
    """Whether a colour is what the edges of a stronger ink have on the ground: between the two."""
    own = _lab(colour) - _lab(ground)
    for ink in inks:
        way = _lab(ink) - _lab(ground)
        if way @ way > own @ own:
            share = own @ way / (way @ way)
            if share > 0 and np.linalg.norm(share * way - own) < _APART:
                return True
    return False


def _named(colours: Iterable[np.ndarray]) -> list[str]:
    """The names of each colour, each name once: see `names_of`."""
    found: list[str] = []
    for colour in colours:
        found += names_of(colour)
    return list(dict.fromkeys(found))


def names_of(colour: np.ndarray) -> list[str]:
    """What people may call a colour, sRGB [3] of 0 to 255: the nearest name first, then those
    that are as near. What has next to no chroma is called by no hue.
    """
    words = list(COLOURS)
    table = _lab(np.array(list(COLOURS.values())))
    own = _lab(colour)
    distances = np.linalg.norm(table - own, axis=1)
    if np.hypot(*own[1:]) < _NEUTRAL:
        distances[np.hypot(*table.T[1:]) > _NEUTRAL] = np.inf
    order = np.argsort(distances)
    return [words[i] for i in order if distances[i] <= distances[order[0]] + _AS_NEAR]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] of 0 to 255 → lightness of 0 to 100 and twice the two of colour, in OKLab.

    Source: B. Ottosson, "A perceptual color space for image processing", 2020. Weighed so, its
    distances are those of colours that people tell apart (deltaEOK2 of CSS tools); CIELAB takes
    blues for purples.
    """
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    return np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T * (100, 200, 200)
