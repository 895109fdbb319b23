"""What a second round does to a style: arms of its settings on styles for choosing them.

    python benchmarks/rounds.py --icons icons/node_modules --workdir runs/rounds \\
        [--preset emoji64-muse] [--seeds 3] [--arm defaults] [--style crayon]
    python benchmarks/rounds.py --corpus corpus --workdir runs/held_out --seeds 1 --arm defaults

The second is of the eleven held-out styles, under a person's words.

Scores are means over the images of a prompt. By the CLIP that selects: Text, cosine with the prompt
and its words of style; content and leakage, how much likelier its own content, and what the
reference shows, than all prompts' contents; recognised, whether its own is the likeliest of them;
Style, cosine with the reference; truth, with what the style's set drew of the same thing, where it
did. By a judge that had no part in it: colour and texture, distances to the reference. The prompt
that asks for what the reference shows is left out. An arm's differences from round 1 are paired by
style, seed and prompt, with 95% bootstrap intervals.

Arms that choose otherwise begin from round 1 of the defaults. Where a person has to choose, the
first time says where. Resumable.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from every_style import every_style
from found_words import PERSONS, name_of
from held_out_styles import (
    AT_RANDOM,
    by_prompt,
    copy_first_round,
    features,
    interval,
    write_style,
)
from validation_styles import STYLES, write

from styledrop_jax import config_files, log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.feedback.select import Paused
from styledrop_jax.io import hub, image_files
from styledrop_jax.io.files import read_object
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.metrics.statistics import colour_distance, texture_distance
from styledrop_jax.rounds import personalize
from styledrop_jax.stages.samples import read_samples

# One state of all layers, the best sample of each prompt, no reference in round 2.
_PUBLISHED: dict[str, Any] = {
    "round_1.select.scorers.clip_style": 0.0,
    "round_1.select.scorers.clip_content": 0.0,
    "round_1.select.scorers.clip_text": 1.0,
    "round_1.select.by": "prompt",
    "round_1.select.k": 1,
    "round_1.select.images_per_prompt": 0,
    "round_1.sample.images_per_prompt": 2,
    "round_2.own_share": 0.0,
}
for _round in ("round_1", "round_2"):
    _PUBLISHED |= {
        f"{_round}.adapter.blocks": "all",
        f"{_round}.keep": 1,
        f"{_round}.train.steps": 250,
        f"{_round}.sample.lambda_a": 0.5,
    }
ARMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chosen at random": AT_RANDOM,
    "chosen by a person": {"round_1.select.by": "human"},
    "as published": _PUBLISHED,
}
_OTHER_CHOICE = ("chosen at random", "chosen by a person")
_SCORES = (
    *("Text ↑", "content ↑", "recognised ↑", "leakage ↓"),
    *("Style ↑", "truth ↑", "colour ↓", "texture ↓"),
)


class _Given(NamedTuple):
    """A style: what its reference shows, a person's words for it, and the folder of both."""

    name: str
    content: str
    words: str
    folder: Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    styles = parser.add_mutually_exclusive_group(required=True)
    styles.add_argument("--icons", type=Path, help="node_modules of the icon sets")
    styles.add_argument("--corpus", type=Path, help="what launch/fetch_corpus.sh made")
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--preset", default="emoji128", help="of configs/styledrop.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=tuple(ARMS), help="default: all")
    parser.add_argument("--style", action="append", help="default: all")
    flags = parser.parse_args()
    arms = [arm for arm in ARMS if not flags.arm or arm in flags.arm]
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    table: dict[str, dict[Path, np.ndarray]] = {}
    for style in _styles(flags):
        for seed in range(flags.seeds):
            folder = flags.workdir / flags.preset / style.name.replace(" ", "-") / f"seed_{seed}"
            for arm in arms:
                log.say(f"{style.name}, seed {seed}, {arm}")
                try:
                    run = _run(folder, flags.preset, style, seed, arm)
                except Paused as pause:
                    log.say(str(pause))
                    continue
                taken = f"round_{read_object(run / 'verdict.json')['round']}"
                stages = {"base": "base", "round 1": "round_1", "round 2": "round_2"}
                for name, stage in (stages | {"taken": taken, "true drawings": "truth"}).items():
                    own = table.setdefault(f"{arm}: {name}", {})
                    own[folder] = _scores(scorer, run, stage, style)
    head = f"| {' | '.join(_SCORES)} |\n{'|---' * (len(_SCORES) + 1)}|"
    print(f"\n| arm {head}")
    for name, parts in table.items():
        means = np.nanmean(np.concatenate(list(parts.values())), axis=0)
        print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    print(f"\n| difference {head}")
    for arm in arms:
        for name in ("round 2", "taken"):
            _print_difference(table, f"{arm}: {name}", f"{arm}: round 1")
        if arm != "defaults":
            _print_difference(table, "defaults: round 2", f"{arm}: round 2")


def _styles(flags: argparse.Namespace) -> Iterator[_Given]:
    """Those that are asked for, each written when its turn comes."""
    folder = flags.workdir / "styles"
    if flags.icons:
        for style in STYLES:
            if not flags.style or style.name in flags.style:
                given = write(flags.icons, folder, style)
                yield _Given(style.name, style.content, style.words, given)
        return
    data = corpus.load(flags.corpus, size=128)
    for held_out in every_style():
        name = name_of(held_out)
        if not flags.style or name in flags.style:
            given = write_style(data, folder, held_out)
            yield _Given(name, noun_phrase(held_out.concept), PERSONS[name], given)


def _print_difference(table: dict[str, dict[Path, np.ndarray]], one: str, other: str) -> None:
    """The row of one less the other, over the runs that have both, if there are any."""
    both = table.get(one, {}).keys() & table.get(other, {}).keys()
    if both:
        apart = np.concatenate([table[one][run] - table[other][run] for run in sorted(both)])
        cells = [interval(x[np.isfinite(x)], "+.3f") for x in apart.T]
        print(f"| {one}, less {other} | {' | '.join(cells)} |")


def _run(folder: Path, preset: str, style: _Given, seed: int, arm: str) -> Path:
    overrides: dict[str, Any] = {
        "reference.image": str(style.folder / "reference.png"),
        "reference.content": style.content,
        "reference.descriptor": style.words,
        "truth": str(style.folder / "truth"),
        "seed": seed,
        "rounds": 2,
        "round_2.sample.images_per_prompt": 1,
    }
    run = folder / arm.replace(" ", "-")
    if arm in _OTHER_CHOICE and (folder / "defaults" / "verdict.json").exists():
        copy_first_round(folder / "defaults", run)
    spec = config_files.read(f"styledrop:{preset}", overrides | ARMS[arm])
    personalize(spec, run, command="benchmarks/rounds.py")
    return run


def _scores(scorer: ClipScorer, run: Path, stage: str, style: _Given) -> np.ndarray:
    """The scores of a stage, [prompts, 8]; of the true drawings there may be fewer prompts, and
    truth is NaN where there is none.
    """
    reference = image_files.read_image(style.folder / "reference.png")
    samples = read_samples(run / stage / "scores.jsonl")
    samples = [sample for sample in samples if sample.content != style.content]
    images = [image_files.read_image(run / stage / sample.file) for sample in samples]
    seen = features(scorer, run / stage, samples)
    every = [sample.content for sample in read_samples(run / "base" / "scores.jsonl")]
    likeness = seen @ scorer.text_features(every).T
    mean = likeness.mean(axis=1)
    asked = [every.index(sample.content) for sample in samples]
    own = likeness[np.arange(len(samples)), asked]
    recognised = likeness.argmax(axis=1) == asked
    leakage = seen @ scorer.text_features([style.content])[0] - mean
    drawn = read_samples(run / "truth" / "scores.jsonl")
    of_drawn = features(scorer, run / "truth", drawn)
    true = {each.content: own for each, own in zip(drawn, of_drawn, strict=True)}
    rows = []
    for i, (sample, image) in enumerate(zip(samples, images, strict=True)):
        alike = seen[i] @ true[sample.content] if sample.content in true else np.nan
        words = (sample.scores["clip_text"], own[i] - mean[i], recognised[i], leakage[i])
        pictures = (sample.scores["clip_style"], alike)
        apart = (colour_distance(image, reference), texture_distance(image, reference))
        rows.append((*words, *pictures, *apart))
    return by_prompt(samples, np.array(rows, float))


if __name__ == "__main__":
    main()
