"""A tiny corpus: npm packages of the real layout with a few drawings, and what is built from them."""

import functools
import json
from pathlib import Path

import tiny

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.drawings import ARTISTS, FXEMOJI, RENAMED, plain

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
] + [(f"thing {i}", f"thing-{i}", f"1F9{i:02X}", "tool") for i in range(30)]


def _write(path: Path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def build_npm(folder: Path) -> Path:
    """Packages of the real layout; each artist draws a square of its own colour, higher than wide for the house."""
    subgroups = sorted({subgroup for *_, subgroup in _EMOJI})
    emoji = [
        {
            "label": label,
            "hexcode": code,
            "tags": ["tag"],
            "group": 1,
            "subgroup": subgroups.index(subgroup),
        }
        | ({"gender": 1} if label.startswith("man ") else {})
        for label, _, code, subgroup in _EMOJI
    ]
    # Names that the tables of renamed icons refer to have to exist; nothing draws them.
    known = {plain(label) for label, *_ in _EMOJI}
    others = {
        label for label in (*FXEMOJI.values(), *RENAMED.values()) if plain(label) not in known
    }
    emoji += [{"label": label, "hexcode": f"E{i:03X}"} for i, label in enumerate(sorted(others))]
    _write(folder / "emojibase-data/en/data.json", emoji)
    groups = {
        "groups": {"1": "group"},
        "subgroups": {str(i): name for i, name in enumerate(subgroups)},
    }
    _write(folder / "emojibase-data/meta/groups.json", groups)
    _write(folder / "emojibase-data/meta/unicode-names.json", {})
    _write(
        folder / "emojibase-data/en/shortcodes/github.json",
        {"1F408": "kitty", "1F3E0": ["house", "home"]},
    )
    for a, artist in enumerate(ARTISTS):
        body = '<rect x="{x}" y="0" width="{w}" height="32" fill="#{c}"/>'
        icons = {}
        for label, name, *_ in _EMOJI:
            # The oldest set has its own names; one set draws no cat.
            name = (
                {"cat": "catside", "house": "house"}.get(label, name)
                if artist.name == "fxemoji"
                else name
            )
            if (artist.name, label) not in {
                ("twemoji", "thing 1"),
                ("noto", "thing 0"),
                ("emojione", "thing 0"),
            }:
                shape = {"x": 8, "w": 16} if label == "house" else {"x": 0, "w": 32}
                icons[name] = {"body": body.format(c=f"{20 * a:02x}8040", **shape)}
        if artist.name != "noto":
            icons.pop("thing-2", None)
        package = folder / "@iconify-json" / artist.package
        _write(package / "icons.json", {"icons": icons, "aliases": {}, "width": 32, "height": 32})
        # Half of the sets publish code points, written with and without variation selectors.
        chars = {
            code.lower().replace("-fe0f", ""): name for _, name, code, _ in _EMOJI if name in icons
        }
        _write(package / "chars.json", chars if a % 2 else {})
    return folder


@functools.cache
def npm() -> Path:
    """The packages."""
    return build_npm(tiny.home() / "npm")


@functools.cache
def built() -> Path:
    """The folder of the corpus built from them."""
    folder = tiny.home() / "corpus"
    corpus.build(npm(), folder)
    return folder
