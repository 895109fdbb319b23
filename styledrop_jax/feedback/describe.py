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
    "black": (0, 0, 0),
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
    "dark blue": (22, 33, 62),
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
_NAMES = 2  # of a colour: the nearest ones
_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # of linear sRGB
_APART = 12.0  # from the ground in CIELAB, that a pixel is no part of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Words for a picture.

    Attributes:
        content: what it shows, as it was given or guessed.
        guessed: whether it was.
        descriptors: phrases for how it is drawn, each of another kind, with the cosine of the
            picture and of the content under it, the likeliest first.
    """

    content: str
    guessed: bool
    descriptors: Sequence[tuple[str, float]]


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
    return ground, [colours[i] for i in np.argsort(-counts)[:_INKS] if counts[i]]


def _named(colours: Iterable[np.ndarray]) -> list[str]:
    """The nearest names of each colour, each name once."""
    table = _lab(np.array(list(COLOURS.values())))
    found: list[str] = []
    for colour in colours:
        distances = np.linalg.norm(table - _lab(colour), axis=1)
        found += [list(COLOURS)[i] for i in np.argsort(distances)[:_NAMES]]
    return list(dict.fromkeys(found))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] of 0 to 255 → CIELAB, under D65."""
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
