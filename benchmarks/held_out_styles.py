"""StyleDrop on every style that was held out of training, under three kinds of words for each.

    python benchmarks/held_out_styles.py --corpus corpus --workdir runs/held_out \\
        --out docs/images [--style blueprint] [--words "bare name"]

Nine treatments and two artists, one reference each, the defaults of `configs/styledrop.py`, one
seed: what the words alone draw (the base model), each round, and the round that the run takes. The
bare name is the corpus's, which says next to nothing to a model. A person's words were written from
a look at the references, before anything was scored; found ones are the first that `styledrop
describe` prints when it is told what the picture shows. The scores are those of scores.py, means
over styles and prompts with 95% bootstrap intervals. Resumable; a part of the styles at a time, in
processes side by side, leaves what a last one for all puts together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flags import of_corpus
from scores import NAMES, STYLE, first_of_each, print_table, scores_of, taken

from styledrop_jax import config_files, library, log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import descriptor, noun_phrase
from styledrop_jax.emoji.drawings import ARTISTS_BY_NAME, HELD_OUT_ARTISTS, TRAINED_ARTISTS
from styledrop_jax.emoji.references import write_truth
from styledrop_jax.emoji.treatments import HELD_OUT_TREATMENTS, TREATMENTS_BY_NAME
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.rounds import personalize

WORDS = ("bare name", "a person's words", "found words")
PERSONS = {
    "blueprint": "in white lines on dark blue paper style",
    "halftone": "in black dots on white paper style",
    "mosaic": "in colorful square tiles on white paper style",
    "woodcut": "in black linocut on beige paper style",
    "cross stitch": "in embroidery on beige cloth style",
    "gold foil": "in gold lines on black paper style",
    "old screen": "in green television screen with dark lines style",
    "comic dots": "in dark blue outlined orange dots on pale green paper style",
    "paper cut": "in purple silhouette on yellow paper style",
    "openmoji": "in black outlined flat cartoon style",
    "fluent high contrast": "in black silhouette on white paper style",
}
"""Style → a person's words."""
_REFERENCES = ("house", "tree", "car")
_SHOWN = ("cat", "guitar", "key")


class Style(NamedTuple):
    """A style that no base model saw.

    Attributes:
        artist, treatment: its name in the corpus.
        concept: what its reference image shows.
    """

    artist: str
    treatment: str
    concept: str

    @property
    def name(self) -> str:
        """The treatment's, or of an artist as it is the artist's."""
        return self.artist if self.treatment == "plain" else self.treatment

    @property
    def shown(self) -> str:
        """What the reference shows, "a house"."""
        return noun_phrase(self.concept)

    @property
    def descriptor(self) -> str:
        """The corpus's own."""
        return descriptor(ARTISTS_BY_NAME[self.artist], TREATMENTS_BY_NAME[self.treatment])


Given = tuple[Style, Path, Sequence[str]]
"""A style, its folder, and the descriptor of each of the words."""


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where held_out_styles.png goes")
    parser.add_argument("--style", action="append", choices=tuple(PERSONS), help="default: all")
    parser.add_argument("--words", action="append", choices=WORDS, help="default: all")
    flags = parser.parse_args()
    kinds = [kind for kind in WORDS if not flags.words or kind in flags.words]
    data = corpus.load(flags.corpus, size=128)
    clip = ClipScorer.load(hub.resolve("emoji64/clip"))
    every = []
    for style in every_style():
        if not flags.style or style.name in flags.style:
            folder = write_style(data, flags.workdir, style)
            every.append((style, folder, _descriptors(folder / "reference.png", style, kinds)))
    table: dict[str, list[np.ndarray]] = {}
    for style, folder, descriptors in every:
        for kind, words in zip(kinds, descriptors, strict=True):
            log.say(f"{style.name}, {kind}: {words}")
            run = _run(folder, style, kind, words)
            for label, stage in _stages(run).items():
                own = scores_of(clip, run, stage, style.shown)
                table.setdefault(f"{kind}, {label}", []).append(own)
        true = scores_of(clip, run, "truth", style.shown)
        table.setdefault("true drawings", []).append(true)
    print_table(table, NAMES, "words")
    print_table(_differences(kinds, table), NAMES, "round 2 less round 1", "+.3f")
    _print_styles(every, kinds, table)
    if {*WORDS[:2]} <= {*kinds} and not flags.style:
        _write_sheet(every, flags.out / "held_out_styles.png")


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


def write_style(data: corpus.Corpus, workdir: Path, style: Style) -> Path:
    """A folder with the style's `reference.png` and its true drawings, `truth`."""
    folder = workdir / f"{style.artist} {style.treatment}".replace(" ", "-")
    reference = data.true_image(style.concept, style.artist, style.treatment)
    image_files.write_png(folder / "reference.png", reference)
    write_truth(data, folder / "truth", artist=style.artist, treatment=style.treatment)
    return folder


def _descriptors(reference: Path, style: Style, kinds: Sequence[str]) -> list[str]:
    bare, persons, found = WORDS
    words = {bare: style.descriptor, persons: PERSONS[style.name]}
    if found in kinds:
        proposed = library.describe(reference, content=style.shown, number=1)
        words[found] = proposed.descriptors[0][0]
    return [words[kind] for kind in kinds]


def _run_folder(folder: Path, kind: str) -> Path:
    return folder / kind.replace(" ", "-").replace("'", "")


def _run(folder: Path, style: Style, kind: str, words: str) -> Path:
    run = _run_folder(folder, kind)
    overrides = {
        "reference.image": str(folder / "reference.png"),
        "reference.content": style.shown,
        "reference.descriptor": words,
        "truth": str(folder / "truth"),
        "round_2.sample.images_per_prompt": 1,
    }
    spec = config_files.read("styledrop", overrides)
    personalize(spec, run, command="benchmarks/held_out_styles.py")
    return run


def _stages(run: Path) -> dict[str, str]:
    stages = {"words alone": "base"}
    for number in (1, 2):
        if (run / f"round_{number}" / "scores.jsonl").exists():
            stages[f"round {number}"] = f"round_{number}"
    return stages | {"the round taken": f"round_{taken(run)}"}


def _differences(
    kinds: Sequence[str], table: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """Of each kind of words, paired by style and prompt."""
    found = {}
    for kind in kinds:
        pairs = zip(table[f"{kind}, round 2"], table[f"{kind}, round 1"], strict=True)
        found[kind] = [later - first for later, first in pairs]
    return found


def _print_styles(
    every: Sequence[Given], kinds: Sequence[str], table: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Style under the words alone, of each round, and of the true drawings, of each style."""
    print(f"\n| Style | {' | '.join(kinds)} | true |\n{'|---' * (len(kinds) + 2)}|")
    for i, (style, _, descriptors) in enumerate(every):
        cells = []
        for kind, words in zip(kinds, descriptors, strict=True):
            stages = ("words alone", "round 1", "round 2")
            means = [f"{table[f'{kind}, {stage}'][i][:, STYLE].mean():.2f}" for stage in stages]
            cells.append(f"{words}: {' → '.join(means)}")
        cells.append(f"{table['true drawings'][i][:, STYLE].mean():.2f}")
        print(f"| {style.name} | {' | '.join(cells)} |")


def _write_sheet(every: Sequence[Given], path: Path) -> None:
    """A row a style: the reference; three things under the bare name and a person's words, by these
    alone and by the round taken; and by the artist.
    """
    images = []
    captions = []
    for style, folder, _ in every:
        images.append(image_files.read_image(folder / "reference.png"))
        captions.append(style.name)
        for kind in WORDS[:2]:
            run = _run_folder(folder, kind)
            stages = _stages(run)
            for label, caption in (("words alone", "alone"), ("the round taken", "taken")):
                images += _shown(run / stages[label])
                captions += [f"{kind}, {caption}"] * len(_SHOWN)
        images += _shown(_run_folder(folder, WORDS[0]) / "truth")
        captions += ["true"] * len(_SHOWN)
    columns = len(images) // len(every)
    image_files.write_png(path, sheets.grid(images, columns=columns, captions=captions))


def _shown(folder: Path) -> list[np.ndarray]:
    samples = first_of_each(folder)
    return [image_files.read_image(folder / samples[thing].file) for thing in _SHOWN]


if __name__ == "__main__":
    main()
