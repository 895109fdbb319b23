"""StyleDrop under three kinds of words for a style: its bare name, a person's, and found ones.

    python benchmarks/found_words.py --corpus corpus --workdir runs/words [--style blueprint]
    python benchmarks/found_words.py --corpus corpus --workdir runs/words --alone

Every held-out style, one reference each, the defaults of `configs/styledrop.py`, one seed: what the
words alone draw (the base model), round 1, and the round that the run takes. A table follows each
style. With `--alone` nothing trains: the base model draws every third prompt, as words.py has it.

A person's words were written from a look at the references, before anything was scored; found ones
are the first that `styledrop describe` prints when it is told what the picture shows. Text is
CLIP's cosine with the prompt without words of style, Style with the reference, leakage with the
words for what that shows, content how much likelier its own is than all prompts' contents; colour
and texture are distances to the reference by a judge without CLIP. Means over styles and prompts,
with 95% bootstrap intervals. Resumable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from every_style import every_style
from flags import of_corpus
from held_out_styles import Style, by_prompt, write_style
from methods import scores_of
from words import SCORES, print_table, scores_under

from styledrop_jax import config_files, library, log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.io import hub, image_files
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.metrics.statistics import colour_distance, texture_distance
from styledrop_jax.rounds import personalize
from styledrop_jax.stages.judge import read_verdict
from styledrop_jax.stages.samples import read_samples

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
WORDS = ("bare name", "a person's words", "found words")
Given = tuple[Style, Path, Sequence[str]]
"""A style, its folder, and the descriptor of each of `WORDS`."""
_SCORES = ("Text ↑", "Style ↑", "leakage ↓", "colour ↓", "texture ↓")


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument("--style", action="append", choices=tuple(PERSONS), help="default: all")
    parser.add_argument("--alone", action="store_true", help="only what the words alone draw")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus, size=128)
    clip = ClipScorer.load(hub.resolve("emoji64/clip"))
    given = []
    for style in every_style():
        if not flags.style or name_of(style) in flags.style:
            folder = write_style(data, flags.workdir, style)
            given.append((style, folder, words_of(folder / "reference.png", style)))
    if flags.alone:
        _draw_with_words_alone(clip, given)
        return
    table: dict[str, list[np.ndarray]] = {}
    for count, (style, folder, descriptors) in enumerate(given, 1):
        for arm, descriptor in zip(WORDS, descriptors, strict=True):
            run = _run(folder, style, arm, descriptor)
            for label, stage in _stages(run).items():
                table.setdefault(f"{arm}, {label}", []).append(_scores(clip, run, stage, style))
        table.setdefault("true drawings", []).append(_scores(clip, run, "truth", style))
        print(f"\nStyleDrop, {count} of {len(given)} styles")
        print_table(table, _SCORES)
    _print_styles(given, table)


def _draw_with_words_alone(clip: ClipScorer, given: Sequence[Given]) -> None:
    base = library.load()
    table: dict[str, list[np.ndarray]] = {}
    for style, folder, descriptors in given:
        reference = image_files.read_image(folder / "reference.png")
        shown = noun_phrase(style.concept)
        for arm, descriptor in zip(WORDS, descriptors, strict=True):
            rows = scores_under(base, clip, reference, shown, descriptor)
            log.say(f"{name_of(style)}, {descriptor}: {rows.mean(axis=0).round(3)}")
            table.setdefault(arm, []).append(rows)
    print_table(table, SCORES)


def name_of(style: Style) -> str:
    """The treatment's, or of an artist as it is the artist's."""
    return style.artist if style.treatment == "plain" else style.treatment


def words_of(reference: Path, style: Style) -> list[str]:
    """The descriptor of each of `WORDS`."""
    found = library.describe(reference, content=noun_phrase(style.concept), number=1)
    return [style.descriptor, PERSONS[name_of(style)], found.descriptors[0][0]]


def _run(folder: Path, style: Style, arm: str, descriptor: str) -> Path:
    run = folder / arm.replace(" ", "-").replace("'", "")
    overrides = {
        "reference.image": str(folder / "reference.png"),
        "reference.content": noun_phrase(style.concept),
        "reference.descriptor": descriptor,
        "truth": str(folder / "truth"),
        "round_2.sample.images_per_prompt": 1,
    }
    log.say(f"{name_of(style)}, {arm}: {descriptor}")
    personalize(config_files.read("styledrop", overrides), run, command="found_words.py")
    return run


def _stages(run: Path) -> dict[str, str]:
    verdict = read_verdict(Run.load(run))
    assert verdict is not None
    taken = f"round_{verdict.verdict.round}"
    return {"words alone": "base", "round 1": "round_1", "round taken": taken}


def _scores(clip: ClipScorer, run: Path, stage: str, style: Style) -> np.ndarray:
    """The scores of a stage, [prompts, 5]; not of what the reference shows."""
    shown = noun_phrase(style.concept)
    reference = image_files.read_image(run / "references" / "000.png")
    samples = []
    apart = []
    for sample in read_samples(run / stage / "scores.jsonl"):
        if noun(sample.content) != style.concept:
            samples.append(sample)
            image = image_files.read_image(run / stage / sample.file)
            row = (colour_distance(image, reference), texture_distance(image, reference))
            apart.append(row)
    judged = by_prompt(samples, np.array(apart))
    return np.hstack([scores_of(clip, run, stage, shown), judged])


def _print_styles(given: Sequence[Given], table: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Style under the words alone, of round 1 and of the round taken, of each style."""
    print(f"\n| style | {' | '.join(WORDS)} |\n{'|---' * (len(WORDS) + 1)}|")
    for i, (style, _, descriptors) in enumerate(given):
        cells = []
        for arm, descriptor in zip(WORDS, descriptors, strict=True):
            stages = ("words alone", "round 1", "round taken")
            likeness = [f"{table[f'{arm}, {stage}'][i][:, 1].mean():.2f}" for stage in stages]
            cells.append(f"{descriptor}: {' / '.join(likeness)}")
        print(f"| {name_of(style)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
