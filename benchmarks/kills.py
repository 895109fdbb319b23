"""Kills every command that writes at random moments, continues it, and compares what is left.

    python benchmarks/kills.py [--count 1000] [--only sample,export] [--seed 0] [--out kills.jsonl]

Each command runs on the smallest models, is killed (KILL, TERM, INT), typed again until it ends,
and every byte of what it leaves is compared with what an unbroken run leaves. Half of the kills
come at a random time, half right after a random one of the calls that open a file to write, rename
or delete. Not compared are event files of TensorBoard, `.lock`, and `training_seconds` in
`manifest.json`, with the line of it in `report.html`: they state times.

Columns: `lost`, `different` and `left behind` are files; `broken` are commands that did not go on
or hung, or whose last words were a traceback.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compared
import small_runs

SIGNALS = ("KILL", "TERM", "INT")
_WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
_MOST_LIVES = 100  # more are a failure


@dataclasses.dataclass(frozen=True)
class Unbroken:
    """What a command leaves that nobody kills, how long it takes and how often it writes."""

    files: dict[str, bytes]
    seconds: float
    writes: int


@dataclasses.dataclass
class Trial:
    """One command that is killed until it ends."""

    command: str
    signal: str
    kills: int = 0
    found: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    broken: list[str] = dataclasses.field(default_factory=list)


def _watch(out: Path, counter: Any, moment: int, act: Any) -> None:
    """Counts the calls of this process that change files below `out`, and acts at one of them."""

    def hook(event: str, args: tuple) -> None:
        opens = event == "open" and isinstance(args[2], int) and args[2] & (os.O_RDWR | os.O_WRONLY)
        if (opens or event in _WRITES) and str(args[0]).startswith(str(out)):
            counter.value += 1
            if counter.value == moment:
                act()

    sys.addaudithook(hook)


def unbroken(name: str, world: small_runs.World, place: Path) -> Unbroken:
    """Runs a command that nobody kills."""
    counter = multiprocessing.Value("l", 0)
    words = small_runs.begin(small_runs.COMMANDS[name], world, place)
    ended = small_runs.run_forked(
        words, place, first=lambda: _watch(place / "out", counter, 0, None)
    )
    if ended.code != 0:
        raise SystemExit(f"{name}: does not run: {ended.said}")
    return Unbroken(compared.content(place), ended.seconds, counter.value)


def trial(
    name: str, sent: str, seed: str, whole: Unbroken, world: small_runs.World, place: Path
) -> Trial:
    """Kills a command again and again until it ends by itself."""
    chance = random.Random(seed)
    result = Trial(name, sent)
    number = getattr(signal, f"SIG{sent}")
    words = small_runs.begin(small_runs.COMMANDS[name], world, place)
    for _ in range(_MOST_LIVES):
        kill = _killer(number, whole, chance, place / "out")
        ended = small_runs.run_forked(words, place, first=kill)
        if "Traceback" in ended.said:
            result.broken.append(ended.said[-1500:])
        if ended.code not in (-number, small_runs.STOPPED):
            break
        result.kills += 1
    if ended.code != 0:
        result.broken.append(f"exit {ended.code}: {ended.said[-1500:]}")
    result.found = compared.differences(whole.files, compared.content(place))
    return result


def _killer(number: int, whole: Unbroken, chance: random.Random, out: Path) -> Callable[[], None]:
    """Lets a process send itself a signal at a random time, or soon after a random write."""
    after = chance.uniform(0, 0.02)
    moment = chance.randint(1, whole.writes // 2)
    time_of_it = chance.uniform(0, whole.seconds)
    by_write = chance.random() < 0.5

    def later(seconds: float) -> None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    def kill() -> None:
        if by_write:
            _watch(out, multiprocessing.Value("l", 0), moment, lambda: later(after))
        else:
            later(time_of_it)

    return kill


def _table(trials: list[Trial]) -> str:
    rows = []
    for one in trials:
        counts = {name: len(files) for name, files in one.found.items()}
        counts |= {"kills": one.kills, "broken": len(one.broken)}
        rows.append(((one.command, one.signal), counts))
    columns = ("kills", *compared.FOUND, "broken")
    return compared.table(("command", "signal"), columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="kills (default 1000)")
    parser.add_argument("--only", default="", help="first words of commands, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once")
    parser.add_argument("--out", type=Path, help="a JSON line for each run")
    flags = parser.parse_args()
    only = tuple(flags.only.split(","))
    names = [name for name in small_runs.COMMANDS if name.startswith(only)]
    with tempfile.TemporaryDirectory(prefix="styledrop-kills-") as folder:
        small_runs.load_libraries(Path(folder))
        parts = {small_runs.COMMANDS[name].needs for name in names}
        world = small_runs.built(Path(folder) / "world", parts)
        wholes = {name: unbroken(name, world, Path(folder) / "place") for name in names}
        trials = _many(flags, world, wholes, Path(folder))
    print(_table(trials))


def _many(
    flags: argparse.Namespace, world: small_runs.World, wholes: dict[str, Unbroken], folder: Path
) -> list[Trial]:
    """Trials of all commands and signals in turn, until there are as many kills as asked for."""
    trials: list[Trial] = []
    kills = 0
    start = time.monotonic()
    started = 0
    cells = itertools.cycle(itertools.product(wholes, SIGNALS))
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(flags.jobs, mp_context=fork) as pool:
        waiting: set[concurrent.futures.Future] = set()
        least = len(wholes) * len(SIGNALS)  # each at least once
        while True:
            while len(waiting) < flags.jobs and (kills < flags.count or started < least):
                name, sent = next(cells)
                number = started
                started += 1
                place = folder / f"{number}"
                seed = f"{flags.seed} {number}"
                waiting.add(pool.submit(trial, name, sent, seed, wholes[name], world, place))
            if not waiting:
                return trials
            done, waiting = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                one = future.result()
                trials.append(one)
                compared.record(one, flags.out)
                kills += one.kills
                for problem in (*one.broken, *itertools.chain(*one.found.values())):
                    print(f"{one.command} {one.signal}: {problem}", file=sys.stderr)
            minutes = (time.monotonic() - start) / 60
            print(f"{kills} kills, {len(trials)} runs, {minutes:.1f} min", file=sys.stderr)


if __name__ == "__main__":
    main()
