"""Every method on the same held-out styles: Text, Style, leakage, KID, cost, and one sheet.

    python benchmarks/methods.py --corpus corpus --workdir runs/methods --out docs/images \\
        [--only lora,styo] [--seeds 2]
    python benchmarks/methods.py --corpus corpus --workdir runs/methods --out docs/images \\
        --on muse --seeds 1

Each run is a process of its own, for its peak memory, and learns from one reference. StyleBoost's
heirs get 15 true drawings of the style instead, and 30 in other styles as Aux. DreamBooth learns
the reference's subject, Cut-Mix-Unmix it and a cat by the same artist. StyO redraws a plain drawing
of what the reference shows, by another artist. Scores are means over images with a 95% bootstrap
interval over (style, seed, prompt) means. KID is of a run's samples and the style's true drawings,
in CLIP features, its mean over runs. Seconds are those of the fastest run, memory the most that
any had. Resumable.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flags import of_corpus
from held_out_styles import PERSONS, Style, every_style, write_style
from scores import LEAKAGE, STYLE, TEXT, features, first_of_each, intervals, scores_of

from styledrop_jax import log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.references import write_truth
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.methods.prompts import noun
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.metrics.distances import kernel_distance, scaled
from styledrop_jax.stages.samples import Sample, read_samples

ANIMALS = ("a bear", "a chick", "a dolphin", "a frog", "a horse face", "a ladybug", "an octopus")
THINGS = ("a bell", "a boot", "a camera", "a clock", "a donut", "a hammer", "a hat", "a lemon")
SETS = {"": ANIMALS + THINGS, "_animals": ANIMALS, "_things": THINGS}
"""What the sets of images show, by the end of their folders' names."""
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
STYLES = [style for style in every_style() if style.name in ("woodcut", "paper cut", "openmoji")]
PRESETS = {"sd": "emoji128", "muse": "emoji128-muse"}
_HEAD = "| method | Text ↑ | Style ↑ | leakage ↓ | KID ↓ | trainable | seconds | peak memory |"
_STYO_HEAD = "| method | source ↑ | Style ↑ | diversity ↑ | trainable | seconds | peak memory |"

Overrides = dict[str, Any]
"""Dotted fields of a config → values."""


class Given(NamedTuple):
    """What a run may use of a held-out style.

    Attributes:
        style: the style's folder.
        content: of its reference image, "a house".
        descriptor: a person's words for it.
        seed: of the run.
    """

    style: Path
    content: str
    descriptor: str
    seed: int

    @property
    def reference(self) -> Overrides:
        return {"reference.image": str(self.style / "reference.png")}

    def shared(self, name: str) -> str:
        """A file or folder that all styles share."""
        return str(self.style.parent / name)


# -------------------------------------------------------------- what each method is given


def _style_word(given: Given) -> Overrides:
    return given.reference | {"reference.content": given.content}


def _described(given: Given) -> Overrides:
    return _style_word(given) | {"reference.descriptor": given.descriptor}


def _styledrop(given: Given) -> Overrides:
    return _described(given) | {"rounds": 2}


def _styleforge(given: Given) -> Overrides:
    return {
        "reference.image": str(given.style / "ref"),
        "aux.image": given.shared("aux"),
        "words.identifier": "ged",
    }


def _multi_styleforge(given: Given) -> Overrides:
    return {
        "component_1.image": str(given.style / "ref_animals"),
        "component_1.aux.image": given.shared("aux_animals"),
        "component_2.image": str(given.style / "ref_things"),
        "component_2.aux.image": given.shared("aux_things"),
    }


def _dreambooth(given: Given) -> Overrides:
    return given.reference | {
        "words.identifier": "ged",
        "words.noun": noun(given.content),
        "prompts": given.shared("scenes.txt"),
    }


def _dreambooth_lora(given: Given) -> Overrides:
    low_rank = {"round_1.adapter.kind": "lora", "round_1.train.learning_rate": 4e-4}
    return _dreambooth(given) | low_rank


def _cut_mix(given: Given) -> Overrides:
    prompts = given.style / "pairs.txt"
    lines = "\n".join(PAIRS).format(subject=noun(given.content))
    prompts.write_text(lines + "\n", encoding="utf-8")
    return {
        "reference.image": str(given.style / "pair"),
        "prompts": str(prompts),
        "mix.unmix": 0.1,
    }


def _styo(given: Given) -> Overrides:
    thing = noun(given.content)
    return {
        "source.image": given.shared(f"{thing} by {SOURCE_ARTISTS[given.seed % 2]}.png"),
        "target.image": str(given.style / "reference.png"),
        "words.noun": thing,
        "round_1.sample.images_per_prompt": 8,
    }


def _styo_no_negator(given: Given) -> Overrides:
    return _styo(given) | {"contrast.negator": ""}


def _styo_no_control(given: Given) -> Overrides:
    return _styo(given) | {"source.control": 0}


METHODS: dict[str, tuple[str, Callable[[Given], Overrides]]] = {
    "StyleDrop": ("styledrop", _styledrop),
    "LoRA": ("lora", _described),
    "SVDiff": ("svdiff", _described),
    "Textual Inversion": ("textual_inversion", _style_word),
    "Custom Diffusion": ("custom_diffusion", _style_word),
    "StyleForge": ("styleforge", _styleforge),
    "Multi-StyleForge": ("multi_styleforge", _multi_styleforge),
    "DreamBooth (subject)": ("dreambooth", _dreambooth),
    "DreamBooth, LoRA (subject)": ("dreambooth", _dreambooth_lora),
    "Cut-Mix-Unmix (subjects)": ("cut_mix", _cut_mix),
    "StyO": ("styo", _styo),
    "StyO, no negator": ("styo", _styo_no_negator),
    "StyO, no control": ("styo", _styo_no_control),
}
"""Name → its config, and what it is given of a style."""
OF_SUBJECTS = ("DreamBooth (subject)", "DreamBooth, LoRA (subject)", "Cut-Mix-Unmix (subjects)")
"""No artist has drawn what they sample."""
OF_SOURCES = ("StyO", "StyO, no negator", "StyO, no control")
"""Judged by source and target, not by prompts."""
OF_DIFFUSION = (*OF_SOURCES, "Cut-Mix-Unmix (subjects)")
"""They control the attention of a Stable Diffusion."""


def main() -> None:
    parser = of_corpus(__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="where methods_sd.png or methods_muse.png goes"
    )
    parser.add_argument("--only", default="", help="configs of methods, with commas; all else")
    parser.add_argument("--on", choices=tuple(PRESETS), default="sd", help="the pipeline")
    parser.add_argument("--seeds", type=int, default=2)
    flags = parser.parse_args()
    data = corpus.load(flags.corpus, size=128)
    write_shared(data, flags.workdir)
    every = []
    contents = []
    for seed in range(flags.seeds):
        for style in STYLES:
            every.append(write_given(data, flags.workdir, style, seed))
            contents.append(style.shown)
    runs: dict[str, list[Path]] = {}
    styo: dict[str, list[Path]] = {}
    for name in _chosen(flags.only, flags.on):
        kind = styo if name in OF_SOURCES else runs
        kind[name] = [run_method(name, given, flags.on) for given in every]
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    _print_methods(scorer, runs, contents)
    _print_styo(scorer, styo)
    _write_sheet(runs | styo, flags.out / f"methods_{flags.on}.png")


def _chosen(only: str, on: str) -> list[str]:
    """The methods whose configs `only` names, or all, of those that go on a pipeline."""
    names = []
    for name, (config, _) in METHODS.items():
        if on == "muse" and name in OF_DIFFUSION:
            continue
        if not only or config in only.split(","):
            names.append(name)
    return names


# -------------------------------------------------------------- runs


def write_given(data: corpus.Corpus, workdir: Path, style: Style, seed: int) -> Given:
    """Writes all that any method may be given of a style into a folder."""
    folder = write_style(data, workdir, style)
    for end, contents in SETS.items():
        write_truth(
            data,
            folder / f"ref{end}",
            artist=style.artist,
            treatment=style.treatment,
            contents=contents,
        )
    for words, concept in (("ged " + style.concept, style.concept), ("aug cat", "cat")):
        image = data.true_image(concept, style.artist, style.treatment)
        image_files.write_png(folder / "pair" / f"a {words}-1.png", image)
    return Given(folder, style.shown, PERSONS[style.name], seed)


def write_shared(data: corpus.Corpus, folder: Path) -> None:
    """Aux images in other styles, StyO's sources, DreamBooth's prompts."""
    for end, contents in SETS.items():
        for i, content in enumerate(contents):
            for artist, treatment in OTHER_STYLES[i % 2 :: 2]:
                image = data.true_image(noun(content), artist, treatment)
                name = f"{noun(content)} {treatment}.png"
                image_files.write_png(folder / f"aux{end}" / name, image)
    for artist in SOURCE_ARTISTS:
        for style in STYLES:
            image = data.true_image(style.concept, artist)
            image_files.write_png(folder / f"{style.concept} by {artist}.png", image)
    (folder / "scenes.txt").write_text("\n".join(SCENES) + "\n", encoding="utf-8")


def run_method(name: str, given: Given, on: str) -> Path:
    """The folder of a method's run on a style, made if it is missing; `on` is one of `PRESETS`."""
    config, overrides = METHODS[name]
    label = name if on == "sd" else f"{name}, on Muse"
    run = given.style / f"seed_{given.seed}" / label.replace(", ", "_").replace(" ", "_")
    values = overrides(given) | {"seed": given.seed}
    if name not in OF_SUBJECTS + OF_SOURCES:
        values["truth"] = str(given.style / "truth")
    _run(run, f"{config}:{PRESETS[on]}", values)
    return run


def _run(run: Path, config: str, overrides: Overrides) -> None:
    """Runs `styledrop personalize`, unless `cost.json` is there, and writes its costs to that."""
    if (run / "cost.json").exists():
        return
    log.say(str(run))
    is_new = not run.exists()
    start = time.monotonic()
    program = str(Path(sys.executable).with_name("styledrop"))
    words = [f"--config.{field}={value}" for field, value in overrides.items()]
    process = subprocess.Popen(
        [program, "personalize", "--config", config, "--workdir", str(run), *words]
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _peak(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{run}: the run failed")
    seconds = time.monotonic() - start if is_new else None  # else only a part was timed
    write_json(run / "cost.json", {"seconds": seconds, "peak_mib": peak})


def _peak(pid: int) -> float:
    """MiB that a process has had in memory at most; what `wait4` says counts this one's too."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def stages(run: Path, *more: str) -> list[str]:
    """The rounds of a run, and those stages of `more` that it has."""
    names = ("round_1", "round_2", *more)
    return [stage for stage in names if (run / stage / "scores.jsonl").exists()]


# -------------------------------------------------------------- scores


def _samples(run: Path, stage: str) -> list[Sample]:
    return read_samples(run / stage / "scores.jsonl")


def _distance(scorer: ClipScorer, run: Path, stage: str) -> float:
    """KID to the true drawings."""
    found = features(scorer, run / stage, _samples(run, stage))
    truth = features(scorer, run / "truth", _samples(run, "truth"))
    return kernel_distance(scaled(found), scaled(truth))


def _styo_scores(scorer: ClipScorer, run: Path) -> np.ndarray:
    """Of each sample, [images, 3]: cosine with the source, with the target, distance to others."""
    samples = _samples(run, "round_1")
    seen = features(scorer, run / "round_1", samples)
    image = image_files.read_image(run / SOURCE).astype(np.float32) / 255
    source = scorer.image_features(image[None])[0]
    others = (seen @ seen.T).sum(axis=1) - 1
    style = [sample.scores["clip_style"] for sample in samples]
    return np.stack([seen @ source, style, 1 - others / (len(samples) - 1)], axis=1)


def _print_methods(
    scorer: ClipScorer, runs: Mapping[str, Sequence[Path]], contents: Sequence[str]
) -> None:
    if runs:
        print(f"{_HEAD}\n{'|---' * 8}|")
    for name, folders in runs.items():
        more = ("base", "truth") if name == "StyleDrop" else ()
        for stage in stages(folders[0], *more):
            scores = []
            distances = []
            for run, content in zip(folders, contents, strict=True):
                scores.append(scores_of(scorer, run, stage, content)[:, [TEXT, STYLE, LEAKAGE]])
                if name not in OF_SUBJECTS:
                    distances.append(_distance(scorer, run, stage))
            distance = f"{np.mean(distances):.3f}" if distances else "–"
            cells = [*intervals(scores), distance, *_costs(folders, stage)]
            print(f"| {name}, {stage} | {' | '.join(cells)} |")


def _print_styo(scorer: ClipScorer, runs: Mapping[str, Sequence[Path]]) -> None:
    if runs:
        print(f"\n{_STYO_HEAD}\n{'|---' * 7}|")
    for name, folders in runs.items():
        scores = [_styo_scores(scorer, run) for run in folders]
        cells = [*intervals(scores), *_costs(folders, "round_1")]
        print(f"| {name} | {' | '.join(cells)} |")


def _costs(runs: Sequence[Path], stage: str) -> list[str]:
    """Trainable numbers, seconds of training and of the whole, and memory, if `stage` trains."""
    trainable = 0
    training = []
    whole = []
    peaks = []
    for run in runs:
        found = read_json(run / "manifest.json")["rounds"].get(stage)
        if found is None:
            return ["–"] * 3
        trainable = found["trainable"]
        training.append(found["training_seconds"])
        cost = read_json(run / "cost.json")
        whole.append(cost["seconds"] or np.inf)
        peaks.append(cost["peak_mib"])
    seconds = f"{min(training):.0f} of {min(whole):.0f}"
    return [f"{trainable:,}", seconds, f"{max(peaks):.0f} MiB"]


def _write_sheet(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """A row a method; of each style, first seed, three samples of its last round."""
    images = []
    captions = []
    for name, folders in runs.items():
        for run in folders[: len(STYLES)]:
            folder = run / stages(run)[-1]
            found = first_of_each(folder)
            if name in OF_SOURCES:
                images.append(image_files.read_image(run / SOURCE))
                captions.append("source")
                shown = read_samples(folder / "scores.jsonl")[:2]
            else:
                shown = [found[noun(content)] for content in SHOWN if noun(content) in found]
                shown = shown or list(found.values())[:3]
            for sample in shown:
                images.append(image_files.read_image(folder / sample.file))
                captions.append("drawn" if name in OF_SOURCES else noun(sample.content))
    columns = len(images) // len(runs)
    image_files.write_png(path, sheets.grid(images, columns=columns, captions=captions))


if __name__ == "__main__":
    main()
