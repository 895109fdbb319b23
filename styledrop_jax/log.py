"""What a run says: `metrics.jsonl` (the truth), TensorBoard, and lines and bars on the console."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rich.console
import rich.progress

from styledrop_jax.io.files import JsonLines, guard, read_jsonl, write_bytes

if TYPE_CHECKING:
    import tensorboardX

_CONSOLE = rich.console.Console(highlight=False, markup=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints one line, above the bar if there is one."""
    _CONSOLE.print(text)


@contextlib.contextmanager
def progress(description: str, total: int, *, start: int = 0) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere one line when the stage ends well.

    Args:
        description: what is done, "round 1: training".
        total: units of work in the whole stage.
        start: units that an earlier process did.

    Yields:
        `advance(n=1, note="")`: n more units are done; `note` is shown beside the bar ("loss 4.21").
    """
    began, last_note = time.monotonic(), ""
    columns = [
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    ]
    with rich.progress.Progress(
        *columns, console=_CONSOLE, disable=not _CONSOLE.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total, completed=start, note="")

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal last_note
            last_note = note or last_note
            bar.update(task, advance=n, note=last_note)

        yield advance
    if not _CONSOLE.is_terminal:
        note = f", {last_note}" if last_note else ""
        say(f"{description}: {total - start} of {total} in {time.monotonic() - began:.1f} s{note}")


class Logger:
    """Scalars and images of a run, stage by stage ("round_1", "round_2", "train").

    `metrics.jsonl` holds one record per call of `scalars`, `{"stage", "step", name: value, …}`, and nothing that
    depends on the clock, so an unbroken run and a resumed one leave the same bytes. TensorBoard gets one run per stage.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = Path(workdir)
        self._stage = ""
        self._metrics: JsonLines | None = None
        self._board: tensorboardX.SummaryWriter | None = None

    def start(self, stage: str, *, step: int = 0) -> None:
        """Begins `stage`, or resumes it after its step `step`: what was recorded later than that is dropped.

        Records come in the order of the work, so the first one of this stage beyond `step` and all after it go.
        """
        self.close()
        path = self._workdir / "metrics.jsonl"
        with JsonLines(path) as metrics:
            rows = metrics.rows
        beyond = (i for i, row in enumerate(rows) if row["stage"] == stage and row["step"] > step)
        keep = next(beyond, len(rows))
        if keep < len(rows):
            lines = path.read_bytes().splitlines(keepends=True)
            write_bytes(path, b"".join(lines[:keep]))
        self._stage, self._metrics = stage, JsonLines(path)
        self._board = _open_board(self._workdir / "tensorboard" / stage, step)

    def scalars(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Records the `values` of one step.

        Args:
            step: counts from 1 within the stage.
            values: name → number; a value that is not finite becomes null in `metrics.jsonl`.
            timing: numbers that depend on the clock (steps per second): for TensorBoard only.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append({"stage": self._stage, "step": int(step), **numbers})
        for name, value in {**numbers, **(timing or {})}.items():
            self._board.add_scalar(name, float(value), int(step))

    def image(self, tag: str, step: int, array: np.ndarray) -> None:
        """Shows one image, float in [0, 1] or uint8, [h, w, 3], in TensorBoard."""
        self._board.add_image(tag, np.asarray(array), int(step), dataformats="HWC")

    def close(self) -> None:
        """Writes out what is pending; `start` opens again."""
        board, metrics = self._board, self._metrics
        self._board = self._metrics = None
        if metrics is not None:
            metrics.close()
        if board is not None:
            with guard(self._workdir / "tensorboard"):
                board.close()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_board(folder: Path, step: int) -> "tensorboardX.SummaryWriter":
    # Imported here because, where torch is installed too, it imports that: seconds which most commands need not wait.
    import tensorboardX

    # The file's name holds the second, and a resume within it would overwrite; the step tells them apart.
    with guard(folder):
        return tensorboardX.SummaryWriter(
            str(folder), purge_step=step + 1 if step else None, filename_suffix=f".{step}"
        )


def read_metrics(workdir: str | os.PathLike, stage: str) -> list[dict[str, float]]:
    """The records of one stage, in the order of their steps: for the report's curves."""
    return [row for row in read_jsonl(Path(workdir) / "metrics.jsonl") if row["stage"] == stage]
