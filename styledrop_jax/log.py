"""What a run says: `metrics.jsonl` (the truth), TensorBoard, and lines and bars on the console."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import rich.console
import rich.progress

from styledrop_jax import hosts
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import JsonLines, guard, write_bytes
from styledrop_jax.io.records import METRICS, read_steps

_CONSOLE = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
_SILENCE = 30.0  # seconds after which a stage says how far it is, where there is no bar


class Advance(Protocol):
    """Tells that `n` more units are done; `note` ("loss 4.21") is shown until the next one."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


def say(text: str) -> None:
    """Prints one line, above the bar if there is one; of several processes the first does."""
    if hosts.first():
        _CONSOLE.print(text)


@contextlib.contextmanager
def progress(description: str, total: int, *, start: int = 0) -> Iterator[Advance]:
    """Shows how far a stage is.

    On a terminal this is a bar. Elsewhere it is a line every 30 seconds, and one when the stage
    ends well.

    Args:
        description: what is done, "round 1: training".
        total: units of work in the whole stage.
        start: units that an earlier process did.

    Yields:
        the function to call after each piece of work; see `Advance`.
    """
    show = _bar if _CONSOLE.is_terminal and hosts.first() else _lines
    with show(description, total, start) as advance:
        yield advance


@contextlib.contextmanager
def _bar(description: str, total: int, start: int) -> Iterator[Advance]:
    columns = [
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    ]
    with rich.progress.Progress(*columns, console=_CONSOLE) as bar:
        task = bar.add_task(description, total=total, completed=start, note="")

        def advance(n: int = 1, note: str = "") -> None:
            if note:
                bar.update(task, note=note)
            bar.advance(task, n)

        yield advance


@contextlib.contextmanager
def _lines(description: str, total: int, start: int) -> Iterator[Advance]:
    lines = Lines(description, total, start)
    over = threading.Event()
    # A thread of its own, because one piece of work, or its compilation, may take minutes.
    speaker = threading.Thread(target=lines.speak, args=(over.wait,), daemon=True)
    speaker.start()
    try:
        yield lines.advance
    finally:
        over.set()
        speaker.join()
    say(lines.last())


class Lines:
    """The lines that tell how far a stage is; the arguments are those of `progress`."""

    def __init__(
        self,
        description: str,
        total: int,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._description = description
        self._total = total
        self._start = start
        self._clock = clock
        self._began = clock()
        self._done = start
        self._note = ""

    def advance(self, n: int = 1, note: str = "") -> None:
        """See `Advance`."""
        self._done += n
        self._note = note or self._note

    def speak(self, wait: Callable[[float], bool]) -> None:
        """Says `now` every 30 seconds until `wait`, which waits so long, returns true."""
        while not wait(_SILENCE):
            say(self.now())

    def now(self) -> str:
        """As "round_1: 120 of 250, 31 s, about 34 s left, loss 0.123"."""
        passed = self._clock() - self._began
        parts = [f"{self._description}: {self._done} of {self._total}", duration(passed)]
        finished = self._done - self._start
        if finished:
            left = passed * (self._total - self._done) / finished
            parts.append(f"about {duration(left)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)

    def last(self) -> str:
        """As "round_1: 250 of 250 in 65.2 s, loss 0.101"; the units are those of this process."""
        passed = self._clock() - self._began
        note = f", {self._note}" if self._note else ""
        count = f"{self._total - self._start} of {self._total}"
        return f"{self._description}: {count} in {passed:.1f} s{note}"


def duration(seconds: float) -> str:
    """As "31 s", "34 min" or "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Stage(NamedTuple):
    name: str
    metrics: JsonLines
    board: "_Board"


class Logger:
    """Scalars and images of a run, stage by stage ("round_1", "round_2", "train").

    `metrics.jsonl` holds one record for each call of `scalars`, `{"stage", "step", name: value,
    …}`, and nothing that depends on the clock, so an unbroken run and a resumed one leave the same
    bytes. TensorBoard gets one run for each stage. Of several processes the first alone records.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = Path(workdir)
        self._open: _Stage | None = None

    def start(self, stage: str, *, step: int = 0) -> None:
        """Begins `stage`, or resumes it after its step `step`.

        Records come in the order of the work. So of those there are, the first of this stage beyond
        `step` and all that follow it are dropped.
        """
        if not hosts.first():
            return
        self.close()
        path = self._workdir / METRICS
        JsonLines(path).close()  # drops a torn last line
        rows = read_steps(path)
        for index, row in enumerate(rows):
            if row["stage"] == stage and row["step"] > step:
                kept = path.read_bytes().splitlines(keepends=True)[:index]
                write_bytes(path, b"".join(kept))
                break
        board = _Board(self._workdir / "tensorboard" / stage, step)
        self._open = _Stage(stage, JsonLines(path), board)

    def scalars(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Records the `values` of one step.

        Args:
            step: counts from 1 within the stage.
            values: name → number; what is not finite becomes null in `metrics.jsonl`.
            timing: numbers that depend on the clock (steps per second): for TensorBoard only.
        """
        if not hosts.first():
            return
        stage = self._started()
        numbers = {name: float(value) for name, value in values.items()}
        stage.metrics.append({"stage": stage.name, "step": int(step), **numbers})
        for name, value in {**numbers, **(timing or {})}.items():
            stage.board.scalar(name, float(value), int(step))

    def image(self, tag: str, step: int, array: np.ndarray) -> None:
        """Shows one image, float in [0, 1] or uint8, [h, w, 3], in TensorBoard."""
        if hosts.first():
            self._started().board.image(tag, np.asarray(array), int(step))

    def close(self) -> None:
        """Writes out what is pending; `start` opens again."""
        stage = self._open
        self._open = None
        if stage is not None:
            stage.metrics.close()
            stage.board.close()

    def _started(self) -> _Stage:
        if self._open is None:
            raise ValueError("nothing can be recorded before a stage is started")
        return self._open

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.close()
        except UserError:
            if exception[0] is None:  # else what failed first is told
                raise


class _Board:
    """Events for TensorBoard, in a new file. They are written at once and not by a thread, as
    `SummaryWriter` does it, which prints a traceback of its own when the disk is full.
    """

    def __init__(self, folder: Path, step: int):
        # Imported here because it imports torch if that is installed: seconds that most commands
        # save.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder = folder
        self._messages: Any = event_pb2
        with guard(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The file's name holds the second. Its suffix keeps a resume within that second from
            # overwriting it.
            self._file = EventsWriter(str(folder / "events"), f".{step}")
        self._flushed = time.monotonic()
        if step:  # hides what an earlier process wrote of later steps
            start = self._messages.SessionLog.START
            self._write(step + 1, session_log=self._messages.SessionLog(status=start))

    def scalar(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step, summary=scalar(name, value))

    def image(self, name: str, array: np.ndarray, step: int) -> None:
        """An image float in [0, 1] or uint8, [h, w, 3]."""
        from tensorboardX.summary import image

        self._write(step, summary=image(name, array, dataformats="HWC"))

    def _write(self, step: int, **what: Any) -> None:
        event = self._messages.Event(wall_time=time.time(), step=step, **what)
        with guard(self._folder):
            self._file.write_event(event)
            if time.monotonic() - self._flushed > _SILENCE:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with guard(self._folder):
            self._file.close()


def read_metrics(workdir: str | os.PathLike, stage: str) -> list[dict[str, float]]:
    """The records of one stage, in the order of their steps: for the report's curves."""
    return [row for row in read_steps(Path(workdir) / METRICS) if row["stage"] == stage]
