"""A tiny corpus: npm packages of the real layout with a few drawings, and its built form."""

import functools
import json
from pathlib import Path

import tiny

from styledrop_jax.emoji import builder
from styledrop_jax.emoji.drawings import ARTISTS, FXEMOJI, RENAMED, Artist, plain

# label, icon name, code point, emojibase subgroup
_EMOJI = [
    ("cat", "cat", "1F408", "animal-mammal"),
    ("house", "house", "1F3E0", "place-building"),
    ("ewe", "ewe", "1F411", "animal-mammal"),
    ("red apple", "red-apple", "1F34E", "food-fruit"),
    ("scissors", "scissors", "2702-FE0F", "office"),
    ("twelve-thirty", "twelve-thirty", "1F567", "time"),
    ("keycap: 1", "keycap-1", "0031-FE0F-20E3", "keycap"),
    ("man surfing", "man-surfing", "1F3C4-200D-2642-FE0F", "person-sport"),
]
for i in range(30):
    _EMOJI.append((f"thing {i}", f"thing-{i}", f"1F9{i:02X}", "tool"))
_SUBGROUPS = sorted({subgroup for *_, subgroup in _EMOJI})
_UNDRAWN = {
    ("twemoji", "thing 1"),
    ("noto", "thing 0"),
    ("emojione", "thing 0"),
    *((artist.name, "thing 2") for artist in ARTISTS if artist.name != "noto"),
}


def _write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def build_npm(folder: Path) -> Path:
    """Packages of the real layout.

    Each artist draws a square of its own colour, and the house higher than wide.
    """
    _write_emojibase(folder / "emojibase-data")
    for number, artist in enumerate(ARTISTS):
        _write_set(folder / "@iconify-json" / artist.package, artist, number)
    return folder


def _write_emojibase(folder: Path) -> None:
    emoji = []
    known = set()
    for label, _, code, subgroup in _EMOJI:
        entry = {"label": label, "hexcode": code, "tags": ["tag"], "group": 1}
        entry["subgroup"] = _SUBGROUPS.index(subgroup)
        if label.startswith("man "):
            entry["gender"] = 1
        emoji.append(entry)
        known.add(plain(label))
    # Names that the tables of renamed icons refer to have to exist; nothing draws them.
    for i, label in enumerate(sorted({*FXEMOJI.values(), *RENAMED.values()})):
        if plain(label) not in known:
            emoji.append({"label": label, "hexcode": f"E{i:03X}"})
    subgroups = {str(i): name for i, name in enumerate(_SUBGROUPS)}
    shortcodes = {"1F408": "kitty", "1F3E0": ["house", "home"]}
    _write(folder / "en/data.json", emoji)
    _write(folder / "meta/groups.json", {"groups": {"1": "group"}, "subgroups": subgroups})
    _write(folder / "meta/unicode-names.json", {})
    _write(folder / "en/shortcodes/github.json", shortcodes)


def _write_set(folder: Path, artist: Artist, number: int) -> None:
    icons = {}
    chars = {}
    for label, name, code, _ in _EMOJI:
        if (artist.name, label) in _UNDRAWN:
            continue
        if artist.name == "fxemoji" and label == "cat":
            name = "catside"  # the oldest set has its own names
        x, width = (8, 16) if label == "house" else (0, 32)
        colour = f"{20 * number:02x}8040"
        body = f'<rect x="{x}" y="0" width="{width}" height="32" fill="#{colour}"/>'
        icons[name] = {"body": body}
        chars[code.lower().replace("-fe0f", "")] = name
    _write(folder / "icons.json", {"icons": icons, "aliases": {}, "width": 32, "height": 32})
    # Half of the sets publish code points, without variation selectors.
    _write(folder / "chars.json", chars if number % 2 else {})


@functools.cache
def npm() -> Path:
    """The packages."""
    return build_npm(tiny.home() / "npm")


@functools.cache
def built() -> Path:
    """The folder of the corpus built from them."""
    folder = tiny.home() / "corpus"
    builder.build(npm(), folder)
    return folder
