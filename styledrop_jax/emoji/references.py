"""The bundled reference images and the true images of a style, rendered again from their sources.

A bundled image is a drawing by an artist of the training set under a treatment that no base model
has seen; `assets/references/references.jsonl` says which. Its descriptor is in words that a base
model may know, unlike the style. With the packages that `launch/fetch_corpus.sh FOLDER` fetched:

    from styledrop_jax.emoji.references import write
    write("FOLDER/npm/node_modules", "styledrop_jax/assets/references")
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.drawings import (
    ARTISTS_BY_NAME,
    match_drawings,
    read_concepts,
    read_icons,
    render,
)
from styledrop_jax.emoji.treatments import TREATMENTS_BY_NAME
from styledrop_jax.errors import UserError
from styledrop_jax.io.captions import BUNDLED
from styledrop_jax.io.files import read_jsonl
from styledrop_jax.methods.prompts import POOL, noun

SIZE = 256


def write_truth(
    data: Corpus, folder: Path | str, *, artist: str, treatment: str, contents: Sequence[str] = POOL
) -> None:
    """Writes the true images of a style, NOUN.png each, in the size of the corpus: what
    `config.truth` takes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        image = data.true_image(noun(content), artist, treatment)
        Image.fromarray(image).save(folder / f"{noun(content)}.png", optimize=True)


def write(npm: Path | str, folder: Path | str) -> None:
    """Writes every bundled image into `folder`.

    Args:
        npm: the `node_modules` folder of the packages.
        folder: where the files go.

    Raises:
        UserError: a package is missing or does not draw what it should.
    """
    npm = Path(npm)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matched = match_drawings(npm)
    codes = {concept.label: code for code, concept in read_concepts(npm).items()}
    for row in read_jsonl(BUNDLED):
        icon = matched[row["artist"]][codes[noun(row["content"])]]
        drawing = render(read_icons(npm, ARTISTS_BY_NAME[row["artist"]]), icon, size=SIZE)
        if drawing is None:
            raise UserError(f"corpus source {npm}: {icon} by {row['artist']} is empty")
        canvas = Image.new("RGBA", drawing.size, "white")
        canvas.alpha_composite(drawing)
        image = TREATMENTS_BY_NAME[row["treatment"]].apply(np.asarray(canvas.convert("RGB")))
        Image.fromarray(image).save(folder / row["image"], optimize=True)
