"""What broken commands left, compared with what unbroken ones leave, and sums of it."""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMES = ("tensorboard", ".lock")
"""Not compared: event files, which are named by the second, and the number of a process."""

_SECONDS = re.compile(rb"training_seconds\W+[0-9.]+|<td>[0-9]+\.[0-9]</td></tr>")


def content(place: Path) -> dict[str, bytes]:
    """What a command left: path → bytes, without what states times.

    Of a checkpoint, whose files Orbax names at random, it is the name of its folder alone.
    """
    files = {}
    for path in sorted((place / "out").rglob("*")):
        name = path.relative_to(place / "out")
        if set(name.parts) & set(TIMES):
            continue
        if path.parent.name == "checkpoints":
            files[str(name)] = b""
        elif path.is_file() and "checkpoints" not in name.parts:
            data = path.read_bytes().replace(os.fsencode(place), b"PLACE")
            if name.name == "identity.json":  # a cache, whose order is that of its use
                data = json.dumps(json.loads(data), sort_keys=True).encode()
            files[str(name)] = _SECONDS.sub(b"", data)
    return files


FOUND = ("lost", "different", "left behind")


def differences(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> dict[str, list[str]]:
    """The files that are lost, differ and are left behind."""
    lost = [name for name in expected if name not in found]
    kept = [name for name in expected if name in found]
    different = [name for name in kept if found[name] != expected[name]]
    left = [name for name in found if name not in expected]
    return dict(zip(FOUND, (lost, different, left), strict=True))


def record(trial: Any, out: Path | None) -> None:
    """Appends a trial, a dataclass, to a file of JSON lines, if there is one."""
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(trial)) + "\n")


def table(
    heads: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Mapping[str, int]]],
) -> str:
    """Sums as Markdown: a row for each of what `rows` are named, with how many there are of it."""
    sums: dict[Sequence[str], collections.Counter] = {}
    whole = ("**all**", *[""] * (len(heads) - 1))
    for name, counts in sorted(rows, key=lambda row: row[0]):
        for place in (tuple(name), whole):
            sums.setdefault(place, collections.Counter()).update({**counts, "runs": 1})
    sums[whole] = sums.pop(whole)
    lines = [f"| {' | '.join((*heads, 'runs', *columns))} |"]
    lines.append("| --- " * (len(heads) + 1 + len(columns)) + "|")
    for name, count in sums.items():
        numbers = [str(count[column]) for column in ("runs", *columns)]
        lines.append(f"| {' | '.join((*name, *numbers))} |")
    return "\n".join(lines)
