"""Choosing between rounds: the pool of a round, and a person's marks on it.

The marks are the run's own `round_N/feedback/selected.json`, which `select.by human` reads: kept
images by their number on the contact sheet, and beside them, which the run does not read, dropped
ones.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from styledrop_jax.errors import UserError, shown
from styledrop_jax.feedback.select import ANSWER, Candidate, Pool, best_prompts
from styledrop_jax.io.files import read_object, write_json
from styledrop_jax.io.records import inside
from styledrop_jax.stages.samples import Sample, read_chosen, read_samples
from styledrop_jax.studio.folders import Missing, Studio, stand

SUGGESTED = 10
"""StyleDrop's people chose at most ten (2306.00983)."""
_MARKS = ("keep", "drop", "")
_WRITING = threading.Lock()


def pool(workdir: Path, number: int, *, own: bool = False) -> tuple[str, list[Sample]]:
    """The images of a round that a person chooses from, in the order of their numbers, and the
    folder of their files in the run; round 0 is the base model. `own` are those by which the round
    is judged, where others were drawn to be chosen from.

    Raises:
        Missing: there are none yet.
    """
    stage = f"round_{number}" if number else "base"
    for folder in (stage,) if own else (f"{stage}/candidates", stage):
        path = inside(workdir, folder, "scores.jsonl")
        if path is not None:
            return folder, read_samples(path)
    raise Missing(f"round {number}: its samples have no scores yet")


def view(studio: Studio, name: str, number: int, *, own: bool = False) -> dict[str, Any]:
    """A round as the page shows it: its images with their scores and marks."""
    workdir = studio.run(name)
    folder, samples = pool(workdir, number, own=own)
    waits = stand(workdir, studio.config(name)).waits == number and number > 0
    rows = []
    for place, sample in enumerate(samples, 1):
        scores = {key: round(value, 4) for key, value in sample.scores.items() if key != "random"}
        rows.append(
            {
                "number": place,
                "file": f"{folder}/{sample.file}",
                "prompt": sample.content,
                "score": round(sample.score, 4),
                "scores": scores,
            }
        )
    scored = inside(workdir, folder, "scores.jsonl")
    return {
        "run": name,
        "round": number,
        "open": waits,
        "suggested": SUGGESTED,
        "version": scored.stat().st_mtime_ns if scored else 0,
        "images": rows,
        "marks": marks(workdir, number, samples),
    }


def marks(workdir: Path, number: int, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """The numbers that are kept and dropped: of the run's selection once it is made."""
    done = inside(workdir, f"round_{number}", "selected.json")
    if done is not None:
        chosen = {sample.place for sample in read_chosen(done)}
        kept = [i for i, sample in enumerate(samples, 1) if sample.place in chosen]
        return {"kept": kept, "dropped": []}
    return answered(workdir, number, len(samples))


def answered(workdir: Path, number: int, most: int = 10**6) -> dict[str, list[int]]:
    """The same of a round that waits, whose images have numbers to `most`."""
    answer = inside(workdir, f"round_{number}", "feedback", ANSWER)
    content = read_object(answer) if answer else {}
    return {
        "kept": _numbers(content, "selected", most),
        "dropped": _numbers(content, "dropped", most),
    }


def mark(studio: Studio, name: str, number: int, changes: Mapping[str, str]) -> dict[str, Any]:
    """Keeps, drops or frees images, and writes the answer, whole or not at all.

    Marks are merged into those that are there: two pages on one run do not undo each other.

    Args:
        changes: {an image's number: "keep", "drop" or ""}

    Raises:
        UserError: the round does not wait for a person, or has no such image.
    """
    with _WRITING:
        answer, samples = _asked(studio, name, number)
        found = marks(studio.run(name), number, samples)
        kept = set(found["kept"])
        dropped = set(found["dropped"])
        for key, what in changes.items():
            if what not in _MARKS or not key.isdecimal() or not 1 <= int(key) <= len(samples):
                raise UserError(
                    f"mark: found {shown(key)}: {shown(what)}, expected keep, drop or nothing for "
                    f"1 to {len(samples)}"
                )
            kept.discard(int(key))
            dropped.discard(int(key))
            if what:
                (kept if what == "keep" else dropped).add(int(key))
        return _write(answer, kept, dropped)


def start(studio: Studio, name: str, number: int) -> dict[str, Any]:
    """CLIP's choice as a start: the ten best by the run's own scores, each of another prompt, in
    place of what is kept; what is dropped stays so.
    """
    with _WRITING:
        answer, samples = _asked(studio, name, number)
        dropped = set(marks(studio.run(name), number, samples)["dropped"])
        places = []
        candidates = []
        for place, sample in enumerate(samples, 1):
            if place not in dropped:
                places.append(place)
                candidates.append(
                    Candidate(prompt=sample.prompt, image=sample.image, score=sample.score)
                )
        best = best_prompts(Pool(candidates, SUGGESTED)) if candidates else []
        return _write(answer, {places[index] for index in best}, dropped)


def _asked(studio: Studio, name: str, number: int) -> tuple[Path, list[Sample]]:
    workdir = studio.run(name)
    answer = inside(workdir, f"round_{number}", "feedback", ANSWER)
    if answer is None or stand(workdir, studio.config(name)).waits != number:
        raise UserError(f"round {number} does not wait for a choice: the run has gone on")
    return answer, pool(workdir, number)[1]


def _write(answer: Path, kept: set[int], dropped: set[int]) -> dict[str, Any]:
    content = read_object(answer)
    content.update(selected=sorted(kept), dropped=sorted(dropped))
    write_json(answer, content)
    return {"kept": content["selected"], "dropped": content["dropped"]}


def _numbers(content: Mapping[str, Any], name: str, most: int) -> list[int]:
    """Those of a list that are images' numbers: a person may have written into the file."""
    found = content.get(name)
    if not isinstance(found, list):
        return []
    return sorted({value for value in found if type(value) is int and 1 <= value <= most})
