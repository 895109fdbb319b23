"""What a second round does to a style: arms of its settings on styles for choosing them.

    python benchmarks/rounds.py --icons icons/node_modules --workdir runs/rounds \\
        [--preset emoji64-muse] [--seeds 3] [--arm defaults] [--style crayon]

Scores are means over the images of a prompt. By the CLIP that selects: content, how much likelier
its own than all prompts' contents; Style, cosine with the reference; sameness, with the images of
other prompts. By a judge that had no part in it: colour and texture, distances to the reference.
The prompt that asks for what the reference shows is left out. An arm's differences from round 1 are
paired by style, seed and prompt, with 95% bootstrap intervals. Resumable.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from held_out_styles import by_prompt, features, interval
from validation_styles import STYLES, Style, write

from styledrop_jax import config_files, log
from styledrop_jax.io import hub, image_files
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.metrics.statistics import colour_distance, texture_distance
from styledrop_jax.rounds import personalize
from styledrop_jax.stages.samples import read_samples

_NO_SCORES = {
    "round_1.select.scorers.clip_style": 0.0,
    "round_1.select.scorers.clip_content": 0.0,
}
# One state of all layers, the best sample of each prompt, no reference in round 2.
_PUBLISHED: dict[str, Any] = {
    **_NO_SCORES,
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
    "chosen at random": {**_NO_SCORES, "round_1.select.scorers.random": 1.0},
    "as published": _PUBLISHED,
}
_SCORES = ("content ↑", "Style ↑", "sameness ↓", "colour ↓", "texture ↓")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="node_modules of the icon sets")
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--preset", default="emoji64", help="of configs/styledrop.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=tuple(ARMS), help="default: all")
    parser.add_argument("--style", action="append", help="default: all")
    flags = parser.parse_args()
    styles = [style for style in STYLES if not flags.style or style.name in flags.style]
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    table: dict[str, list[np.ndarray]] = {}
    for style in styles:
        given = write(flags.icons, flags.workdir / "styles", style)
        for seed in range(flags.seeds):
            folder = flags.workdir / flags.preset / style.name.replace(" ", "-") / f"seed_{seed}"
            for arm in flags.arm or ARMS:
                own = folder / arm.replace(" ", "-")
                run = _run(own, flags, style, given, seed, ARMS[arm])
                for stage in ("base", "round_1", "round_2", "truth"):
                    table.setdefault(f"{arm}: {stage}", []).append(
                        _scores(scorer, run, stage, style, given)
                    )
    print(f"\n| arm | {' | '.join(_SCORES)} |\n{'|---' * (len(_SCORES) + 1)}|")
    for name, parts in table.items():
        print(f"| {name} | {' | '.join(f'{x:.3f}' for x in np.concatenate(parts).mean(0))} |")
    print(f"\n| round 2 less round 1 | {' | '.join(_SCORES)} |\n{'|---' * (len(_SCORES) + 1)}|")
    for arm in flags.arm or ARMS:
        apart = np.concatenate(table[f"{arm}: round_2"]) - np.concatenate(table[f"{arm}: round_1"])
        print(f"| {arm} | {' | '.join(interval(column, '+.3f') for column in apart.T)} |")


def _run(
    folder: Path,
    flags: argparse.Namespace,
    style: Style,
    given: Path,
    seed: int,
    arm: dict[str, Any],
) -> Path:
    overrides: dict[str, Any] = {
        "reference.image": str(given / "reference.png"),
        "reference.content": style.content,
        "reference.descriptor": style.words,
        "truth": str(given / "truth"),
        "seed": seed,
        "round_2.sample.images_per_prompt": 1,
    }
    spec = config_files.read(f"styledrop:{flags.preset}", overrides | arm)
    log.say(f"{style.name}, seed {seed}, {folder.name}")
    personalize(spec, folder, command="benchmarks/rounds.py")
    return folder


def _scores(scorer: ClipScorer, run: Path, stage: str, style: Style, given: Path) -> np.ndarray:
    """The scores of a stage, [prompts, 5]; of the true drawings there may be fewer prompts."""
    reference = image_files.read_image(given / "reference.png")
    samples = read_samples(run / stage / "scores.jsonl")
    samples = [sample for sample in samples if sample.content != style.content]
    images = [image_files.read_image(run / stage / sample.file) for sample in samples]
    seen = features(scorer, run / stage, samples)
    contents = [sample.content for sample in samples]
    every = scorer.text_features(sorted(set(contents)))
    likeness = seen @ every.T
    own = np.sum(seen * scorer.text_features(contents), axis=1) - likeness.mean(axis=1)
    alike = seen @ seen.T
    rows = []
    for i, (sample, image) in enumerate(zip(samples, images, strict=True)):
        others = [j for j, content in enumerate(contents) if content != sample.content]
        clip = (own[i], sample.scores["clip_style"], alike[i, others].mean())
        apart = (colour_distance(image, reference), texture_distance(image, reference))
        rows.append((*clip, *apart))
    return by_prompt(samples, np.array(rows, float))


if __name__ == "__main__":
    main()
