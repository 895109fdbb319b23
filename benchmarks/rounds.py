"""What a second round does to a style: arms of its settings on styles for choosing them.

    python benchmarks/rounds.py --icons icons/node_modules --workdir runs/rounds \\
        [--preset emoji128-muse] [--seeds 3] [--arm defaults] [--style crayon]

The scores are those of scores.py, means over the images of a prompt. An arm's differences from
round 1 are paired by style, seed and prompt, with 95% bootstrap intervals.

Arms that choose otherwise begin from round 1 of the defaults. Where a person has to choose, the
first time says where. Resumable.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from scores import NAMES, intervals, scores_of, taken
from validation_styles import STYLES, Style, write

from styledrop_jax import config_files, log
from styledrop_jax.feedback.select import Paused
from styledrop_jax.io import hub
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.rounds import personalize

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
    "chosen at random": {
        "round_1.select.scorers.clip_style": 0,
        "round_1.select.scorers.clip_content": 0,
        "round_1.select.scorers.random": 1,
    },
    "chosen by a person": {"round_1.select.by": "human"},
    "as published": _PUBLISHED,
}
_OTHER_CHOICE = ("chosen at random", "chosen by a person")
_ITS_OWN = (
    *("round_2", "scores.jsonl", "selected.json", "verdict.json", "grid.png", "report.html"),
    *("config.json", ".lock"),
)
"""What a run that chooses otherwise does not take over. Scores are of it too: the sum in them is
the one that CLIP selected by."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="node_modules of the icon sets")
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--preset", default="emoji128", help="of configs/styledrop.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=tuple(ARMS), help="default: all")
    parser.add_argument("--style", action="append", help="default: all")
    flags = parser.parse_args()
    arms = [arm for arm in ARMS if not flags.arm or arm in flags.arm]
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    table: dict[str, dict[Path, np.ndarray]] = {}
    for style in STYLES:
        if flags.style and style.name not in flags.style:
            continue
        given = write(flags.icons, flags.workdir / "styles", style)
        for seed in range(flags.seeds):
            folder = flags.workdir / flags.preset / style.name.replace(" ", "-") / f"seed_{seed}"
            for arm in arms:
                log.say(f"{style.name}, seed {seed}, {arm}")
                try:
                    run = _run(folder, flags.preset, style, given, seed, arm)
                except Paused as pause:
                    log.say(str(pause))
                    continue
                stages = {"base": "base", "round 1": "round_1", "round 2": "round_2"}
                stages |= {"taken": f"round_{taken(run)}", "true drawings": "truth"}
                for name, stage in stages.items():
                    own = table.setdefault(f"{arm}: {name}", {})
                    own[folder] = scores_of(scorer, run, stage, style.content)
    head = f"| {' | '.join(NAMES)} |\n{'|---' * (len(NAMES) + 1)}|"
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


def _print_difference(table: dict[str, dict[Path, np.ndarray]], one: str, other: str) -> None:
    """The row of one less the other, over the runs that have both, if there are any."""
    both = table.get(one, {}).keys() & table.get(other, {}).keys()
    if both:
        apart = [table[one][run] - table[other][run] for run in sorted(both)]
        cells = intervals(apart, "+.3f")
        print(f"| {one}, less {other} | {' | '.join(cells)} |")


def _run(folder: Path, preset: str, style: Style, given: Path, seed: int, arm: str) -> Path:
    overrides: dict[str, Any] = {
        "reference.image": str(given / "reference.png"),
        "reference.content": style.content,
        "reference.descriptor": style.words,
        "truth": str(given / "truth"),
        "seed": seed,
        "rounds": 2,
        "round_2.sample.images_per_prompt": 1,
    }
    run = folder / arm.replace(" ", "-")
    if arm in _OTHER_CHOICE and (folder / "defaults" / "verdict.json").exists():
        _copy_first_round(folder / "defaults", run)
    spec = config_files.read(f"styledrop:{preset}", overrides | ARMS[arm])
    personalize(spec, run, command="benchmarks/rounds.py")
    return run


def _copy_first_round(run: Path, to: Path) -> None:
    """The base's samples and round 1 of a finished run, of which nothing is chosen yet."""
    if not to.exists():
        shutil.copytree(run, to, ignore=_own)


def _own(folder: str, names: list[str]) -> list[str]:
    """Of `names` in `folder`, what is not copied; the states of round 1 were compared alike."""
    return [] if "steps" in Path(folder).parts else [name for name in names if name in _ITS_OWN]


if __name__ == "__main__":
    main()
