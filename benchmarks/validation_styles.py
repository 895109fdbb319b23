"""Twelve styles for choosing settings: icon sets outside the corpus, and drawn ones.

    npm install --prefix icons --no-save --ignore-scripts $(python benchmarks/validation_styles.py)

fetches the sets. No base model saw any of them, and none is among the held-out styles, which are
for measuring once. Each has one reference image, the words that a person would give it, and what
its set drew of the pool's prompts: the true drawings.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from styledrop_jax.emoji import pixels as px
from styledrop_jax.emoji.drawings import Artist, read_icons, render
from styledrop_jax.io import image_files
from styledrop_jax.methods.prompts import POOL, noun

PACKAGES = (
    "@iconify-json/streamline-emojis@1.2.4",
    "@iconify-json/game-icons@1.2.4",
    "@iconify-json/icon-park@1.2.2",
    "@iconify-json/mdi@1.2.3",
    "@iconify-json/ph@1.2.2",
    "@iconify-json/tabler@1.2.41",
    "@iconify-json/streamline-ultimate-color@1.2.2",
    "@iconify-json/streamline-pixel@1.2.0",
)
SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """One style.

    Attributes:
        name: short name.
        package: the icon set below `@iconify-json/` that draws it.
        content: what the reference shows.
        words: the descriptor that a person would give it.
        ink, ground: colours of the lines of a set of one colour, and of what is behind.
        apply: uint8 [h, w, 3] → uint8 [h, w, 3], what is done to the set's drawing.
        only: ending of the names that are taken.
    """

    name: str
    package: str
    content: str
    words: str
    ink: str = "#000000"
    ground: str = "#ffffff"
    apply: Callable[[px.Image], px.Image] = lambda image: image
    only: str = ""


def _crayon(image: px.Image) -> px.Image:
    """Waxy strokes in the drawing's colours on brown paper."""
    x = px.as_float(image)
    strokes = px.hatching(*x.shape[:2], 3, 1) * (0.4 + 0.6 * px.grain(x, 5)) > 0.28
    waxy = (strokes & (px.light(x) < 0.95))[..., None]
    return px.as_bytes(np.where(waxy, px.saturate(x, 1.3), px.rgb("c49a6c")))


def _coral(image: px.Image) -> px.Image:
    """A flat coral with thick navy outlines on cream."""
    x = px.as_float(image)
    lines = px.blur(px.edges(x, gain=3.0), px.unit_of(x)) > 0.3
    fill = np.where((px.light(x) < 0.95)[..., None], px.rgb("ff7f6b"), px.rgb("fff4dc"))
    return px.as_bytes(np.where(lines[..., None], px.rgb("1d2b53"), fill))


def _mint(image: px.Image) -> px.Image:
    """Soft shades of mint on a dark green ground."""
    x = px.as_float(image)
    tone = np.where(px.light(x) < 0.95, 0.45 + 0.55 * px.light(x), 0)
    return px.through(tone, "0d3b2e", "2f7d62", "9fe3c1", "eafff4")


STYLES = (
    Style(
        name="sticker",
        package="streamline-emojis",
        content="a rabbit",
        words="in thin outlined pastel cartoon style",
    ),
    Style(
        name="silhouette",
        package="game-icons",
        content="a castle",
        words="in black silhouette on white paper style",
    ),
    Style(
        name="cutout",
        package="game-icons",
        content="a turtle",
        words="in white silhouette on dark green board style",
        ink="#ffffff",
        ground="#1f4d3a",
    ),
    Style(
        name="cyan",
        package="icon-park",
        content="a bus",
        words="in black outlined flat blue and cyan icon style",
    ),
    Style(
        name="night lines",
        package="tabler",
        content="a car",
        words="in orange lines on dark blue paper style",
        ink="#ff9f43",
        ground="#16213e",
    ),
    Style(
        name="duotone",
        package="ph",
        content="a cat",
        words="in pink lines on cream paper style",
        ink="#d6336c",
        ground="#fff3e0",
        only="-duotone",
    ),
    Style(
        name="red stamp",
        package="mdi",
        content="a dog",
        words="in red silhouette on gray paper style",
        ink="#c0392b",
        ground="#d9d9d9",
    ),
    Style(
        name="bright",
        package="streamline-ultimate-color",
        content="a house",
        words="in bright flat outlined icon style",
    ),
    Style(
        name="pixels",
        package="streamline-pixel",
        content="a key",
        words="in black pixel icon style",
    ),
    Style(
        name="crayon",
        package="streamline-emojis",
        content="an apple",
        words="in crayon on brown paper style",
        apply=_crayon,
    ),
    Style(
        name="coral",
        package="game-icons",
        content="a fish",
        words="in coral with blue outlines on cream paper style",
        apply=_coral,
    ),
    Style(
        name="mint",
        package="streamline-emojis",
        content="a mushroom",
        words="in pale green on dark green paper style",
        apply=_mint,
    ),
)


def write(npm: Path, folder: Path, style: Style) -> Path:
    """Writes a style's `reference.png`, 256 pixels, and its true drawings of the pool, `truth`.

    Raises:
        UserError: the packages are not in `npm`, the `node_modules` folder.
    """
    own = folder / style.name.replace(" ", "-")
    icons = read_icons(npm, Artist(name=style.name, package=style.package, words=""))
    names = [name for name in icons["icons"] if name.endswith(style.only)]
    for content in (style.content, *POOL):
        name = _named(names, noun(content), style.only)
        if name is None:
            continue
        image = _drawn(icons, name, style)
        image_files.write_png(own / "truth" / f"{noun(content)}.png", image)
        if content == style.content:
            image_files.write_png(own / "reference.png", image)
    return own


def _named(names: Sequence[str], thing: str, ending: str) -> str | None:
    """The icon whose name is nearest to `thing`: of one word, else the last or the shortest."""
    words = thing.split()

    def distance(name: str) -> tuple[int, int, str]:
        parts = re.sub(r"-\d+$", "", name.removesuffix(ending)).split("-")
        return len(parts) - len(words), parts[-1] != words[-1], name

    found = [name for name in names if set(words) <= set(name.split("-"))]
    return min(found, key=distance, default=None)


def _drawn(icons: Mapping, name: str, style: Style) -> np.ndarray:
    body = icons["icons"][name]["body"].replace("currentColor", style.ink)
    inked = {**icons, "icons": {name: {**icons["icons"][name], "body": body}}}
    drawing = render(inked, name, size=SIZE)
    if drawing is None:
        raise ValueError(f"{style.package}: {name} is empty")
    canvas = Image.new("RGBA", drawing.size, style.ground)
    canvas.alpha_composite(drawing)
    return style.apply(np.asarray(canvas.convert("RGB")))


if __name__ == "__main__":
    print(" ".join(PACKAGES))
