"""StyleDrop on styles the shipped model never saw, against the true drawings: Text, Style, leakage, concept accuracy.

    python benchmarks/held_out_styles.py --corpus corpus --workdir runs/held_out [--preset emoji64-muse] [--seeds 3]

Four arms on the same references and prompts: the base model given the style's descriptor only; round 1; round 2 trained
on the images CLIP chose; round 2 trained on as many chosen at random. The ceiling is what the style's artist drew.
Every score is the mean over images with a 95% bootstrap interval over (style, seed, prompt) means. Resumable.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from styledrop_jax import config as schema
from styledrop_jax import log
from styledrop_jax.emoji import corpus, references
from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.io import hub, image_files
from styledrop_jax.io.files import read_jsonl
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval
from styledrop_jax.personalize import personalize

STYLES = (
    ("noto", "paper cut", "house", "in purple silhouette on yellow paper style"),
    ("fxemoji", "woodcut", "tree", "in black linocut on beige paper style"),
    ("openmoji", "plain", "tree", ""),
)
"""(artist, treatment, the concept of the reference, descriptor): held-out treatments, in words near to what they show,
and a held-out artist, in the corpus's own words, which the base model does not know."""
ARMS = {
    "base model, descriptor only": ("clip", "base"),
    "round 1": ("clip", "round_1"),
    "round 2, chosen by CLIP": ("clip", "round_2"),
    "round 2, chosen at random": ("random", "round_2"),
    "true drawings": ("clip", "truth"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument(
        "--preset", default="emoji64", help="of configs/styledrop.py: emoji64 or emoji64-muse"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4, help="images of each prompt in a round")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus)
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    table: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for artist, treatment, concept, descriptor in STYLES:
        for seed in range(flags.seeds):
            runs = _run_style(data, flags, artist, treatment, concept, descriptor, seed)
            for arm, (run, stage) in ARMS.items():
                table[arm].append(_score(scorer, runs[run], stage, noun_phrase(concept)))
    for i, (artist, treatment, *_) in enumerate(STYLES):
        print(f"\n{artist}, {treatment}\n")
        _print_scores(
            {arm: parts[i * flags.seeds : (i + 1) * flags.seeds] for arm, parts in table.items()}
        )
    print("\nall\n")
    _print_scores(table)
    _print_choice(table)


def write_style(
    data: corpus.Corpus, workdir: Path, artist: str, treatment: str, concept: str
) -> tuple[Path, str]:
    """A folder with the style's `reference.png` and its true drawings, `truth`; and the corpus's own descriptor."""
    style = next(s for s in corpus.styles(held_out=True) if s.name == f"{artist} / {treatment}")
    folder = workdir / f"{artist} {treatment}".replace(" ", "-")
    if not (folder / "reference.png").exists():
        references.write_truth(data, folder / "truth", artist=artist, treatment=treatment)
        Image.fromarray(data.true_image(concept, artist, treatment)).save(folder / "reference.png")
    return folder, style.descriptor


def _run_style(
    data: corpus.Corpus,
    flags: argparse.Namespace,
    artist: str,
    treatment: str,
    concept: str,
    descriptor: str,
    seed: int,
) -> dict[str, Path]:
    """Both runs of one style and seed; the second takes over the first one's base drawings and round 1."""
    folder, own = write_style(data, flags.workdir, artist, treatment, concept)
    runs = {}
    for selection, weights in (
        ("clip", {}),
        ("random", {"clip_text": 0, "clip_style": 0, "random": 1}),
    ):
        overrides = [
            f"--config.reference.image={folder / 'reference.png'}",
            f"--config.reference.content={noun_phrase(concept)}",
            f"--config.reference.descriptor={descriptor or own}",
            f"--config.truth={folder / 'truth'}",
            f"--config.seed={seed}",
            f"--config.round_1.sample.images_per_prompt={flags.images}",
            f"--config.round_2.sample.images_per_prompt={flags.images}",
            *(
                f"--config.round_1.select.scorers.{scorer}={weight}"
                for scorer, weight in weights.items()
            ),
        ]
        found, _ = schema.parse(["--config", f"configs/styledrop.py:{flags.preset}", *overrides])
        run = folder / f"seed_{seed}" / selection
        if selection == "random" and not run.exists():
            # Scores go too: the sum in them is the one that CLIP selected by.
            own = (
                "round_2",
                "scores.jsonl",
                "selected.json",
                "grid.png",
                "report.html",
                "config.json",
                ".lock",
            )
            shutil.copytree(runs["clip"], run, ignore=shutil.ignore_patterns(*own))
        log.say(f"{artist}, {treatment}, seed {seed}, {selection}")
        personalize(found, run, command="benchmarks/held_out_styles.py")
        runs[selection] = run
    return runs


def _score(scorer: ClipScorer, run: Path, stage: str, reference: str) -> np.ndarray:
    """Means over each prompt's images, [prompts, 4]: Text, Style, leakage, concept accuracy.

    Text: cosine with the prompt. Style: with the reference image. Leakage: with the words of the reference's content.
    Concept: whether the prompt's content is the nearest of the pool's. The reference's own content is left out: nothing
    can leak into it.
    """
    rows = [row for row in read_jsonl(run / stage / "scores.jsonl") if row["content"] != reference]
    images = (
        np.stack([image_files.read_image(run / stage / row["file"]) for row in rows]).astype(
            np.float32
        )
        / 255
    )
    features = scorer.image_features(images)
    leakage = features @ scorer.text_features([reference])[0]
    nearest = (features @ scorer.text_features(POOL).T).argmax(axis=1)
    scores = np.stack(
        [
            [row["scores"]["clip_text"] for row in rows],
            [row["scores"]["clip_style"] for row in rows],
            leakage,
            [POOL[best] == row["content"] for best, row in zip(nearest, rows, strict=True)],
        ],
        axis=1,
    )
    prompts = np.array([row["prompt"] for row in rows])
    return np.stack([scores[prompts == p].mean(axis=0) for p in np.unique(prompts)])


def _print_scores(table: dict[str, list[np.ndarray]]) -> None:
    print("| arm | Text ↑ | Style ↑ | leakage ↓ | concept ↑ |\n|---|---|---|---|---|")
    for arm, parts in table.items():
        values = np.concatenate(parts)
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*mean_interval(values[:, i]))
            for i in range(values.shape[1])
        ]
        print(f"| {arm} | " + " | ".join(cells) + " |")


def _print_choice(table: dict[str, list[np.ndarray]]) -> None:
    after = np.concatenate(table["round 2, chosen by CLIP"]) - np.concatenate(
        table["round 2, chosen at random"]
    )
    print("\nCLIP minus random, paired by style, seed and prompt:")
    for i, name in enumerate(("Text", "Style", "leakage", "concept")):
        print("{}: {:+.3f} [{:+.3f}, {:+.3f}]".format(name, *mean_interval(after[:, i])))


if __name__ == "__main__":
    main()
