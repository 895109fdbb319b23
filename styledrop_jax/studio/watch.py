"""How far a run is, from its files: what server-sent events tell a page that watches it."""

import os
from pathlib import Path
from typing import Any

from styledrop_jax import runs
from styledrop_jax.io.files import read_object
from styledrop_jax.io.records import METRICS, inside, read_steps
from styledrop_jax.studio.choosing import answered
from styledrop_jax.studio.folders import Studio, stand
from styledrop_jax.studio.jobs import Jobs

_NEWEST = 8  # pictures that are shown as they come
_POINTS = 200  # of a curve


def snapshot(studio: Studio, jobs: Jobs, name: str) -> dict[str, Any]:
    """All that a page shows of a run while it works; parts that did not change are not sent."""
    workdir = studio.run(name)
    config = studio.config(name)
    waits = stand(workdir, config).waits
    return {
        "progress": stages(workdir, config),
        "loss": curves(workdir),
        "newest": newest(workdir),
        "log": jobs.log(name),
        "marks": answered(workdir, waits) if waits else None,
    }


def stages(workdir: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a run in their order: {"name", "done", "total", "over"}, in images or steps."""
    prompts = _prompts(workdir)
    base = {"name": "base model", **_sampled(workdir, "base", prompts)}
    found = [base]
    rounds = stand(workdir, config).rounds
    for number in range(1, rounds + 1):
        settings = runs.round_settings(config, number)
        stage = f"round_{number}"
        steps = _count(settings, "train", "steps")
        trained = inside(workdir, stage, "adapter.safetensors") is not None
        step = steps if trained else runs.last_step(workdir / stage)
        name = f"round {number}"
        found.append({"name": f"{name}: training", "done": step, "total": steps, "over": trained})
        total = prompts * _count(settings, "sample", "images_per_prompt")
        found.append({"name": f"{name}: drawing", **_sampled(workdir, stage, total)})
        total = prompts * _count(settings, "select", "images_per_prompt")
        if total and number < rounds:
            drawn = _sampled(workdir, f"{stage}/candidates", total)
            found.append({"name": f"{name}: drawing to choose from", **drawn})
        chosen = inside(workdir, stage, "selected.json") is not None
        found.append({"name": f"{name}: choice", "done": int(chosen), "total": 1, "over": chosen})
    over = inside(workdir, "report.html") is not None
    found.append({"name": "report", "done": int(over), "total": 1, "over": over})
    return found


def _prompts(workdir: Path) -> int:
    path = inside(workdir, "manifest.json")
    prompts = read_object(path).get("prompts") if path else None
    return len(prompts) if isinstance(prompts, list) else 0


def _count(settings: Any, section: str, name: str) -> int:
    part = settings.get(section) if isinstance(settings, dict) else None
    value = part.get(name) if isinstance(part, dict) else None
    return value if type(value) is int and value >= 0 else 0


def _sampled(workdir: Path, stage: str, total: int) -> dict[str, Any]:
    over = inside(workdir, stage, "scores.jsonl") is not None
    done = total if over else len(_pictures(workdir, f"{stage}/samples"))
    return {"done": done, "total": max(total, done), "over": over}


def _pictures(workdir: Path, folder: str) -> list[os.DirEntry[str]]:
    """The pictures in a folder of a run; none if it is a link or not there."""
    path = workdir / folder
    if not path.is_dir() or not path.resolve().is_relative_to(workdir.resolve()):
        return []
    with os.scandir(path) as entries:
        return [
            entry
            for entry in entries
            if entry.name.endswith(".png") and not entry.name.startswith(".")
            if entry.is_file(follow_symlinks=False)
        ]


def curves(workdir: Path) -> dict[str, list[list[float]]]:
    """The loss of each stage, [step, loss], thinned to what a page can show."""
    found: dict[str, list[list[float]]] = {}
    path = inside(workdir, METRICS)
    for row in read_steps(path) if path else []:
        if type(row.get("loss")) is float:
            found.setdefault(row["stage"], []).append([row["step"], round(row["loss"], 5)])
    thinned = {}
    for stage, points in found.items():
        every = -(-len(points) // _POINTS)
        thinned[stage] = points[::every]
    return thinned


def newest(workdir: Path) -> list[str]:
    """The last pictures that the run has drawn."""
    last = 0
    while (workdir / f"round_{last + 1}").is_dir():
        last += 1
    stage = f"round_{last}" if last else "base"
    found = []
    for folder in (f"{stage}/preview", f"{stage}/samples", f"{stage}/candidates/samples"):
        for entry in _pictures(workdir, folder):
            found.append((entry.stat().st_mtime_ns, f"{folder}/{entry.name}"))
    return [file for _, file in sorted(found, reverse=True)[:_NEWEST]]
