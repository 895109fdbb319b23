"""Scores of a run's drawings, which the benchmarks of styles share.

Each is of one prompt, the mean over its drawings, and none is of the thing that the reference
shows. By the CLIP that selects: Text, cosine with the words for the thing, without words of style;
recognised, whether these are the likeliest of all prompts' words; leakage, cosine with the words
for what the reference shows; Style, cosine with the reference; truth, with what the style's artist
drew of the same thing, where there is one. By a judge that had no part in any choice: colour and
texture, distances to the reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_object
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval
from styledrop_jax.metrics.statistics import colour_distance, texture_distance
from styledrop_jax.stages.samples import Sample, read_samples

TEXT, RECOGNISED, LEAKAGE, STYLE, TRUTH, COLOUR, TEXTURE = range(7)
"""Columns of `scores_of`."""
NAMES = (
    *("Text ↑", "recognised ↑", "leakage ↓", "Style ↑"),
    *("truth ↑", "colour ↓", "texture ↓"),
)


def scores_of(scorer: ClipScorer, run: Path, stage: str, shown: str) -> np.ndarray:
    """The scores of a stage, [prompts, 7]; those that there is nothing to compare with are NaN.

    Args:
        scorer: the CLIP.
        run: the run folder.
        stage: "base", "round_1", "truth" and so on.
        shown: what the reference shows.
    """
    reference = image_files.read_image(run / "references" / "000.png")
    samples = _others(run, stage, shown)
    things = [_thing(sample, shown) for sample in samples]
    every = list(dict.fromkeys(things))
    own = np.array([every.index(thing) for thing in things])
    seen = features(scorer, run / stage, samples)
    likeness = seen @ scorer.text_features(every).T
    leakage = seen @ scorer.text_features([shown])[0]
    true = _true(scorer, run, shown)
    rows = []
    for i, sample in enumerate(samples):
        image = image_files.read_image(run / stage / sample.file)
        words = (likeness[i, own[i]], likeness[i].argmax() == own[i], leakage[i])
        truth = seen[i] @ true[things[i]] if things[i] in true else np.nan
        apart = (colour_distance(image, reference), texture_distance(image, reference))
        rows.append((*words, sample.scores["clip_style"], truth, *apart))
    return by_prompt(samples, np.array(rows, float))


def _others(run: Path, stage: str, shown: str) -> list[Sample]:
    """The samples of a stage but those of the thing that the reference shows."""
    every = read_samples(run / stage / "scores.jsonl")
    return [sample for sample in every if noun(sample.content) != noun(shown)]


def _thing(sample: Sample, shown: str) -> str:
    return noun_phrase(noun(sample.content.replace("{subject}", noun(shown))))


def _true(scorer: ClipScorer, run: Path, shown: str) -> dict[str, np.ndarray]:
    """Things → the features of their true drawings."""
    if not (run / "truth" / "scores.jsonl").exists():
        return {}
    samples = _others(run, "truth", shown)
    seen = features(scorer, run / "truth", samples)
    return {_thing(sample, shown): own for sample, own in zip(samples, seen, strict=True)}


def features(scorer: ClipScorer, folder: Path, samples: Sequence[Sample]) -> np.ndarray:
    """The image features of a stage's samples, [n, p]."""
    images = [image_files.read_image(folder / sample.file) for sample in samples]
    return scorer.image_features(np.stack(images).astype(np.float32) / 255)


def by_prompt(samples: Sequence[Sample], scores: np.ndarray) -> np.ndarray:
    """The means over each prompt's samples, [prompts, k], of scores [n, k]."""
    rows: dict[int, list[np.ndarray]] = {}
    for sample, score in zip(samples, scores, strict=True):
        rows.setdefault(sample.prompt, []).append(score)
    return np.stack([np.mean(rows[prompt], axis=0) for prompt in sorted(rows)])


def first_of_each(folder: Path) -> dict[str, Sample]:
    """What a stage's samples show → the first sample of it."""
    found: dict[str, Sample] = {}
    for sample in read_samples(folder / "scores.jsonl"):
        found.setdefault(noun(sample.content), sample)
    return found


def taken(run: Path) -> int:
    """The number of the round that a finished run takes."""
    return read_object(run / "verdict.json")["round"]


# -------------------------------------------------------------- tables


def interval(values: np.ndarray, form: str = ".3f") -> str:
    """The mean of those of values [n] that are finite, and its 95% interval."""
    mean, low, high = mean_interval(values[np.isfinite(values)])
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def intervals(scores: Sequence[np.ndarray], form: str = ".3f") -> list[str]:
    """The cells of a row: of each of the k scores in arrays [prompts, k]."""
    return [interval(column, form) for column in np.concatenate(scores).T]


def print_table(
    table: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], head: str, form: str = ".3f"
) -> None:
    """A row for each entry: the means of its parts [prompts, k], with intervals."""
    print(f"\n| {head} | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for name, parts in table.items():
        print(f"| {name} | {' | '.join(intervals(parts, form))} |", flush=True)
