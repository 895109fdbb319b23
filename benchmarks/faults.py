"""Makes the disk fail under every command that writes, and compares what is left once it goes on.

    python benchmarks/faults.py [--count 300] [--only sample,export] [--seed 0] [--out faults.jsonl]

At a random one of its calls that change a file below its folder, of Python's and of the libraries',
a command is told that the disk is full, has no inodes left, is read-only, that the quota is used
up, or that a single call failed (EIO). Then it is typed again on a disk that works, and every byte
of what it leaves is compared with what an unbroken run leaves, as in kills.py. Needs Linux and a C
compiler (cc): faults.c is preloaded, and no rights are needed.

Columns: `answered` with one line of fewer than 300 letters that names a file of the folder and no
other word; `unharmed`: went on to the end; failures are the columns after it.
"""

import argparse
import ctypes
import dataclasses
import errno
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import compared
import small_runs

_SOURCE = Path(__file__).with_name("faults.c")
_CREATE, _WRITE, _RENAME, _REMOVE = 1, 2, 4, 8  # as in faults.c
_ANY = _CREATE | _WRITE | _RENAME | _REMOVE
_OUTCOMES = ("answered", "unharmed", "traceback", "nameless", "more lines", "hang", "died")


class Fault(NamedTuple):
    """What fails: calls of these kinds, with this number of an error, once or from then on."""

    kinds: int
    error: int
    stays: bool


FAULTS = {
    "disk full": Fault(_CREATE | _WRITE, errno.ENOSPC, True),
    "no inodes left": Fault(_CREATE, errno.ENOSPC, True),
    "quota used up": Fault(_CREATE | _WRITE, errno.EDQUOT, True),
    "read-only": Fault(_ANY, errno.EROFS, True),
    "a call fails": Fault(_ANY, errno.EIO, False),
}


@dataclasses.dataclass
class Trial:
    """A command on a disk that failed, and on one that works again."""

    command: str
    fault: str
    outcome: str
    said: str
    found: dict[str, list[str]]
    broken: str


def _arm(out: Path, fault: Fault, at: int, calls: Any) -> None:
    """Lets the `at`-th call of this process fail that the fault is of; counts them in `calls`."""
    arm = ctypes.CDLL(None).faults_arm
    integer, address = ctypes.c_int, ctypes.c_void_p
    arm.argtypes = (ctypes.c_char_p, integer, integer, ctypes.c_long, integer, address)
    arm(os.fsencode(out), fault.kinds, fault.error, at, fault.stays, ctypes.addressof(calls))


def _run(
    words: list[str], place: Path, fault: Fault, at: int
) -> tuple[small_runs.Ended, dict[int, int]]:
    """How a command ended, and how many calls of each kind that the fault is of it made."""
    calls = multiprocessing.RawArray(ctypes.c_long, _ANY + 1)
    ended = small_runs.run_forked(words, place, first=lambda: _arm(place / "out", fault, at, calls))
    return ended, {kind: calls[kind] for kind in (_CREATE, _WRITE, _RENAME, _REMOVE)}


def _outcome(ended: small_runs.Ended, place: Path) -> str:
    lines = []
    for line in ended.said.splitlines():
        if not line.startswith("warning: "):
            lines.append(line)
    if ended.code is None:
        return "hang"
    if "Traceback" in ended.said or "Exception ignored" in ended.said:
        return "traceback"
    if ended.code not in (0, 2):
        return "died"
    if len(lines) > (ended.code == 2):
        return "more lines"
    if ended.code == 0:
        return "unharmed"
    good = lines and lines[0].startswith("error: ") and len(lines[0]) < 307
    return "answered" if good and str(place / "out") in lines[0] else "nameless"


def trial(
    name: str, kind: str, seed: str, calls: int, expected: dict[str, bytes], world: Any, place: Path
) -> Trial:
    """One fault in a command, and the command again."""
    command = small_runs.COMMANDS[name]
    words = small_runs.begin(command, world, place)
    at = random.Random(seed).randint(1, calls)
    ended, _ = _run(words, place, FAULTS[kind], at)
    # One that went on to its end is not typed again: `extend` would go on once more.
    again = small_runs.run_forked(words, place) if ended.code != 0 else ended
    broken = "" if again.code == 0 and "Traceback" not in again.said else again.said[-1500:]
    found = compared.differences(expected, compared.content(place))
    return Trial(name, kind, _outcome(ended, place), ended.said[-4000:], found, broken)


def _table(trials: list[Trial]) -> str:
    columns = (*_OUTCOMES, *compared.FOUND, "broken")
    rows = []
    for one in trials:
        counts = {name: len(files) for name, files in one.found.items()}
        counts |= {one.outcome: 1, "broken": bool(one.broken)}
        rows.append(((one.fault,), counts))
    return compared.table(("fault",), columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="faults (default 300)")
    parser.add_argument("--only", default="", help="first words of commands, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="a JSON line for each fault")
    flags = parser.parse_args()
    _preload()
    only = tuple(flags.only.split(","))
    names = [name for name in small_runs.COMMANDS if name.startswith(only)]
    with tempfile.TemporaryDirectory(prefix="styledrop-faults-") as folder:
        small_runs.load_libraries(Path(folder))
        place = Path(folder) / "place"
        parts = {small_runs.COMMANDS[name].needs for name in names}
        world = small_runs.built(Path(folder) / "world", parts)
        trials: list[Trial] = []
        whole = {}
        for name in names:
            words = small_runs.begin(small_runs.COMMANDS[name], world, place)
            _, calls = _run(words, place, Fault(_ANY, 0, False), 0)
            whole[name] = (compared.content(place), calls)
        cells = itertools.cycle(itertools.product(FAULTS, names))
        for number, (kind, name) in zip(range(flags.count), cells, strict=False):
            files, calls = whole[name]
            count = sum(calls[bit] for bit in calls if bit & FAULTS[kind].kinds)
            one = trial(name, kind, f"{flags.seed} {number}", count, files, world, place)
            trials.append(one)
            compared.record(one, flags.out)
            bad = one.outcome not in ("answered", "unharmed")
            for problem in (*[one.said] * bad, *filter(None, (one.broken, *one.found.values()))):
                print(f"{number} {name}, {kind}: {one.outcome}: {problem}", file=sys.stderr)
    print(_table(trials))


def _preload() -> None:
    """Starts this program anew with faults.c loaded before all libraries, if it is not."""
    if hasattr(ctypes.CDLL(None), "faults_arm"):
        return
    library = Path(tempfile.mkdtemp(prefix="styledrop-faults-")) / "faults.so"
    compiled = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
    try:
        subprocess.run(compiled, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"faults.c: cannot be compiled ({error}); expected Linux and cc") from None
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
