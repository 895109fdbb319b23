"""The bundled reference images: drawings by artists of the training set under treatments no base model has seen.

    from styledrop_jax.data.references import write
    write("FOLDER/npm/node_modules", "styledrop_jax/assets/references")

draws them again from the packages that `launch/fetch_corpus.sh FOLDER` fetched; `write_truth` adds the pool in the same
styles, from the corpus.
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
    name: str
    concept: str
    artist: str
    treatment: str
    descriptor: str  # in words that a base model may know: the style itself it does not


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
    """Writes the true drawings of a style, NOUN.png each, 64 pixels: what `config.truth` takes."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in map(noun, contents):
        image = data.true_image(name, artist, treatment)
        Image.fromarray(image).save(Path(folder) / f"{name}.png", optimize=True)


def write(npm: Path | str, folder: Path | str) -> None:
    """Draws every bundled image from the packages in `npm`, and `references.jsonl` with its words, into `folder`."""
    npm, folder = Path(npm), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matched = match_drawings(npm)
    codes = {concept.label: code for code, concept in read_concepts(npm).items()}
    artists = {artist.name: artist for artist in ARTISTS}
    treatments = {treatment.name: treatment for treatment in TREATMENTS}
    lines = []
    for bundled in _BUNDLED:
        artist, treatment = artists[bundled.artist], treatments[bundled.treatment]
        drawing = render(
            read_icons(npm, artist), matched[artist.name][codes[bundled.concept]], size=SIZE
        )
        canvas = Image.new("RGBA", drawing.size, "white")
        canvas.alpha_composite(drawing)
        image = treatment.apply(np.asarray(canvas.convert("RGB")))
        Image.fromarray(image).save(folder / f"{bundled.name}.png", optimize=True)
        row = {
            "image": f"{bundled.name}.png",
            "content": compose.noun_phrase(bundled.concept),
            "descriptor": bundled.descriptor,
            "artist": artist.name,  # with the treatment, the style's name in the corpus: its true drawings
            "treatment": treatment.name,
        }
        lines.append(json.dumps(row))
    (folder / "references.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
