"""The report of a run: one HTML file that opens without a network, made from the files of the run folder alone."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl, write_bytes
from styledrop_jax.io.run_folder import Run
from styledrop_jax.log import read_metrics
from styledrop_jax.metrics.clip_scores import mean_interval

_PIXEL_ART = 128  # images up to this side are shown with hard pixel edges and embedded as they are
_THUMBNAIL = (
    256  # longest side that larger images are embedded with: thousands of them must fit in one file
)
_SCORES = {"clip_text": "CLIP text score", "clip_style": "CLIP style score"}
_LINES = (
    ("--line-1", ""),
    ("--line-2", "6 3"),
    ("--line-3", "2 3"),
    ("--line-4", "9 3 2 3"),
)  # colour, dashes


class _Stage(NamedTuple):
    """One set of drawings: the base model's, a round's, or the true ones.

    Attributes:
        folder: of the files, "round_1". title: for people.
        rows: of `scores.jsonl`, those whose image is there. chosen: (prompt, image) of the selected ones.
    """

    folder: str
    title: str
    rows: list[dict[str, Any]]
    chosen: frozenset[tuple[int, int]]


def write_report(run: Run, spec, *, command: str) -> Path:
    """Writes `report.html` in the run folder, whole or not at all, and returns its path.

    Whatever the folder lacks is left out: the base model's drawings (`base/`), the true drawings (`truth/`, with the
    same `scores.jsonl` as a round), the curves, rounds that have not been scored.

    Args:
        run: its `config.json`, `manifest.json`, `metrics.jsonl` and the stages' files are read.
        command: what the user typed, shown as it is.

    Raises:
        UserError: a file of the folder is damaged, or the folder cannot be written.
    """
    rounds = [_stage(run, f"round_{n}", f"Round {n}") for n in range(1, run.config["rounds"] + 1)]
    rounds = [stage for stage in rounds if stage.rows]
    styled = run.config["method"] == "styledrop"
    base = _stage(
        run, "base", "Base model, descriptor only" if styled else "Base model, same prompts"
    )
    truth = _stage(run, "truth", "True drawing")
    stages = [stage for stage in (base, *rounds, truth) if stage.rows]
    manifest = run.manifest
    sections = [
        _header(run, manifest, len(rounds)),
        _section("Reference", _references(run, manifest.get("references", []))),
        _section("Scores", _scores(stages)),
        _section("Before and after", _before_after(run, stages)),
        *(_section(f"{stage.title}: all drawings", _samples(run, stage)) for stage in rounds),
        _section("Training", _curves(run)),
        _section("SampleSettings", ""),
        _section("Reproduce", f"<pre>{html.escape(command)}</pre>" + _provenance(manifest)),
    ]
    path = run.path("report.html")
    write_bytes(
        path,
        _PAGE.format(title=_title(run, manifest), style=_STYLE, body="\n".join(sections)).encode(),
    )
    return path


def _stage(run: Run, folder: str, title: str) -> _Stage:
    rows = read_jsonl(run.path(folder, "scores.jsonl"))
    rows = [row for row in rows if run.path(folder, row["file"]).is_file()]
    selected = run.path(folder, "selected.json")
    chosen = read_json(selected)["selected"] if selected.exists() else []
    return _Stage(folder, title, rows, frozenset((row["prompt"], row["image"]) for row in chosen))


# -------------------------------------------------------------- sections


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>" if body else ""


def _title(run: Run, manifest: Mapping[str, Any]) -> str:
    descriptors = dict.fromkeys(
        reference["descriptor"] for reference in manifest.get("references", [])
    )
    return html.escape(" / ".join(descriptors) or run.workdir.name)


def _header(run: Run, manifest: Mapping[str, Any], rounds: int) -> str:
    base = manifest.get("base", {}).get("name", run.config.get("base", ""))
    facts = (
        str(run.config.get("method", "")),
        f"{rounds} round{'s' * (rounds != 1)}",
        f"on {base}",
    )
    return (
        f"<header><p>{html.escape(' · '.join(facts))}</p><h1>{_title(run, manifest)}</h1></header>"
    )


def _references(run: Run, references: Sequence[Mapping[str, Any]]) -> str:
    figures = [
        _figure(
            run.path(reference["file"]),
            reference["caption"],
            f"<b>{html.escape(reference['caption'])}</b>",
        )
        for reference in references
        if run.path(reference["file"]).is_file()
    ]
    return f'<div class="row">{"".join(figures)}</div>' if figures else ""


def _scores(stages: Sequence[_Stage]) -> str:
    names = [
        name
        for name in _SCORES
        if any(name in row["scores"] for stage in stages for row in stage.rows)
    ]
    if not names:
        return ""
    rows = [
        [stage.title, str(len(stage.rows)), *(_mean(stage.rows, name) for name in names)]
        for stage in stages
    ]
    text = (
        "Cosines of CLIP features: of each drawing and its whole prompt (text), and of each drawing and the reference "
        "(style). Mean over the prompts of all drawings, chosen or not, with its 95% bootstrap interval over prompts. "
        "Where CLIP chose what a round learned from, the model that steered that round is also the one that judges it."
    )
    return (
        _table(["", "drawings", *(_SCORES[name] for name in names)], rows, numbers=True)
        + f"<p>{text}</p>"
    )


def _mean(rows: Iterable[Mapping[str, Any]], name: str) -> str:
    """The images of a prompt are alike, so the prompt is what is resampled."""
    by_prompt: dict[int, list[float]] = {}
    for row in rows:
        if name in row["scores"]:
            by_prompt.setdefault(row["prompt"], []).append(row["scores"][name])
    if not by_prompt:
        return "–"
    mean, low, high = mean_interval(np.array([np.mean(values) for values in by_prompt.values()]))
    return f"{mean:.3f} <small>[{low:.3f}, {high:.3f}]</small>"


def _before_after(run: Run, stages: Sequence[_Stage]) -> str:
    best = [_best(stage) for stage in stages]
    contents = {row["prompt"]: row["content"] for rows in best for row in rows.values()}
    if not contents:
        return ""
    lines = []
    for prompt, content in sorted(contents.items()):
        source = next(
            (rows[prompt]["source"] for rows in best if "source" in rows.get(prompt, {})), None
        )
        cells = [f"<td>{_image(run.path(source), f'{content}: source')}</td>"] if source else []
        for stage, rows in zip(stages, best, strict=True):
            row = rows.get(prompt)
            image = (
                _image(run.path(stage.folder, row["file"]), f"{content}: {stage.title}")
                if row
                else ""
            )
            cells.append(f"<td>{image}</td>")
        lines.append(f'<tr><th scope="row">{html.escape(content)}</th>{"".join(cells)}</tr>')
    head = (
        '<th scope="col">Source</th>'
        if any("source" in row for rows in best for row in rows.values())
        else ""
    )
    for stage, rows in zip(stages, best, strict=True):
        many = round(len(stage.rows) / max(len(rows), 1))
        head += f'<th scope="col">{html.escape(stage.title)}{f"<br><small>one of {many}</small>" if many > 1 else ""}</th>'
    text = "One drawing a prompt: of each round the chosen one, or else the one that scored best; see below for all."
    return (
        f'<p>{text}</p><div class="wide"><table class="pictures"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _best(stage: _Stage) -> dict[int, dict[str, Any]]:
    """The row to show of each prompt: chosen before not chosen, then the higher score."""
    best: dict[int, dict[str, Any]] = {}
    for row in sorted(
        stage.rows, key=lambda r: ((r["prompt"], r["image"]) in stage.chosen, r["score"])
    ):
        best[row["prompt"]] = row
    return best


def _samples(run: Run, stage: _Stage) -> str:
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in stage.rows:
        groups.setdefault(row["prompt"], []).append(row)
    blocks = []
    for rows in groups.values():
        figures = []
        for row in rows:
            chosen = (row["prompt"], row["image"]) in stage.chosen
            caption = f"{'<mark>chosen</mark> ' * chosen}{row['score']:.3f}"
            alt = f"{row['text']}, seed {row['seed']}"
            figures.append(
                _figure(run.path(stage.folder, row["file"]), alt, caption, chosen=chosen)
            )
        blocks.append(
            f'<h3>{html.escape(rows[0]["text"])}</h3><div class="row">{"".join(figures)}</div>'
        )
    count = f"{len(stage.rows)} drawings, {len(stage.chosen)} chosen, each with its score"
    return f"<details open><summary>{count}</summary>{''.join(blocks)}</details>"


def _curves(run: Run) -> str:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}  # metric → round → (step, value)
    for n in range(1, run.config["rounds"] + 1):
        for record in read_metrics(run.workdir, f"round_{n}"):
            for name in record.keys() - {"stage", "step"}:
                if record[name] is not None:  # a number that was not finite
                    points = curves.setdefault(name, {}).setdefault(f"round {n}", [])
                    points.append((record["step"], record[name]))
    charts = [
        _chart(name, curves[name])
        for name in sorted(curves, key=lambda name: (name != "loss", name))
    ]
    return f'<div class="row">{"".join(charts)}</div>' if charts else ""


def _settings(run: Run) -> str:
    numbers = range(1, run.config["rounds"] + 1)
    rounds = [_flat(run.config[f"round_{min(n, 2)}"]) for n in numbers]
    common = _flat(
        {key: value for key, value in run.config.items() if not key.startswith("round_")}
    )
    names = dict.fromkeys(name for settings in rounds for name in settings)
    per_round = [[html.escape(name), *(_value(s.get(name, "")) for s in rounds)] for name in names]
    return _table(["", *(f"round {n}" for n in numbers)], per_round) + _table(
        ["", "whole run"], [[html.escape(name), _value(value)] for name, value in common.items()]
    )


def _provenance(manifest: Mapping[str, Any]) -> str:
    """What was used: the images, the base model, counts of each round, versions, device."""
    base, versions = manifest.get("base", {}), manifest.get("versions", {})
    facts = [
        *(
            ("reference", f"{entry['path']} (sha256 {entry['sha256']})")
            for entry in manifest.get("references", [])
        ),
        *((f"base model {key}", _grouped(value)) for key, value in base.items()),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("device", manifest.get("device", "")),
    ]
    rounds = manifest.get("rounds", {})
    columns = list(dict.fromkeys(key for counts in rounds.values() for key in counts))
    lines = [
        [
            html.escape(_words(name)),
            *(html.escape(_grouped(counts.get(key, ""))) for key in columns),
        ]
        for name, counts in rounds.items()
    ]
    table = (
        _table(["", *(html.escape(_words(key)) for key in columns)], lines, numbers=True)
        if lines
        else ""
    )
    return table + _table(
        [], [[html.escape(name), html.escape(value)] for name, value in facts if value]
    )


# -------------------------------------------------------------- pieces


def _figure(path: Path, alt: str, caption: str, *, chosen: bool = False) -> str:
    kind = ' class="chosen"' if chosen else ""
    return f"<figure{kind}>{_image(path, alt)}<figcaption>{caption}</figcaption></figure>"


def _image(path: Path, alt: str) -> str:
    """An image inside the page: small ones bit for bit, large ones as thumbnails."""
    pixels = image_files.read_image(path)
    small = max(pixels.shape[:2]) <= _PIXEL_ART
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if not small:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(buffer, format="WEBP", lossless=small, quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="pixels"' if small else ""
    return f'<img{kind} src="data:image/webp;base64,{data}" alt="{html.escape(alt)}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Cells are HTML; the first of each row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = (
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    kind = ' class="numbers"' if numbers else ""
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table{kind}>{thead}<tbody>{"".join(lines)}</tbody></table></div>'


def _chart(name: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One metric over the steps, a line for each round, as SVG."""
    width, height, left, right, bottom = 520, 280, 56, 12, 44
    columns = 4
    top = 14 + 16 * math.ceil(len(lines) / columns)  # below the legend
    steps, values = (
        np.array([p[axis] for points in lines.values() for p in points]) for axis in (0, 1)
    )
    x_ticks, y_ticks = _ticks(0, steps.max()), _ticks(values.min(), values.max())

    def x(step: float) -> float:
        return left + (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right)

    def y(value: float) -> float:
        return (
            height
            - bottom
            - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)
        )

    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick:g}</text>'
        )
    for i, (label, points) in enumerate(lines.items()):
        colour, dashes = _LINES[i % len(_LINES)]
        line = f'class="line" style="stroke:var({colour})" stroke-dasharray="{dashes}"'
        where = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline {line} points="{where}"/>')
        key_x, key_y = left + 110 * (i % columns), 12 + 16 * (i // columns)
        parts.append(
            f'<path {line} d="M{key_x} {key_y}h24"/><text x="{key_x + 30}" y="{key_y + 4}">{label}</text>'
        )
    parts.append(
        f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">training step</text>'
    )
    middle = (top + height - bottom) / 2
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{html.escape(name)}</text>'
    )
    label = html.escape(f"{name} over the training steps")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10, 20) if m * power * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def _value(value: Any) -> str:
    return html.escape(str(value)) if value != "" else "<small>empty</small>"


def _grouped(value: Any) -> str:
    """Counts with commas, everything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


# The policy keeps the page to itself: whatever a prompt or a path holds, nothing is run and nothing is fetched.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1f23; --soft: #5d636d; --rule: #dfe2e7; --mark: #c2410c;
  --line-1: #1d6fd1; --line-2: #c2410c; --line-3: #15803d; --line-4: #7e3fb4; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e9ebee; --soft: #a2a9b4; --rule: #343941;
  --mark: #fb923c; --line-1: #6cb0ff; --line-2: #fb923c; --line-3: #4ade80; --line-4: #c793f5; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 64px; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 44px 0 12px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); font-size: 20px; }
h3 { margin: 20px 0 6px; font-size: 15px; overflow-wrap: anywhere; }
p { max-width: 72ch; }
small, header p, figcaption, summary { color: var(--soft); }
summary { cursor: pointer; }
.row { display: flex; flex-wrap: wrap; gap: 6px; align-items: start; }
.wide { overflow-x: auto; margin: 0 0 16px; }
figure { width: min-content; margin: 0; padding: 2px; border: 3px solid transparent; }
figure.chosen { border-color: var(--mark); }
figcaption { font-size: 12px; overflow-wrap: anywhere; }
mark { padding: 0 4px; background: var(--mark); color: var(--paper); font-weight: 600; }
img { display: block; width: 192px; height: auto; }
img.pixels { width: 128px; image-rendering: pixelated; }
table { border-collapse: collapse; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; white-space: nowrap; }
.numbers th:not(:first-child), .numbers td { padding-left: 14px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.pictures { width: min-content; }
.pictures th, .pictures td { border: 0; vertical-align: middle; overflow-wrap: normal; }
.pictures tbody th { min-width: 110px; white-space: normal; }
pre { padding: 12px; border: 1px solid var(--rule); white-space: pre-wrap; overflow-wrap: anywhere; }
svg { flex: 1 1 380px; max-width: 560px; font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; }
"""
