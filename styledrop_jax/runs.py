"""What the run folders of a directory are: which are finished, which go on, what they score."""

import dataclasses
import fcntl
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.records import METRICS, check_own, is_number, read_steps

_LONGEST = 160  # letters of what is said of a damaged run
_WIDEST = 10_000  # letters of a line that no terminal breaks
_HEADINGS = ("run", "method", "base", "state", "text", "style", "size", "last change")
_WRAPPED = ("run", "base", "state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run folder.

    Attributes:
        name: its path below the directory that was listed.
        method, base: as its config names them, the method with what trains if that has another
            name, the base with the LoRAs merged into it; empty if it is damaged.
        state: in words, one line.
        clip_text, clip_style: the mean scores of the round that is taken, or of the last scored
            one before there is a verdict; None if there are none.
        size: of all its files, bytes.
        changed: when the last of them was written, seconds since 1970.
    """

    name: str
    method: str
    base: str
    state: str
    clip_text: float | None
    clip_style: float | None
    size: int
    changed: float


def list_runs(
    folder: Path, summarize: Callable[[Path, Path], RunSummary | None] | None = None
) -> list[RunSummary]:
    """Every run folder in and below `folder`, the one that changed last first.

    Hidden folders, links and what lies inside a run folder are not looked into.

    Args:
        folder: where the runs are.
        summarize: `summary`, or one that remembers what it said.

    Raises:
        UserError: there is no such folder.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with run folders in it")
    found = []
    for path, names, files in os.walk(folder):
        one = (summarize or summary)(Path(path), folder) if "config.json" in files else None
        if one is not None:
            found.append(one)
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda one: (-one.changed, one.name))


def table(summaries: Sequence[RunSummary]) -> str:
    """The runs as a table: as wide as the terminal, or else a line for each, in plain columns."""
    console = rich.console.Console(markup=False, highlight=False)
    box = rich.box.SIMPLE_HEAD
    if not console.is_terminal:
        console.width = _WIDEST
        box = None
    drawn = rich.table.Table(box=box, pad_edge=False)
    for heading in _HEADINGS:
        drawn.add_column(heading, overflow="fold", no_wrap=heading not in _WRAPPED)
    for summary in summaries:
        drawn.add_row(
            _printable(summary.name),
            _printable(summary.method),
            _printable(summary.base),
            _printable(summary.state),
            _score(summary.clip_text),
            _score(summary.clip_style),
            _size(summary.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.changed)),
        )
    with console.capture() as capture:
        console.print(drawn)
    lines = capture.get().strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines)


# -------------------------------------------------------------- one run


def _method(config: Any) -> str:
    """Such as "styledrop", or "styledrop, lora" where the first round trains another kind."""
    method = _field(config, "method", str)
    found = config
    for name in ("round_1", "adapter", "kind"):
        found = found.get(name) if isinstance(found, dict) else None
    return f"{method}, {found}" if isinstance(found, str) and found != method else method


def _base(config: Any) -> str:
    """Such as "emoji128", or "emoji128 with lines.safetensors:0.8"."""
    base = _field(config, "base", str)
    if not config.get("base_loras"):  # runs of older versions have none
        return base
    paths = re.split(r"\s*,\s*", _field(config, "base_loras", str).strip(" ,"))
    return f"{base} with {', '.join(os.path.basename(path) for path in paths)}"


def summary(workdir: Path, folder: Path) -> RunSummary | None:
    """One run folder of `folder`; None if the config is of something else, such as a model."""
    method = ""
    base = ""
    scores: dict[str, float] = {}
    try:
        check_own(workdir)
        config = read_json(workdir / "config.json")
        if isinstance(config, dict) and "method" not in config:
            return None
        method = _method(config)
        base = _base(config)
        scores = _scores(workdir)
        state = _state(workdir, config)
    except (UserError, OSError, RecursionError) as error:
        said = " ".join(str(error).replace(f"{workdir}/", "").split())
        state = f"damaged: {said[:_LONGEST]}"
    size, changed = _extent(workdir)
    return RunSummary(
        name=os.path.relpath(workdir, folder) if workdir != folder else workdir.resolve().name,
        method=method,
        base=base,
        state=state,
        clip_text=scores.get("clip_text"),
        clip_style=scores.get("clip_style"),
        size=size,
        changed=changed,
    )


def _field(tree: Any, name: str, kind: type, file: str = "config.json") -> Any:
    """A dotted field of a file's content; UserError if it is missing or no `kind`."""
    value = tree
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if type(value) is not kind:
        raise UserError(f"{file}: {name} is {shown(value)}, expected {kind.__name__}")
    return value


def _state(workdir: Path, config: dict[str, Any]) -> str:
    running = is_locked(workdir)
    if (workdir / "report.html").exists() and not running:
        return "finished"
    doing = _doing(workdir, config)
    if running:
        return f"running now, {doing}"
    return doing if doing.startswith("waits") else f"stopped, {doing}"


def _doing(workdir: Path, config: dict[str, Any]) -> str:
    """The first stage that is not done: its final file is not there."""
    if not (workdir / "manifest.json").exists():
        return "before the first stage"
    if not (workdir / "base" / "scores.jsonl").exists():
        return "base model: sampling"
    for number in range(1, _field(config, "rounds", int) + 1):
        stage = workdir / f"round_{number}"
        if not (stage / "adapter.safetensors").exists():
            steps = _field(round_settings(config, number), "train.steps", int)
            step = last_step(stage)
            if step == steps and (stage / "steps").is_dir():
                return f"round {number}: comparing the states that it kept"
            return f"round {number}: training, step {step} of {steps}"
        if not (stage / "scores.jsonl").exists():
            return f"round {number}: sampling"
        if not (stage / "selected.json").exists():
            if _is_open(stage / "feedback" / "selected.json"):
                return f"waits for your choice in round {number}"
            return f"round {number}: selecting"
    return "writing the report"


def round_settings(config: dict[str, Any], number: int) -> Any:
    """Those of a round: its own, or of the last round before it that has any."""
    while number > 1 and f"round_{number}" not in config:
        number -= 1
    return config.get(f"round_{number}")


def last_step(stage: Path) -> int:
    """The last training step that `metrics.jsonl` records of a stage; 0 if there is none."""
    step = 0
    for record in read_steps(stage.parent / METRICS):
        if record["stage"] == stage.name:
            step = record["step"]
    return step


def _is_open(answer: Path) -> bool:
    """Whether a person is asked to choose, and has not answered."""
    content = read_json(answer) if answer.exists() else None
    return isinstance(content, dict) and content.get("selected") == []


def is_locked(workdir: Path) -> bool:
    """Whether a process works in the folder: it holds the lock, which its death gives back."""
    path = workdir / ".lock"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass  # some network file systems have no locks
    return False


def _scores(workdir: Path) -> dict[str, float]:
    """The mean of each of CLIP's scores over the samples of a round: see `RunSummary`."""
    number = taken(workdir)
    path = workdir / f"round_{number}" / "scores.jsonl"
    values: dict[str, list[float]] = {}
    for row in read_jsonl(path):
        scores = row.get("scores") if isinstance(row, dict) else None
        if not isinstance(scores, dict):
            raise UserError(f"{path}: expected a sample with its scores, found {shown(row)}")
        for name in ("clip_text", "clip_style"):
            if is_number(scores.get(name)):
                values.setdefault(name, []).append(scores[name])
    return {name: statistics.fmean(found) for name, found in values.items()}


def taken(workdir: Path) -> int:
    """The round that the verdict names, or the last one that has scores; 0 if none has."""
    verdict = workdir / "verdict.json"
    if verdict.exists():
        return _field(read_json(verdict), "round", int, verdict.name)
    last = 0
    while (workdir / f"round_{last + 1}" / "scores.jsonl").exists():
        last += 1
    return last


def _extent(workdir: Path) -> tuple[int, float]:
    """The bytes of all files, and when the last one was written."""
    size = 0
    changed = workdir.stat().st_mtime
    for path, _, names in os.walk(workdir):
        for name in names:
            try:
                found = os.lstat(os.path.join(path, name))
            except OSError:
                continue  # a process that runs has taken it away
            size += found.st_size
            changed = max(changed, found.st_mtime)
    return size, changed


# -------------------------------------------------------------- as text


def _printable(text: str) -> str:
    """A folder's name may hold line ends and commands for the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
