"""StyleDrop on styles the shipped model never saw: Text, Style, leakage, concept accuracy.

    python benchmarks/held_out_styles.py --corpus corpus --workdir runs/held_out \\
        [--preset emoji64-muse] [--seeds 3]

Four arms on the same references and prompts: the base model given the style's descriptor only;
round 1; round 2 trained on the images CLIP chose; round 2 trained on as many chosen at random. The
ceiling is what the style's artist drew. Every score is the mean over images with a 95% bootstrap
interval over (style, seed, prompt) means. Resumable.
"""

import argparse
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flags import of_corpus

from styledrop_jax import config_files, log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import descriptor, noun_phrase
from styledrop_jax.emoji.drawings import ARTISTS_BY_NAME
from styledrop_jax.emoji.references import write_truth
from styledrop_jax.emoji.treatments import TREATMENTS_BY_NAME
from styledrop_jax.io import hub, image_files
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval
from styledrop_jax.rounds import personalize
from styledrop_jax.stages.samples import Sample, read_samples


class Style(NamedTuple):
    """A style that no base model saw.

    Attributes:
        artist, treatment: its name in the corpus.
        concept: what its reference image shows.
        words: its descriptor in words that a base model knows; empty for the corpus's own.
    """

    artist: str
    treatment: str
    concept: str
    words: str = ""

    @property
    def descriptor(self) -> str:
        """The corpus's own."""
        return descriptor(ARTISTS_BY_NAME[self.artist], TREATMENTS_BY_NAME[self.treatment])


STYLES = (
    Style("noto", "paper cut", "house", "in purple silhouette on yellow paper style"),
    Style("fxemoji", "woodcut", "tree", "in black linocut on beige paper style"),
    Style("openmoji", "plain", "tree"),
)
"""Two held-out treatments, in words near to what they show, and a held-out artist, in words of the
corpus, which the base model does not know."""
ARMS = {
    "base model, descriptor only": ("clip", "base"),
    "round 1": ("clip", "round_1"),
    "round 2, chosen by CLIP": ("clip", "round_2"),
    "round 2, chosen at random": ("random", "round_2"),
    "true drawings": ("clip", "truth"),
}
"""Arm → how its run selects, and the stage of it."""
AT_RANDOM = {
    "round_1.select.scorers.clip_style": 0,
    "round_1.select.scorers.clip_content": 0,
    "round_1.select.scorers.random": 1,
}
_ITS_OWN = (
    *("round_2", "scores.jsonl", "selected.json", "verdict.json", "grid.png", "report.html"),
    *("config.json", ".lock"),
)
"""What a run that chooses otherwise does not take over. Scores are of it too: the sum in them is
the one that CLIP selected by."""


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument(
        "--preset", default="emoji64", help="of configs/styledrop.py: emoji64 or emoji64-muse"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4, help="images of each prompt in a round")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus, size=128)
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    table: dict[str, list[np.ndarray]] = defaultdict(list)
    for style in STYLES:
        for seed in range(flags.seeds):
            runs = _run_style(data, flags, style, seed)
            for arm, (selection, stage) in ARMS.items():
                reference = noun_phrase(style.concept)
                table[arm].append(_score(scorer, runs[selection], stage, reference))
    for i, style in enumerate(STYLES):
        print(f"\n{style.artist}, {style.treatment}\n")
        _print_scores(table, slice(i * flags.seeds, (i + 1) * flags.seeds))
    print("\nall\n")
    _print_scores(table)
    _print_choice(table)


def write_style(data: corpus.Corpus, workdir: Path, style: Style) -> Path:
    """A folder with the style's `reference.png` and its true drawings, `truth`."""
    folder = workdir / f"{style.artist} {style.treatment}".replace(" ", "-")
    reference = data.true_image(style.concept, style.artist, style.treatment)
    image_files.write_png(folder / "reference.png", reference)
    write_truth(data, folder / "truth", artist=style.artist, treatment=style.treatment)
    return folder


def _run_style(
    data: corpus.Corpus, flags: argparse.Namespace, style: Style, seed: int
) -> dict[str, Path]:
    """Both runs of one style and seed; the second takes over the base's samples and round 1."""
    folder = write_style(data, flags.workdir, style)
    runs = {}
    for selection in ("clip", "random"):
        overrides: dict[str, Any] = {
            "reference.image": str(folder / "reference.png"),
            "reference.content": noun_phrase(style.concept),
            "reference.descriptor": style.words or style.descriptor,
            "truth": str(folder / "truth"),
            "seed": seed,
            "rounds": 2,
            "round_1.sample.images_per_prompt": flags.images,
            "round_2.sample.images_per_prompt": flags.images,
        }
        run = folder / f"seed_{seed}" / selection
        if selection == "random":
            overrides |= AT_RANDOM
            copy_first_round(runs["clip"], run)
        spec = config_files.read(f"styledrop:{flags.preset}", overrides)
        log.say(f"{style.artist}, {style.treatment}, seed {seed}, {selection}")
        personalize(spec, run, command="benchmarks/held_out_styles.py")
        runs[selection] = run
    return runs


def copy_first_round(run: Path, to: Path) -> None:
    """The base's samples and round 1 of a finished run, of which nothing is chosen yet."""
    if not to.exists():
        shutil.copytree(run, to, ignore=_own)


def _own(folder: str, names: list[str]) -> list[str]:
    """Of `names` in `folder`, what is not copied; the states of round 1 were compared alike."""
    return [] if "steps" in Path(folder).parts else [name for name in names if name in _ITS_OWN]


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


def _score(scorer: ClipScorer, run: Path, stage: str, reference: str) -> np.ndarray:
    """Means over each prompt's images, [prompts, 4]: Text, Style, leakage, concept accuracy.

    Text: cosine with the prompt. Style: with the reference image. Leakage: with the words of the
    reference's content. Concept: whether the prompt's content is the nearest of the pool's. The
    reference's own content is left out: nothing can leak into it.
    """
    every = read_samples(run / stage / "scores.jsonl")
    samples = [sample for sample in every if sample.content != reference]
    seen = features(scorer, run / stage, samples)
    leakage = seen @ scorer.text_features([reference])[0]
    nearest = (seen @ scorer.text_features(POOL).T).argmax(axis=1)
    rows = []
    for i, sample in enumerate(samples):
        text = sample.scores["clip_text"]
        is_right = POOL[nearest[i]] == sample.content
        rows.append((text, sample.scores["clip_style"], leakage[i], is_right))
    return by_prompt(samples, np.array(rows, float))


def interval(values: np.ndarray, form: str = ".3f") -> str:
    """The mean of values [n] and its 95% interval."""
    mean, low, high = mean_interval(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def intervals(scores: Sequence[np.ndarray]) -> list[str]:
    """The cells of a row: of each of the k scores in arrays [prompts, k]."""
    return [interval(column) for column in np.concatenate(scores).T]


def _print_scores(table: Mapping[str, Sequence[np.ndarray]], runs: slice = slice(None)) -> None:
    """The means over some of the runs, or all."""
    print("| arm | Text ↑ | Style ↑ | leakage ↓ | concept ↑ |\n|---|---|---|---|---|")
    for arm, parts in table.items():
        print(f"| {arm} | {' | '.join(intervals(parts[runs]))} |")


def _print_choice(table: Mapping[str, Sequence[np.ndarray]]) -> None:
    chosen = np.concatenate(table["round 2, chosen by CLIP"])
    difference = chosen - np.concatenate(table["round 2, chosen at random"])
    print("\nCLIP minus random, paired by style, seed and prompt:")
    for i, name in enumerate(("Text", "Style", "leakage", "concept")):
        print(f"{name}: {interval(difference[:, i], '+.3f')}")


if __name__ == "__main__":
    main()
