"""What the page is told of runs: from their files alone, and of those only their own."""

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from styledrop_jax import runs
from styledrop_jax.errors import UserError
from styledrop_jax.feedback.verdict import worth
from styledrop_jax.io.files import read_json, read_jsonl, read_object
from styledrop_jax.io.records import inside
from styledrop_jax.stages.samples import Sample, read_samples
from styledrop_jax.studio.folders import Studio, is_plain, stand
from styledrop_jax.studio.jobs import RUNNING, Jobs

_BEST = 4  # pictures of a run in the list
_DRAWN = ("drawn", "mixed", "edited", "stylized")
_COMMANDS = {"drawn": "sample", "mixed": "mix", "edited": "edit", "stylized": "stylize"}
_MOST_RESULTS = 400
_FLAGS = ("round", "seed", "lambda_a", "lambda_b", "steps", "temperature", "gamma", "strength")


def listed(studio: Studio, jobs: Jobs) -> list[dict[str, Any]]:
    """A card for each run, the one that changed last first; before them those that are queued and
    have no folder yet.
    """
    cards = []
    known = set()
    for found in studio.list_runs():
        known.add(found.name)
        cards.append(_card(studio, jobs, found))
    for job in jobs.all():
        if job["words"][0] == "personalize" and job["run"] not in known:
            if job["state"] in ("queued", "running", "failed"):
                known.add(job["run"])
                state = f"failed: {job['said']}" if job["state"] == "failed" else job["state"]
                cards.insert(0, {"name": job["run"], "state": state, "job": job["id"], "new": True})
    return cards


def _card(studio: Studio, jobs: Jobs, found: runs.RunSummary) -> dict[str, Any]:
    job = jobs.busy(found.name)
    card = {
        "name": found.name,
        "method": found.method,
        "base": found.base,
        "state": found.state,
        "text": found.clip_text,
        "style": found.clip_style,
        "changed": int(found.changed),
        "job": job.id if job else "",
        "failed": jobs.failure(found.name),
        "doing": jobs.log(found.name, 1)[-1:] if job and job.state == RUNNING else [],
        "waits": 0,
        "reference": "",
        "best": [],
    }
    if job and job.state == "queued":
        card["state"] = "queued"
    if found.state.startswith("damaged"):
        return card
    try:
        workdir = studio.run(found.name)
        at = stand(workdir, read_object(workdir / "config.json"))
        if at.waits and not (job and job.state == "queued"):
            card["waits"] = at.waits
            card["state"] = f"waits for your choice in round {at.waits}"
        card["reference"] = _first(references(workdir))
        card["best"] = best(workdir)
    except UserError as error:
        card["state"] = f"damaged: {error}"
    return card


def _first(found: list[dict[str, str]]) -> str:
    return found[0]["file"] if found else ""


def references(workdir: Path) -> list[dict[str, str]]:
    """The user's pictures as the run keeps them, with their words."""
    path = inside(workdir, "manifest.json")
    rows = read_object(path).get("references") if path else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        file = row.get("file") if isinstance(row, dict) else None
        if isinstance(file, str) and is_plain(file) and inside(workdir, file):
            words = {name: str(row.get(name, "")) for name in ("content", "descriptor")}
            found.append({"file": file, **words})
    return found


def best(workdir: Path) -> list[str]:
    """The pictures of the round that is taken which have most style and content, each of another
    prompt.
    """
    number = runs.taken(workdir)
    stage = f"round_{number}" if number else "base"
    path = inside(workdir, stage, "scores.jsonl")
    if path is None:
        return []
    return [f"{stage}/{file}" for file in _best_of(path, path.stat().st_mtime_ns)]


@functools.lru_cache(256)
def _best_of(path: Path, _changed: int) -> list[str]:
    def value(sample: Sample) -> float:
        scores = {"clip_style": 0.0, "clip_content": 0.0, **sample.scores}
        return worth(scores)

    of_prompt: dict[int, Sample] = {}
    for sample in sorted(read_samples(path), key=value, reverse=True):
        of_prompt.setdefault(sample.prompt, sample)
    return [sample.file for sample in list(of_prompt.values())[:_BEST]]


def took(studio: Studio, jobs: Jobs, config: str) -> dict[str, Any] | None:
    """The last finished run that was begun here with the same `--config`, and its seconds without
    the time that a person took; None if there is none.
    """
    every = jobs.all()
    for job in every:
        report = studio.root / job["run"] / "report.html"
        if config in job["words"] and report.exists():
            seconds = 0.0
            for one in every:
                if one["run"] == job["run"] and one["words"][0] == "personalize" and one["began"]:
                    seconds += max(0.0, one["ended"] - one["began"])
            return {"run": job["run"], "seconds": seconds}
    return None


def detail(studio: Studio, jobs: Jobs, name: str) -> dict[str, Any]:
    """One run: what it was told, where it stands, what it came to, what was made with it."""
    workdir = studio.run(name)
    config = studio.config(name)
    at = stand(workdir, config)
    job = jobs.busy(name)
    verdict = inside(workdir, "verdict.json")
    exports = []
    if inside(workdir, "config.json"):
        for path in sorted((workdir / "export").rglob("*")):
            file = path.relative_to(workdir).as_posix()
            if is_plain(file) and inside(workdir, file):
                exports.append({"file": file, "bytes": path.stat().st_size})
    return {
        "name": name,
        "folder": str(workdir),
        "method": config.get("method"),
        "base": config.get("base"),
        "rounds": at.rounds,
        "scored": at.scored,
        "waits": at.waits if not (job and job.state == "queued") else 0,
        "running": runs.is_locked(workdir),
        "finished": inside(workdir, "report.html") is not None,
        "job": job.id if job else "",
        "references": references(workdir),
        "verdict": _verdict(read_json(verdict)) if verdict else None,
        "sampling": _sampling(workdir, config),
        "exports": exports,
    }


def _verdict(content: Any) -> dict[str, Any] | None:
    if not isinstance(content, dict):
        return None
    remarks = content.get("remarks")
    return {
        "round": content.get("round"),
        "learnt": str(content.get("learnt", "")),
        "remarks": [str(remark) for remark in remarks] if isinstance(remarks, list) else [],
    }


def _sampling(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The strengths that the taken round samples with: where the sliders stand first."""
    settings = runs.round_settings(dict(config), max(1, runs.taken(workdir)))
    sample = settings.get("sample") if isinstance(settings, dict) else None
    found = sample if isinstance(sample, dict) else {}
    return {name: found.get(name) for name in ("lambda_a", "lambda_b", "steps")}


def results(studio: Studio, name: str) -> list[dict[str, Any]]:
    """What was made with a run, the newest first, each with the line that makes it again; of
    several that one line makes the newest.
    """
    workdir = studio.run(name)
    found = []
    for folder in _DRAWN:
        path = inside(workdir, folder, "images.jsonl")
        rows = read_jsonl(path) if path else []
        for row in rows[-_MOST_RESULTS:]:
            file = row.get("file") if isinstance(row, dict) else None
            if not isinstance(file, str) or not is_plain(f"{folder}/{file}"):
                continue
            image = inside(workdir, folder, file)
            if image is None:
                continue
            shown = {key: row[key] for key in ("prompt", *_FLAGS) if key in row}
            found.append(
                {
                    "file": f"{folder}/{file}",
                    "made": image.stat().st_mtime,
                    "line": line(workdir, _COMMANDS[folder], row),
                    **shown,
                }
            )
    newest = {row["line"]: row for row in sorted(found, key=lambda row: row["made"])}
    return sorted(newest.values(), key=lambda row: -row["made"])[:_MOST_RESULTS]


def line(workdir: Path, command: str, row: Mapping[str, Any]) -> str:
    """The command that makes an image again, from its record."""
    words = ["styledrop", command, "--style" if command == "mix" else "--run", str(workdir)]
    subject = row.get("subject")
    if isinstance(subject, dict):
        words += ["--subject", str(subject.get("run", ""))]
    for name in ("image", "mask"):
        if isinstance(row.get(name), str):
            words += [f"--{name}", row[name]]
    words += ["--prompt", str(row.get("prompt", "")), "--num", "1"]
    for name in _FLAGS:
        value = row.get(name)
        if type(value) in (int, float):
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("prompt_weights", "long_prompts"):
        if row.get(name) is True:
            words.append(f"--{name.replace('_', '-')}")
    descriptor = _descriptor(workdir, row)
    if descriptor is not None:
        words += ["--descriptor", descriptor]
    return shlex.join(words)


def _descriptor(workdir: Path, row: Mapping[str, Any]) -> str | None:
    """The words of the style, where they are not the run's own: of an image whose text is its
    prompt and more.
    """
    prompt, said = str(row.get("prompt", "")), str(row.get("text", ""))
    own = references(workdir)
    descriptor = own[0]["descriptor"] if own else ""
    if not descriptor or descriptor in said or not said.startswith(prompt):
        return None
    return said.removeprefix(prompt).strip()
