"""Every method on the same held-out styles: Text, Style, leakage, KID, what trains, seconds, memory; one sheet.

    python benchmarks/methods.py --corpus corpus --workdir runs/methods --out docs/images [--only lora,styo] [--seeds 2]
    python benchmarks/methods.py --corpus corpus --workdir runs/methods --out docs/images --on muse --seeds 1

Each run is a `styledrop personalize` of its own, on one reference; StyleBoost's heirs get 15 true drawings of the style
instead, and 30 in other styles as Aux; DreamBooth learns the reference's subject, Cut-Mix-Unmix it and a cat by the
same artist; StyO redraws a plain drawing of what the reference shows, by another artist. Scores are means over images
with a 95% bootstrap interval over (style, seed, prompt) means; KID is of a run's drawings and the style's true ones, in
CLIP features, its mean over runs; seconds are those of the fastest run. Resumable.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from held_out_styles import STYLES, write_style
from PIL import Image

from styledrop_jax import log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import noun_phrase
from styledrop_jax.emoji.references import write_truth
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.io.files import read_json, read_jsonl, write_json
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval
from styledrop_jax.metrics.distances import kernel_distance, scaled

ANIMALS = ("a bear", "a chick", "a dolphin", "a frog", "a horse face", "a ladybug", "an octopus")
THINGS = ("a bell", "a boot", "a camera", "a clock", "a donut", "a hammer", "a hat", "a lemon")
OTHER_STYLES = (
    ("noto", "watercolor"),
    ("twemoji", "pencil"),
    ("emojione", "pastel"),
    ("fxemoji", "comic"),
)
SOURCE_ARTISTS = ("emojione", "twemoji")  # of StyO's sources, by seed
SCENES = (
    "a {subject} on a blue background",
    "a {subject} in pencil sketch style",
    "a small {subject} on the left",
    "a {subject} and a cat",
)
PAIRS = (
    "photo of a ged {subject} next to a aug cat",
    "photo of a ged {subject}",
    "photo of a aug cat",
    "photo of a ged {subject} and a aug cat in pencil sketch style",
)
SOURCE = "references/001.png"  # of a StyO run's folder
SHOWN = ("a cat", "a guitar", "a key")


class Given(NamedTuple):
    """What a run may use of a held-out style.

    Attributes:
        style: its folder. content: of its reference image, "a house". descriptor: its words. seed: of the run.
    """

    style: Path
    content: str
    descriptor: str
    seed: int

    def shared(self, name: str) -> Path:
        return self.style.parent / name

    def reference(self) -> list[str]:
        return [f"--config.reference.image={self.style / 'reference.png'}"]


def _style_word(given: Given) -> list[str]:
    return [*given.reference(), f"--config.reference.content={given.content}"]


def _styledrop(given: Given) -> list[str]:
    return [*_style_word(given), f"--config.reference.descriptor={given.descriptor}"]


def _styleforge(given: Given) -> list[str]:
    images = (
        f"--config.reference.image={given.style / 'ref'}",
        f"--config.aux.image={given.shared('aux')}",
    )
    return [*images, "--config.words.identifier=ged"]


def _multi(given: Given) -> list[str]:
    return [
        f"--config.component_{i}.{field}={path}"
        for i, name in ((1, "animals"), (2, "things"))
        for field, path in (
            ("image", given.style / f"ref_{name}"),
            ("aux.image", given.shared(f"aux_{name}")),
        )
    ]


def _dreambooth(given: Given) -> list[str]:
    words = "--config.words.identifier=ged", f"--config.words.noun={noun(given.content)}"
    return [*given.reference(), *words, f"--config.prompts={given.shared('scenes.txt')}"]


def _cut_mix(given: Given) -> list[str]:
    prompts = given.style / "pairs.txt"
    prompts.write_text(
        "\n".join(PAIRS).format(subject=noun(given.content)) + "\n", encoding="utf-8"
    )
    return [f"--config.reference.image={given.style / 'pair'}", f"--config.prompts={prompts}"]


def _styo(given: Given) -> list[str]:
    thing, artist = noun(given.content), SOURCE_ARTISTS[given.seed % 2]
    images = (
        f"--config.source.image={given.shared(f'{thing} by {artist}.png')}",
        f"--config.target.image={given.style / 'reference.png'}",
    )
    return [*images, f"--config.words.noun={thing}", "--config.round_1.sample.images_per_prompt=8"]


PRESETS = {"sd": "emoji64", "muse": "emoji64-muse"}
LOW_RANK = ("--config.round_1.adapter.kind=lora", "--config.round_1.train.learning_rate=4e-4")
METHODS: dict[str, tuple[str, Callable[[Given], list[str]], tuple[str, ...]]] = {
    "StyleDrop": ("styledrop.py", _styledrop, ()),
    "LoRA": ("lora.py", _styledrop, ()),
    "SVDiff": ("svdiff.py", _styledrop, ()),
    "Textual Inversion": ("textual_inversion.py", _style_word, ()),
    "Custom Diffusion": ("custom_diffusion.py", _style_word, ()),
    "StyleForge": ("styleforge.py", _styleforge, ()),
    "Multi-StyleForge": ("multi_styleforge.py", _multi, ()),
    "DreamBooth (subject)": ("dreambooth.py", _dreambooth, ()),
    "DreamBooth, LoRA (subject)": ("dreambooth.py", _dreambooth, LOW_RANK),
    "Cut-Mix-Unmix (subjects)": ("cut_mix.py", _cut_mix, ("--config.mix.unmix=0.1",)),
    "StyO": ("styo.py", _styo, ()),
    "StyO, no negator": ("styo.py", _styo, ("--config.contrast.negator=",)),
    "StyO, no control": ("styo.py", _styo, ("--config.source.control=0",)),
}
"""Name → config, what it is given of a style, and what else differs."""
OF_SUBJECTS = tuple(
    name for name in METHODS if "(subject" in name
)  # what they draw, no artist has drawn
OF_SOURCES = tuple(
    name for name in METHODS if name.startswith("StyO")
)  # judged by source and target, not by prompts
OF_DIFFUSION = (*OF_SOURCES, "Cut-Mix-Unmix (subjects)")  # with its control of the attention


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument(
        "--out", type=Path, required=True, help="where methods_sd.png or methods_muse.png goes"
    )
    parser.add_argument(
        "--only",
        default="",
        help="methods whose config files have these names, with commas; all else",
    )
    parser.add_argument("--on", choices=tuple(PRESETS), default="sd", help="the pipeline")
    parser.add_argument("--seeds", type=int, default=2)
    flags = parser.parse_args()
    files = [f"{name}.py" for name in flags.only.split(",") if name]
    left_out = OF_DIFFUSION if flags.on == "muse" else ()
    named = (name for name, parts in METHODS.items() if not files or parts[0] in files)
    methods = [name for name in named if name not in left_out]
    data, scorer = corpus.load(flags.corpus), ClipScorer.load(hub.resolve("emoji64/clip"))
    write_shared(data, flags.workdir)
    runs: dict[str, list[Path]] = {name: [] for name in methods}
    contents = []
    for seed, (artist, treatment, concept, words) in itertools.product(range(flags.seeds), STYLES):
        style, descriptor = write_given(data, flags.workdir, artist, treatment, concept)
        contents.append(noun_phrase(concept))
        for name in methods:
            runs[name].append(
                run_method(name, Given(style, contents[-1], words or descriptor, seed), flags.on)
            )
    styo = {name: runs.pop(name) for name in OF_SOURCES if name in runs}
    if runs:
        print(
            "| method | Text ↑ | Style ↑ | leakage ↓ | KID ↓ | trainable | seconds | peak memory |\n"
            + "|---" * 8
            + "|"
        )
    for name, folders_ in runs.items():
        more = ("base", "truth") if name.startswith("StyleDrop") else ()
        for stage in stages(folders_[0], *more):
            scores = [
                scores_of(scorer, run, stage, content)
                for run, content in zip(folders_, contents, strict=True)
            ]
            distance = "–"
            if name not in OF_SUBJECTS:
                distance = f"{np.mean([_distance(scorer, run, stage) for run in folders_]):.3f}"
            _print_row(f"{name}, {stage}", scores, folders_, stage, distance)
    if styo:
        print(
            "\n| method | source ↑ | Style ↑ | diversity ↑ | trainable | seconds | peak memory |\n"
            + "|---" * 7
            + "|"
        )
    for name, folders_ in styo.items():
        _print_row(name, [_styo_scores(scorer, run) for run in folders_], folders_, "round_1")
    _sheet({**runs, **styo}, flags.out / f"methods_{flags.on}.png")


def write_given(
    data: corpus.Corpus, workdir: Path, artist: str, treatment: str, concept: str
) -> tuple[Path, str]:
    """A style's folder, with all that any method may be given of it, and the corpus's own descriptor."""
    folder, descriptor = write_style(data, workdir, artist, treatment, concept)
    for name, shown in (
        ("ref", ANIMALS + THINGS),
        ("ref_animals", ANIMALS),
        ("ref_things", THINGS),
    ):
        write_truth(data, folder / name, artist=artist, treatment=treatment, contents=shown)
    _write_pair(data, folder / "pair", artist, treatment, concept)
    return folder, descriptor


def run_method(name: str, given: Given, on: str) -> Path:
    """The folder of a method's run on a style, which it makes if it is missing; `on` is a key of `PRESETS`."""
    file, options, more = METHODS[name]
    label = name if on == "sd" else f"{name}, on Muse"
    run = given.style / f"seed_{given.seed}" / label.replace(", ", "_").replace(" ", "_")
    line = [*options(given), *more]
    line += [] if name in OF_SUBJECTS + OF_SOURCES else [f"--config.truth={given.style / 'truth'}"]
    _run(run, f"configs/{file}:{PRESETS[on]}", [*line, f"--config.seed={given.seed}"])
    return run


def _write_pair(
    data: corpus.Corpus, folder: Path, artist: str, treatment: str, concept: str
) -> None:
    """Cut-Mix-Unmix's two subjects, a drawing of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for words in (f"ged {concept}", "aug cat"):
        image = data.true_image(words.partition(" ")[2], artist, treatment)
        Image.fromarray(image).save(folder / f"a {words}-1.png")


def write_shared(data: corpus.Corpus, folder: Path) -> None:
    """Aux images in other styles, StyO's sources, DreamBooth's prompts."""
    for name, shown in (
        ("aux", ANIMALS + THINGS),
        ("aux_animals", ANIMALS),
        ("aux_things", THINGS),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(shown):
            for artist, treatment in OTHER_STYLES[i % 2 :: 2]:
                image = data.true_image(noun(content), artist, treatment)
                Image.fromarray(image).save(folder / name / f"{noun(content)} {treatment}.png")
    for artist in SOURCE_ARTISTS:
        for thing in sorted({concept for *_, concept, _ in STYLES}):
            Image.fromarray(data.true_image(thing, artist, "plain")).save(
                folder / f"{thing} by {artist}.png"
            )
    (folder / "scenes.txt").write_text("\n".join(SCENES) + "\n", encoding="utf-8")


def _run(run: Path, config: str, line: list[str]) -> None:
    """One `styledrop personalize`; its seconds and its peak memory go to `cost.json`, if it was not interrupted."""
    if (run / "cost.json").exists():
        return
    log.say(str(run))
    start, fresh = time.monotonic(), not run.exists()
    program = str(Path(sys.executable).with_name("styledrop"))
    process = subprocess.Popen(
        [program, "personalize", "--config", config, "--workdir", str(run), *line]
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{run}: the run failed")
    seconds = time.monotonic() - start if fresh else None
    write_json(run / "cost.json", {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024})


def stages(run: Path, *more: str) -> list[str]:
    return [
        stage for stage in ("round_1", "round_2", *more) if (run / stage / "scores.jsonl").exists()
    ]


def _print_row(
    name: str, scores: Sequence[np.ndarray], runs: Sequence[Path], stage: str, *more: str
) -> None:
    together = np.concatenate(scores)
    cells = [
        "{:.3f} [{:.3f}, {:.3f}]".format(*mean_interval(together[:, i])) for i in range(3)
    ] + list(more)
    manifests = [read_json(run / "manifest.json")["rounds"].get(stage, {}) for run in runs]
    costs = [read_json(run / "cost.json") for run in runs]
    if manifests[0]:
        cells.append(f"{manifests[0]['trainable']:,}")
        training, whole = (
            min(m["training_seconds"] for m in manifests),
            min(c["seconds"] or np.inf for c in costs),
        )
        cells.append(f"{training:.0f} of {whole:.0f}")
        cells.append(f"{np.median([c['peak_mib'] for c in costs]):.0f} MiB")
    print(f"| {name} | " + " | ".join(cells + ["–"] * (6 + len(more) - len(cells))) + " |")


def scores_of(scorer: ClipScorer, run: Path, stage: str, reference: str) -> np.ndarray:
    """Means over each prompt's images, [prompts, 3]: cosine with the prompt without words of style, with the reference
    image, and with the words of the reference's content."""
    rows = [
        row
        for row in read_jsonl(run / stage / "scores.jsonl")
        if noun(row["content"]) != noun(reference)
    ]
    features = _features(scorer, [run / stage / row["file"] for row in rows])
    plain = [row["content"].replace("{subject}", noun(reference)) for row in rows]
    text = (features * scorer.text_features([noun_phrase(noun(words)) for words in plain])).sum(
        axis=1
    )
    leakage = features @ scorer.text_features([reference])[0]
    scores = np.stack([text, [row["scores"]["clip_style"] for row in rows], leakage], axis=1)
    prompts = np.array([row["prompt"] for row in rows])
    return np.stack([scores[prompts == p].mean(axis=0) for p in np.unique(prompts)])


def _features(scorer: ClipScorer, files: Sequence[Path]) -> np.ndarray:
    return scorer.image_features(
        np.stack([image_files.read_image(file) for file in files]).astype(np.float32) / 255
    )


def _distance(scorer: ClipScorer, run: Path, stage: str) -> float:
    """KID to the true drawings."""
    files = (
        [run / name / row["file"] for row in read_jsonl(run / name / "scores.jsonl")]
        for name in (stage, "truth")
    )
    return kernel_distance(*(scaled(_features(scorer, each)) for each in files))


def _styo_scores(scorer: ClipScorer, run: Path) -> np.ndarray:
    """Of each drawing, [images, 3]: cosine with the source picture, with the target, its mean distance to others."""
    rows = read_jsonl(run / "round_1" / "scores.jsonl")
    features = _features(scorer, [run / SOURCE, *(run / "round_1" / row["file"] for row in rows)])
    source, drawn = features[0], features[1:]
    others = (drawn @ drawn.T).sum(axis=1) - 1
    style = [row["scores"]["clip_style"] for row in rows]
    return np.stack([drawn @ source, style, 1 - others / (len(rows) - 1)], axis=1)


def first_of_each(folder: Path) -> dict[str, dict]:
    """Of a folder of drawings, content → the row of its first."""
    rows: dict[str, dict] = {}
    for row in read_jsonl(folder / "scores.jsonl"):
        rows.setdefault(noun(row["content"]), row)
    return rows


def _sheet(runs: dict[str, list[Path]], path: Path) -> None:
    """A row a method; of each style, first seed, three drawings of its last round."""
    images, captions = [], []
    for name, folders_ in runs.items():
        for run in folders_[: len(STYLES)]:
            stage = stages(run)[-1]
            rows = first_of_each(run / stage)
            shown = [rows[noun(content)] for content in SHOWN if noun(content) in rows] or list(
                rows.values()
            )[:3]
            if name in OF_SOURCES:
                drawn = read_jsonl(run / stage / "scores.jsonl")[:2]
                shown = [
                    {"file": f"../{SOURCE}", "content": "source"},
                    *({**row, "content": "drawn"} for row in drawn),
                ]
            images += [image_files.read_image(run / stage / row["file"]) for row in shown]
            captions += [noun(row["content"]) for row in shown]
    image_files.write_png(
        path, sheets.grid(images, columns=len(images) // len(runs), scale=1, captions=captions)
    )


if __name__ == "__main__":
    main()
