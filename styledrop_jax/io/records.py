"""What a run left on disk, read as if someone else had left it: nothing outside its folder, and
nothing that is not as a run leaves it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import read_jsonl
from styledrop_jax.io.paths import shown_path

METRICS = "metrics.jsonl"
_LARGEST = 1e30  # of numbers: beyond that, sums and axes overflow


def check_own(workdir: Path) -> None:
    """Does nothing if all that a run folder holds is in it.

    Raises:
        UserError: a link in it leads elsewhere: a file outside would be read or overwritten.
    """
    for folder, folders, files in os.walk(workdir):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not _is_in(path, workdir):
                raise UserError(
                    f"{shown_path(path)}: a link out of the run folder; expected the run's own "
                    "files: put a copy in its place"
                )


def inside(workdir: Path, *parts: str) -> Path | None:
    """A file of a run folder; None if there is none, or if it is a link out of the folder."""
    try:
        path = Path(os.path.realpath(workdir.joinpath(*parts)))
    except ValueError:  # no name that a file could have
        return None
    return path if _is_in(path, workdir) and os.path.isfile(path) else None


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, each of the stage and the step that it names; none if there
    is no such file.

    Raises:
        UserError: a line is not as a run leaves it.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        known = isinstance(row, dict) and isinstance(row.get("stage"), str)
        if not (known and type(row.get("step")) is int and 0 <= row["step"] <= _LARGEST):
            raise UserError(
                f"{shown_path(path)}: line {number} is {shown(row)}, expected the record of a step"
            )
    return rows


def is_number(value: Any) -> bool:
    """Whether it is one that can be counted with: NaN, true and 10^400 are none."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether each of them is."""
    return all(map(is_number, values))


def _is_in(path: Path, workdir: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(workdir))
