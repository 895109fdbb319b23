"""Reads the open emoji sets: which artist drew which concept, and one image of each drawing.

The sets come as npm packages (`launch/fetch_corpus.sh`). `@iconify-json/*` holds SVG bodies under
names, `emojibase-data` the labels and tags of every emoji. A concept is one emoji. The sets name it
differently, so a drawing finds its concept by code point where its set publishes them, and else by
its name without case and punctuation, with the help of the tables in `words`.
"""

import dataclasses
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from styledrop_jax.emoji.words import EVERYDAY, FXEMOJI, RENAMED
from styledrop_jax.errors import UserError

SIZES = (64, 128)
"""Sides of a drawing, in pixels, that the corpus holds it at."""
MARGIN = 1 / 16
"""Of a drawing's side: what is left empty on each side of its longer extent."""
_PROBE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artist:
    """One emoji set.

    Attributes:
        name: short name, used as the value of the corpus's `artist` feature.
        package: the npm package below `@iconify-json/`.
        words: the artist's manner as a prompt says it, without "in" and "style".
    """

    name: str
    package: str
    words: str


TRAINED_ARTISTS = (
    Artist(name="noto", package="noto", words="soft cartoon"),
    Artist(name="noto v1", package="noto-v1", words="warm paper cutout"),
    Artist(name="twemoji", package="twemoji", words="flat sticker"),
    Artist(name="fluent 3d", package="fluent-emoji", words="glossy 3d"),
    Artist(name="fluent flat", package="fluent-emoji-flat", words="flat design"),
    Artist(name="emojione", package="emojione", words="bright clipart"),
    Artist(name="fxemoji", package="fxemoji", words="clean poster"),
)
HELD_OUT_ARTISTS = (
    Artist(name="openmoji", package="openmoji", words="outlined comic"),
    Artist(
        name="fluent high contrast",
        package="fluent-emoji-high-contrast",
        words="black and white icon",
    ),
)
"""Never used to train a base model or its tokenizer."""
ARTISTS = TRAINED_ARTISTS + HELD_OUT_ARTISTS
ARTISTS_BY_NAME = {artist.name: artist for artist in ARTISTS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """What a drawing shows.

    Attributes:
        label: in plain words. tags: other names for it.
        group, subgroup: emojibase's names of them.
    """

    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


# Lettering, and parts that are no images of anything.
_DROPPED_SUBGROUPS = (
    "keycap alphanum av-symbol skin-tone hair-style flag country-flag subdivision-flag".split()
)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _code(hexcode: str) -> str:
    """A code point sequence without variation selectors, which some sets write and some omit."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def plain(text: str) -> str:
    """`text` in lower-case plain words: ASCII letters, digits, hyphens and apostrophes."""
    text = text.lower().replace("’", "'").replace("ñ", "n")
    return " ".join(re.sub(r"[^a-z0-9' -]", " ", text).split())


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise UserError(
            f"corpus source {path}: not found; "
            "expected the npm packages that launch/fetch_corpus.sh installs"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _emoji(npm: Path) -> list[dict]:
    """What emojibase knows of every emoji."""
    return list(_read_json(npm / "emojibase-data/en/data.json"))


def _is_dropped(emoji: dict, subgroup: str) -> bool:
    """Whether an emoji is lettering, or a near copy of another (gender, direction, hour)."""
    label = emoji["label"].replace("’", "'")
    if subgroup in _DROPPED_SUBGROUPS or "facing right" in label:
        return True
    if subgroup == "time" and label.endswith(("-thirty", "o'clock")):
        return label != "three o'clock"
    several = label.startswith(("family", "couple", "kiss"))
    return "200D" in emoji["hexcode"] and ("gender" in emoji or several)


def read_concepts(npm: Path) -> dict[str, Concept]:
    """Code point sequence → concept, of every emoji that is kept.

    Args:
        npm: the `node_modules` folder.

    Raises:
        UserError: a package is missing.
    """
    every = _emoji(npm)
    groups = _read_json(npm / "emojibase-data/meta/groups.json")
    concepts = {}
    for emoji in every:
        if emoji.get("group") is None:
            continue
        subgroup = groups["subgroups"][str(emoji["subgroup"])]
        if _is_dropped(emoji, subgroup):
            continue
        label = plain(emoji["label"])
        tags = [label] if label in EVERYDAY else []
        tags += [plain(tag) for tag in emoji.get("tags", ())]
        concepts[_code(emoji["hexcode"])] = Concept(
            label=EVERYDAY.get(label, label),
            tags=tuple(dict.fromkeys(tags)),
            group=groups["groups"][str(emoji["group"])],
            subgroup=subgroup,
        )
    return concepts


def _names(npm: Path) -> Iterator[tuple[str, str, int]]:
    """Every name that a source gives an emoji: (name, code point sequence, weight)."""
    for emoji in _emoji(npm):
        yield emoji["label"], emoji["hexcode"], 3  # above a shortcode that two emoji share
    for path in sorted((npm / "emojibase-data/en/shortcodes").glob("*.json")):
        for hexcode, names in _read_json(path).items():
            for name in [names] if isinstance(names, str) else names:
                yield name, hexcode, 1
    for hexcode, name in _read_json(npm / "emojibase-data/meta/unicode-names.json").items():
        yield name, hexcode, 1
    for artist in ARTISTS:
        for hexcode, name in _read_json(_folder(npm, artist) / "chars.json").items():
            yield name, hexcode, 1


def _codes(npm: Path) -> dict[str, str]:
    """Name without punctuation → the code point sequence that most sources give it."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for name, hexcode, weight in _names(npm):
        votes[_key(name)][_code(hexcode)] += weight
    codes = {}
    for name, counter in votes.items():
        codes[name] = max(sorted(counter), key=lambda code: counter[code])
    for old, new in RENAMED.items():
        codes[_key(old)] = codes[_key(new)]
    return codes


def match_drawings(npm: Path) -> dict[str, dict[str, str]]:
    """Artist → {code point sequence → icon name} of every drawing that shows a kept concept.

    Args:
        npm: the `node_modules` folder.

    Raises:
        UserError: a package is missing.
    """
    codes = _codes(npm)
    concepts = read_concepts(npm)
    matched = {}
    for artist in ARTISTS:
        icons = read_icons(npm, artist)
        aliases = {}
        for name, alias in icons.get("aliases", {}).items():
            if len(alias) == 1:  # else it is turned or mirrored
                aliases[name] = alias["parent"]
        own = FXEMOJI if artist.package == "fxemoji" else {}
        pairs = []
        for hexcode, name in _read_json(_folder(npm, artist) / "chars.json").items():
            pairs.append((_code(hexcode), name))
        for name, label in own.items():
            pairs.append((codes.get(_key(label), ""), name))
        for name in (*icons["icons"], *aliases):
            if name not in own:
                pairs.append((codes.get(_key(name), ""), name))
        found: dict[str, str] = {}
        for code, name in pairs:
            icon = aliases.get(name, name)
            if code in concepts and icon in icons["icons"]:
                found.setdefault(code, icon)
        matched[artist.name] = found
    return matched


def _folder(npm: Path, artist: Artist) -> Path:
    return npm / "@iconify-json" / artist.package


def read_icons(npm: Path, artist: Artist) -> dict:
    """The artist's `icons.json`: `icons` of name → `body`, and the set's `width` and `height`."""
    return _read_json(_folder(npm, artist) / "icons.json")


def _side(icons: dict, name: str) -> float:
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    return max(width, icon.get("height", icons.get("height", 16)))


def _raster(icons: dict, name: str, *, view: tuple[float, float, float], size: int) -> Image.Image:
    """One icon's square `view` (x, y, side in the icon's own units) as RGBA of size x size."""
    side = _side(icons, name)
    x, y, extent = view
    # The inner element clips what a drawing hides outside its own square.
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x:.4f} {y:.4f} {extent:.4f} {extent:.4f}" width="{size}" height="{size}">'
        f'<svg width="{side}" height="{side}" viewBox="0 0 {side} {side}">'
        f"{icons['icons'][name]['body']}</svg></svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")


def render(icons: dict, name: str, *, size: int = SIZES[0]) -> Image.Image | None:
    """Renders one drawing, centred, its longer extent filling all but the margin.

    Sets leave different borders; without them a concept lies in the same place whoever drew it.

    Args:
        icons: what `read_icons` returned.
        name: the icon's name in it.
        size: side in pixels of the result.

    Returns:
        RGBA image of size x size with a transparent background; None for an empty drawing.
    """
    side = _side(icons, name)
    probe = np.asarray(_raster(icons, name, view=(0, 0, side), size=_PROBE))[..., 3] > 16  # [h, w]
    if not probe.any():
        return None
    rows = np.flatnonzero(probe.any(1))
    columns = np.flatnonzero(probe.any(0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    view_side = extent / (1 - 2 * MARGIN)
    x = (columns[0] + columns[-1] + 1 - view_side) / 2
    y = (rows[0] + rows[-1] + 1 - view_side) / 2
    unit = side / _PROBE
    large = _raster(icons, name, view=(x * unit, y * unit, view_side * unit), size=2 * size)
    return large.resize((size, size), Image.Resampling.LANCZOS)
