"""Sixth stage: one HTML file that needs no network, made from the files of the run folder alone."""

import base64
import dataclasses
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from styledrop_jax.errors import UserError, check_words, shown
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, write_bytes
from styledrop_jax.io.records import inside, is_number, read_steps
from styledrop_jax.io.run_folder import Run
from styledrop_jax.metrics.clip_scores import mean_interval
from styledrop_jax.settings import to_dict
from styledrop_jax.spec import RunSpec, to_config
from styledrop_jax.stages.best import read_best
from styledrop_jax.stages.judge import commands, read_verdict
from styledrop_jax.stages.sample import CANDIDATES
from styledrop_jax.stages.samples import Sample, read_chosen, read_samples

_ASSETS = Path(__file__).parents[1] / "assets"
_PIXEL_ART = 128  # images up to this side keep their pixels and are shown with hard edges
_THUMBNAIL = 256  # the longest side of larger images: thousands of them must fit in one file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """An image of the user's: `path` and `sha256` are of their file, `file` is the run's copy."""

    caption: str
    descriptor: str
    path: str
    sha256: str
    file: Path | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says; `rounds` has the counts of each round."""

    references: Sequence[Reference]
    base: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    rounds: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample, its image, and the image that it was generated anew from, if any."""

    sample: Sample
    file: Path
    source: Path | None
    chosen: bool

    @property
    def row(self) -> tuple[str, str]:
        """What it is compared by; not its index, since rounds may have prompts of their own."""
        return self.sample.content, self.sample.source

    @property
    def rank(self) -> tuple[bool, float]:
        return self.chosen, self.sample.score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The samples of the base model or of a round, or the true images."""

    title: str
    samples: Sequence[Shown]

    @functools.cached_property
    def best(self) -> dict[tuple[str, str], Shown]:
        """One sample for each row: a chosen one before others, then the higher score."""
        found: dict[tuple[str, str], Shown] = {}
        for item in self.samples:
            if item.row not in found or item.rank >= found[item.row].rank:
                found[item.row] = item
        return found

    def interval(self, scorer: str) -> tuple[float, float, float] | None:
        """The mean score, low and high. Samples of a prompt are alike, so prompts are resampled."""
        by_prompt: dict[int, list[float]] = {}
        for item in self.samples:
            if scorer in item.sample.scores:
                scores = by_prompt.setdefault(item.sample.prompt, [])
                scores.append(item.sample.scores[scorer])
        if not by_prompt:
            return None
        return mean_interval(np.array([np.mean(scores) for scores in by_prompt.values()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """Samples of the same prompts while a round trained, {step: samples}."""

    title: str
    rows: Mapping[int, Sequence[Shown]]
    best: int

    @property
    def contents(self) -> list[str]:
        return [item.sample.content for item in next(iter(self.rows.values()))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One metric over the training steps, 520 by 280 pixels.

    Attributes:
        lines: {label: points (step, value)}.
        steps, values: round numbers along the two axes, which enclose all points.
        top: of the curves, below the legend, pixels.
    """

    name: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    steps: Sequence[float]
    values: Sequence[float]
    top: int

    def x(self, step: float) -> float:
        share = (step - self.steps[0]) / (self.steps[-1] - self.steps[0])
        return 56 + share * 452

    def y(self, value: float) -> float:
        share = (value - self.values[0]) / (self.values[-1] - self.values[0])
        return 236 - share * (236 - self.top)


def write_report(run: Run, spec: RunSpec, *, command: str) -> Path:
    """Writes `report.html` in the run folder, whole or not at all, and returns its path.

    What the folder lacks is left out: samples of the base model or of a round, true images, curves.

    Args:
        run: its manifest, metrics, scores and images are read; no link out of it is followed.
        spec: what the run was told.
        command: what the user typed, shown as it is.

    Raises:
        UserError: a file of the folder is damaged, or the folder cannot be written.
    """
    manifest = _manifest(run)
    base = _stage(run, "base", "Base model, same prompts")
    stages = [_titled(base, manifest)]
    strips = []
    chosen = []
    settings_by_round = []
    for number in range(1, spec.rounds + 1):
        words = run.found_words(number)
        title = f"Round {number}, {words}" if words else f"Round {number}"
        stages.append(_stage(run, f"round_{number}", title))
        strips += _strips(run, number)
        chosen += _chosen(run, number)
        settings_by_round.append(_flat(to_dict(spec.round(number))))
    stages.append(_stage(run, "truth", "True image"))
    recorded = read_verdict(run)
    page = _template().stream(
        folder=run.workdir.resolve().name,
        spec=spec,
        manifest=manifest,
        recorded=recorded,
        commands=commands(run, spec, recorded.verdict) if recorded else [],
        stages=stages,
        strips=strips,
        chosen=chosen,
        rows=_rows(stages),
        charts=_charts(run),
        settings=_flat(to_config(spec)),
        settings_by_round=settings_by_round,
        command=command,
    )
    buffer = io.BytesIO()
    page.dump(buffer, "utf-8", errors="backslashreplace")  # names of files may be no Unicode
    path = run.path("report.html")
    write_bytes(path, buffer.getvalue())
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["embedded"] = embedded  # called when the page comes to that image
    return environment.get_template("report.html.jinja")


def _manifest(run: Run) -> Manifest:
    path = inside(run.workdir, "manifest.json")
    content = read_json(path) if path else {}
    references = []
    try:
        for entry in content.get("references", []):
            check_words(entry["file"], str(path))
            references.append(
                Reference(
                    caption=str(entry["caption"]),
                    descriptor=str(entry["descriptor"]),
                    path=str(entry["path"]),
                    sha256=str(entry["sha256"]),
                    file=inside(run.workdir, entry["file"]),
                )
            )
        return Manifest(
            references=references,
            base=dict(content.get("base", {})),
            versions=dict(content.get("versions", {})),
            device=str(content.get("device", "")),
            rounds={name: dict(counts) for name, counts in content.get("rounds", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not as `personalize` leaves it: {shown(error)}") from error


def _titled(base: Stage, manifest: Manifest) -> Stage:
    """The base model's stage; its title says when its prompts had the words of the style."""
    for item in base.samples:
        for reference in manifest.references:
            if reference.descriptor and reference.descriptor in item.sample.text:
                return dataclasses.replace(base, title="Base model, descriptor only")
    return base


def _stage(run: Run, folder: str, title: str) -> Stage:
    scores = inside(run.workdir, folder, "scores.jsonl")
    selected = inside(run.workdir, folder, "selected.json")
    chosen = {sample.file for sample in read_chosen(selected)} if selected else set()
    samples = []
    for sample in read_samples(scores) if scores else []:
        file = inside(run.workdir, folder, sample.file)
        source = inside(run.workdir, sample.source)
        if file:
            is_chosen = sample.file in chosen
            samples.append(Shown(sample=sample, file=file, source=source, chosen=is_chosen))
    return Stage(title=title, samples=samples)


def _chosen(run: Run, number: int) -> list[Stage]:
    """What was chosen of a round that sampled for that alone."""
    folder = f"round_{number}"
    selected = inside(run.workdir, folder, "selected.json")
    samples = []
    for sample in read_chosen(selected) if selected else []:
        file = inside(run.workdir, folder, sample.file)
        if file and sample.file.startswith(f"{CANDIDATES}/"):
            samples.append(Shown(sample=sample, file=file, source=None, chosen=True))
    title = f"Round {number}: chosen for round {number + 1}"
    return [Stage(title=title, samples=samples)] if samples else []


def _strips(run: Run, number: int) -> list[Strip]:
    """The strip of a round that kept more than its last state."""
    best = read_best(run, number)
    if best is None:
        return []
    folder = f"round_{number}/steps"
    rows = {}
    for path in sorted(run.path(folder).iterdir()):
        if path.name.isdecimal():
            rows[int(path.name)] = _stage(run, f"{folder}/{path.name}", "").samples
    if best not in rows:
        return []
    return [Strip(title=f"Round {number}", rows=rows, best=best)]


def _rows(stages: Sequence[Stage]) -> dict[tuple[str, str], Path | None]:
    """The rows of the comparison, {(prompt, source): the source's image}."""
    rows: dict[tuple[str, str], Path | None] = {}
    for stage in stages:
        for row, item in stage.best.items():
            rows.setdefault(row, item.source)
    return rows


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def embedded(path: Path) -> tuple[str, bool]:
    """The image as base64 of a WebP, and whether it is exact: a large one is a thumbnail."""
    image = Image.fromarray(image_files.read_image(path))
    exact = max(image.size) <= _PIXEL_ART
    if not exact:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=exact, quality=85)
    return base64.b64encode(buffer.getvalue()).decode(), exact


def _charts(run: Run) -> list[Chart]:
    """A chart of every metric of the training, the loss first."""
    path = inside(run.workdir, "metrics.jsonl")
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in read_steps(path) if path else []:
        label = record["stage"].replace("_", " ")
        for name, value in record.items():
            if name not in ("stage", "step") and is_number(value):
                points = curves.setdefault(name, {}).setdefault(label, [])
                points.append((record["step"], value))
    charts = []
    for name in sorted(curves, key=lambda name: (name != "loss", name)):
        charts.append(_chart(name, curves[name]))
    return charts


def _chart(name: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    points = np.concatenate(list(lines.values()))  # [n, 2]
    steps = points[:, 0]
    values = points[:, 1]
    return Chart(
        name=name,
        lines=lines,
        steps=_ticks(0, steps.max()),
        values=_ticks(values.min(), values.max()),
        top=14 + 16 * math.ceil(len(lines) / 4),  # the legend has four entries a row
    )


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10, 20) if m * power * count >= span)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [index * step for index in range(first, last + 1)]
