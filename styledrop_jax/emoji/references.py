"""The bundled reference images, and the true images of a style.

A bundled image is a drawing by an artist of the training set under a treatment that no base model
has seen. This renders them again from the packages that `launch/fetch_corpus.sh FOLDER` fetched:

    from styledrop_jax.emoji.references import write
    write("FOLDER/npm/node_modules", "styledrop_jax/assets/references")
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from styledrop_jax.emoji import compose
from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.drawings import ARTISTS, match_drawings, read_concepts, read_icons, render
from styledrop_jax.emoji.treatments import TREATMENTS
from styledrop_jax.methods.prompts import POOL, noun

SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bundled:
    """One image; `descriptor` is in words that a base model may know, unlike the style itself."""

    name: str
    concept: str
    artist: str
    treatment: str
    descriptor: str


_BUNDLED = (
    _Bundled(
        name="house-papercut",
        concept="house",
        artist="noto",
        treatment="paper cut",
        descriptor="in purple silhouette on yellow paper style",
    ),
    _Bundled(
        name="house-blueprint",
        concept="house",
        artist="noto",
        treatment="blueprint",
        descriptor="in white lines on blue paper style",
    ),
    _Bundled(
        name="tree-woodcut",
        concept="tree",
        artist="fxemoji",
        treatment="woodcut",
        descriptor="in black linocut on beige paper style",
    ),
    _Bundled(
        name="rocket-halftone",
        concept="rocket",
        artist="fluent flat",
        treatment="halftone",
        descriptor="in halftone dots style",
    ),
    _Bundled(
        name="strawberry-mosaic",
        concept="strawberry",
        artist="noto",
        treatment="mosaic",
        descriptor="in mosaic tile style",
    ),
    _Bundled(
        name="crown-gold",
        concept="crown",
        artist="noto",
        treatment="gold foil",
        descriptor="in yellow lines on black paper style",
    ),
)


def write_truth(
    data: Corpus, folder: Path | str, *, artist: str, treatment: str, contents: Sequence[str] = POOL
) -> None:
    """Writes the true images of a style, NOUN.png each, 64 pixels: what `config.truth` takes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        image = data.true_image(noun(content), artist, treatment)
        Image.fromarray(image).save(folder / f"{noun(content)}.png", optimize=True)


def write(npm: Path | str, folder: Path | str) -> None:
    """Writes every bundled image, and `references.jsonl` with its words, into `folder`.

    Args:
        npm: the `node_modules` folder of the packages.
        folder: where the files go.

    Raises:
        UserError: a package is missing.
    """
    npm = Path(npm)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matched = match_drawings(npm)
    codes = {concept.label: code for code, concept in read_concepts(npm).items()}
    artists = {artist.name: artist for artist in ARTISTS}
    treatments = {treatment.name: treatment for treatment in TREATMENTS}
    lines = []
    for bundled in _BUNDLED:
        icon = matched[bundled.artist][codes[bundled.concept]]
        drawing = render(read_icons(npm, artists[bundled.artist]), icon, size=SIZE)
        if drawing is None:
            raise ValueError(f"the drawing of {bundled.name} is empty")
        canvas = Image.new("RGBA", drawing.size, "white")
        canvas.alpha_composite(drawing)
        image = treatments[bundled.treatment].apply(np.asarray(canvas.convert("RGB")))
        Image.fromarray(image).save(folder / f"{bundled.name}.png", optimize=True)
        row = {
            "image": f"{bundled.name}.png",
            "content": compose.noun_phrase(bundled.concept),
            "descriptor": bundled.descriptor,
            "artist": bundled.artist,  # with the treatment: the style's name in the corpus
            "treatment": bundled.treatment,
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "references.jsonl").write_text("".join(lines), encoding="utf-8")
