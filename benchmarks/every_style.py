"""Every held-out treatment and artist: the base model under the style's name, StyleDrop, StyleForge, the true drawings.

    python benchmarks/every_style.py --corpus corpus --workdir runs/every --out docs/images [--on muse]

One run of each on each style, by its own name in the corpus; the scores are those of methods.py, means over images.
Resumable.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from methods import (
    PRESETS,
    SHOWN,
    Given,
    first_of_each,
    run_method,
    scores_of,
    stages,
    write_given,
    write_shared,
)

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.emoji.drawings import ARTISTS
from styledrop_jax.emoji.treatments import TREATMENTS
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer

_KNOWN = itertools.cycle(artist.name for artist in ARTISTS if not artist.held_out)
_REFERENCES = itertools.cycle(("house", "tree", "car"))
EVERY = (
    *(
        (next(_KNOWN), treatment.name, next(_REFERENCES))
        for treatment in TREATMENTS
        if treatment.held_out
    ),
    *((artist.name, "plain", next(_REFERENCES)) for artist in ARTISTS if artist.held_out),
)
"""(artist, treatment, the concept of the reference)."""
METHODS = ("StyleDrop", "StyleForge")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="where every_style_sd.png or every_style_muse.png goes",
    )
    parser.add_argument("--on", choices=tuple(PRESETS), default="sd", help="the pipeline")
    flags = parser.parse_args()
    data, scorer = corpus.load(flags.corpus), ClipScorer.load(hub.resolve("emoji64/clip"))
    write_shared(data, flags.workdir)
    head = ("style, Text / Style / leakage", "base, its name alone", *METHODS, "true drawings")
    rows, images, captions = [], [], []
    for artist, treatment, concept in EVERY:
        style, descriptor = write_given(data, flags.workdir, artist, treatment, concept)
        given = Given(style, noun_phrase(concept), descriptor, 0)
        runs = [run_method(name, given, flags.on) for name in METHODS]
        columns = [runs[0] / "base", *(run / stages(run)[-1] for run in runs), runs[0] / "truth"]
        rows.append(
            [scores_of(scorer, at.parent, at.name, given.content).mean(axis=0) for at in columns]
        )
        images += [
            image_files.read_image(style / "reference.png"),
            *itertools.chain.from_iterable(map(_shown, columns)),
        ]
        captions += [f"{treatment} {artist}", *(name for name in head[1:] for _ in SHOWN)]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for (artist, treatment, _), row in zip(EVERY, rows, strict=True):
        _print_row(f"{treatment}, {artist}", row)
    _print_row(f"mean of {len(rows)}", np.mean(rows, axis=0))
    sheet = sheets.grid(images, columns=len(images) // len(rows), scale=1, captions=captions)
    image_files.write_png(flags.out / f"every_style_{flags.on}.png", sheet)


def _shown(folder: Path) -> list[np.ndarray]:
    rows = first_of_each(folder)
    return [image_files.read_image(folder / rows[noun(content)]["file"]) for content in SHOWN]


def _print_row(name: str, scores: Iterable[np.ndarray]) -> None:
    print(
        f"| {name} | " + " | ".join(" / ".join(f"{x:.2f}" for x in cell) for cell in scores) + " |"
    )


if __name__ == "__main__":
    main()
