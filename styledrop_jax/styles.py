"""Many styles by one command: a list of images, a run folder each, on one loaded base model.

Each run is what the same settings would make of it alone, and alone it can be gone on with.
"""

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from styledrop_jax import hosts, log, spec
from styledrop_jax.errors import UserError, did_you_mean, few, shown
from styledrop_jax.feedback.select import Paused
from styledrop_jax.io.captions import json_rows
from styledrop_jax.io.paths import expanded, shown_path
from styledrop_jax.methods.base import Stream
from styledrop_jax.rounds import opened, told, trainings
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.read import read
from styledrop_jax.stages.train import train_together

_AT_ONCE = 8  # on each accelerator; a CPU's core is as busy with one
_FIELDS = ("name", "image", "content", "descriptor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """One line of the list: the name of its run folder, and what that run is told."""

    name: str
    spec: spec.RunSpec


def read_styles(path: Path, config: Mapping[str, Any]) -> list[Style]:
    """The styles of a JSON-lines file of {"name", "image", "content", "descriptor"}.

    Args:
        path: the file; images are found from its folder.
        config: complete, what is told to all runs; "content" and "descriptor" may be left to it.

    Raises:
        UserError: the file cannot be read, or a line of it or an image is not right.
    """
    if "image" not in config.get("reference", {}):
        raise UserError(
            f"--styles: config.method {config['method']} has no reference; expected a method that "
            "learns from one section of images, such as styledrop or lora"
        )
    found: dict[str, Style] = {}
    for where, row in json_rows(path):
        name = _checked(where, row)
        if name in found:
            raise UserError(f"{where}: name: found {shown(name)} twice, expected another")
        own = {**config["reference"], **{key: row[key] for key in _FIELDS[1:] if key in row}}
        image = path.parent / expanded(own["image"])
        if image.exists():
            own["image"] = str(image)
        data = spec.absolute({**config, "reference": own})
        found[name] = Style(name=name, spec=spec.from_config(data))
    if not found:
        raise UserError(f"{shown_path(path)}: holds no style; expected a line of JSON each")
    for style in found.values():  # a mistake in the last one is found before hours of the others
        try:
            read(style.spec)
        except UserError as error:
            raise UserError(f"{shown_path(path)}: {style.name}: {error}") from None
    return list(found.values())


def _checked(where: str, row: Mapping[str, Any]) -> str:
    """The name of a line whose values are of the right kind."""
    for key in row:
        if key not in _FIELDS:
            hint = did_you_mean(key, _FIELDS)
            raise UserError(f"{where}: unknown {shown(key)}{hint}; expected {', '.join(_FIELDS)}")
    for key in _FIELDS:
        value = row.get(key, "" if key in _FIELDS[2:] else None)
        if not isinstance(value, str):
            raise UserError(f"{where}: {key} is {shown(value)}, expected a text")
    if not re.fullmatch(r"\w[\w.-]{0,99}", row["name"]):
        raise UserError(
            f"{where}: name: found {shown(row['name'])}, expected the name of a folder: letters, "
            "digits, _, - and ."
        )
    return row["name"]


def personalize(styles: Sequence[Style], workdir: Path, *, at_once: int = 0) -> list[Path]:
    """Runs or continues the runs of all styles, and returns the paths of their reports.

    What goes wrong in one, or waits for a person, is said, and the others go on.

    Args:
        styles: all on one base model.
        workdir: has a folder of each.
        at_once: how many train at a time; 0 is a number that suits the device.

    Raises:
        UserError: some went wrong: which, when the others are done.
    """
    hosts.join()
    at_once = at_once or _suited()
    reports: list[Path] = []
    failed: list[str] = []
    first: Job | None = None
    for start in range(0, len(styles), at_once):
        with contextlib.ExitStack() as stack:
            going = []
            for style in styles[start : start + at_once]:
                log.say(f"-- {style.name}: opening it")
                folder = workdir / style.name
                with _others_go_on(style.name, failed):
                    job = stack.enter_context(opened(style.spec, folder, beside=first))
                    if job is None:
                        reports.append(expanded(folder) / "report.html")
                        continue
                    first = first or job
                    going.append(_Going(style.name, job, trainings(job), "the base model"))
            while going:
                going = _one_round(going, reports, failed)
    if failed:
        raise UserError(f"{len(failed)} of {len(styles)} styles are not done: {few(failed)}")
    return reports


class _Going(NamedTuple):
    """A run in progress, its stages beside training, and whose samples come next."""

    name: str
    job: Job
    stages: Iterator[tuple[int, Sequence[Stream]]]
    sampler: str


def _one_round(going: list[_Going], reports: list[Path], failed: list[str]) -> list[_Going]:
    """Carries the runs on, one after the other, to their next training, and that out together;
    returns those that go on.
    """
    due = []
    work = []
    number = 0
    for run in going:
        log.say(f"-- {run.name}: samples of {run.sampler}")
        with _others_go_on(run.name, failed):
            following = next(run.stages, None)
            if following is None:
                reports.append(told(run.job, _command(run.job)))
                continue
            number, streams = following
            due.append(run)
            work.append((run.job, streams))
    trained = []
    if work:
        log.say(f"-- {', '.join(run.name for run in due)}: training round {number}")
        for run, error in zip(due, train_together(work, number), strict=True):
            with _others_go_on(run.name, failed):
                if error is not None:
                    raise error
                trained.append(run._replace(sampler=f"round {number}"))
    return trained


@contextlib.contextmanager
def _others_go_on(name: str, failed: list[str]) -> Iterator[None]:
    """Says what went wrong in one run, or what it waits for."""
    try:
        yield
    except UserError as error:
        log.say(f"{name}: error: {error}")
        failed.append(name)
    except Paused as waiting:
        log.say(f"{name}: {waiting}")


def _command(job: Job) -> str:
    """What goes on with a run alone."""
    folder = str(job.run.workdir)
    return shlex.join(["styledrop", "personalize", "--config", folder, "--workdir", folder])


def _suited() -> int:
    found = jax.local_device_count() * (1 if jax.default_backend() == "cpu" else _AT_ONCE)
    log.say(f"styles that train at a time: {found}; --at-once says another number")
    if found == 1 and (os.cpu_count() or 1) > 1:
        log.say("JAX_NUM_CPU_DEVICES=2 before the command would train one on each of two cores")
    return found
