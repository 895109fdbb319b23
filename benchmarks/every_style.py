"""Every held-out treatment and artist: the base model, StyleDrop, StyleForge, the true drawings.

    python benchmarks/every_style.py --corpus corpus --workdir runs/every --out docs/images \\
        [--on muse]

The base model is given the style's name. There is one run of each method on each style, which is
called by its own name in the corpus. The scores are those of methods.py, means over images.
Resumable.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flags import of_corpus
from held_out_styles import Style
from methods import (
    PRESETS,
    SHOWN,
    first_of_each,
    run_method,
    scores_of,
    stages,
    write_given,
    write_shared,
)

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.drawings import HELD_OUT_ARTISTS, TRAINED_ARTISTS
from styledrop_jax.emoji.treatments import HELD_OUT_TREATMENTS, TREATMENTS_BY_NAME
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer

METHODS = ("StyleDrop", "StyleForge")
_REFERENCES = ("house", "tree", "car")


def every_style() -> list[Style]:
    """Each held-out treatment on one artist of training, then each held-out artist as it is."""
    pairs = []
    for i, treatment in enumerate(HELD_OUT_TREATMENTS):
        pairs.append((TRAINED_ARTISTS[i % len(TRAINED_ARTISTS)], treatment))
    for artist in HELD_OUT_ARTISTS:
        pairs.append((artist, TREATMENTS_BY_NAME["plain"]))
    styles = []
    for i, (artist, treatment) in enumerate(pairs):
        concept = _REFERENCES[i % len(_REFERENCES)]
        styles.append(Style(artist.name, treatment.name, concept))
    return styles


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="where every_style_sd.png or every_style_muse.png goes",
    )
    parser.add_argument("--on", choices=tuple(PRESETS), default="sd", help="the pipeline")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus, size=128)
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    write_shared(data, flags.workdir)
    columns = ("base, its name alone", *METHODS, "true drawings")
    head = " | ".join(["style, Text / Style / leakage", *columns])
    styles = every_style()
    table = []
    images = []
    captions = []
    for style in styles:
        given = write_given(data, flags.workdir, style, seed=0)
        folders = []
        for name in METHODS:
            run = run_method(name, given, flags.on)
            folders.append(run / stages(run)[-1])
        first = folders[0].parent
        folders = [first / "base", *folders, first / "truth"]
        images.append(image_files.read_image(given.style / "reference.png"))
        captions.append(f"{style.treatment} {style.artist}")
        scores = []
        for name, folder in zip(columns, folders, strict=True):
            found = scores_of(scorer, folder.parent, folder.name, given.content)
            scores.append(found.mean(axis=0))
            images += _shown(folder)
            captions += [name] * len(SHOWN)
        table.append(scores)
    print(f"| {head} |\n{'|---' * (len(columns) + 1)}|")
    for style, scores in zip(styles, table, strict=True):
        _print_row(f"{style.treatment}, {style.artist}", scores)
    _print_row(f"mean of {len(table)}", np.mean(table, axis=0))
    sheet = sheets.grid(images, columns=len(images) // len(table), captions=captions)
    image_files.write_png(flags.out / f"every_style_{flags.on}.png", sheet)


def _shown(folder: Path) -> list[np.ndarray]:
    samples = first_of_each(folder)
    return [image_files.read_image(folder / samples[noun(content)].file) for content in SHOWN]


def _print_row(name: str, scores: Iterable[np.ndarray]) -> None:
    cells = []
    for text, style, leakage in scores:
        cells.append(f"{text:.2f} / {style:.2f} / {leakage:.2f}")
    print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
