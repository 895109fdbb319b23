"""What becomes of bad inputs: one line that names the field or the file, or something worse.

    python benchmarks/bad_inputs.py [--only settings,models] [--every 1] [--out bad_inputs.jsonl]

The inputs are made from the settings, the models' configs, the records of a run and the flags of
the commands themselves, so a new field is covered the day it is added. Each goes through the
function that a command gives it to, in a process that is forked when the libraries are loaded, is
killed after 20 seconds, and goes on with the next input. No network, no GPU, no model is trained.

Outcomes: `answered` in one line that names the field or the file; `nameless` or `long` (300 letters
or more) where that line falls short; `accepted`; `traceback`; `hang` after 20 s; `memory` for more
than 4 GB on top of the loaded libraries; `died`.
"""

import argparse
import collections
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from styledrop_jax.errors import Explanation, UserError

SECONDS = 20
MEMORY = 4e9  # bytes that an input may add to the process
OUTCOMES = ("answered", "nameless", "long", "accepted", "traceback", "hang", "memory", "died")


class Case(NamedTuple):
    """One bad input.

    Attributes:
        group: what is bad. name: what it is, for the report.
        names: of the fields or files of which the message has to have one.
        run: gives it to the function that a command gives it to.
        also: a field that the message has to have too.
    """

    group: str
    name: str
    names: tuple[str, ...]
    run: Callable[[], Any]
    also: str = ""


class Outcome(NamedTuple):
    """What became of a case; `said` is the message, or the end of the traceback."""

    case: Case
    kind: str
    said: str


def outcome(case: Case) -> tuple[str, str]:
    """Runs a case in this process: what became of it, and what was said."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    kind, said = _answer(case)
    return ("memory" if _memory("VmHWM") - before > MEMORY else kind), said


def _answer(case: Case) -> tuple[str, str]:
    try:
        case.run()
    except Explanation:  # which teaches in several lines
        return "answered", ""
    except UserError as error:
        said = str(error)
        if len(said) >= 300 or not said.isprintable():
            return "long", said
        named = case.also in said and any(name in said for name in case.names)
        return ("answered" if named else "nameless"), said
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    return "accepted", ""


def _memory(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _work(cases: Sequence[Case], sender: Any) -> None:
    """Sends an outcome for each case."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable(logging.CRITICAL)
    for case in cases:
        sender.send(outcome(case))


def run(cases: Sequence[Case], *, seconds: float = SECONDS) -> Iterator[Outcome]:
    """The outcome of each case, in order."""
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(cases):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(cases[done:], sender), daemon=True)
        process.start()
        sender.close()
        try:
            while done < len(cases):
                if not receiver.poll(seconds):
                    yield Outcome(cases[done], "hang", "")
                    done += 1
                    break
                kind, said = receiver.recv()
                yield Outcome(cases[done], kind, said)
                done += 1
        except EOFError:
            yield Outcome(cases[done], "died", "")
            done += 1
        finally:
            process.kill()
            process.join()
            receiver.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="groups, with commas between them")
    parser.add_argument("--every", type=int, default=1, help="one of so many inputs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which it hangs")
    parser.add_argument("--out", type=Path, help="a JSON line for each input")
    flags = parser.parse_args()
    out = flags.out and flags.out.absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        import bad_inputs_cases

        cases = bad_inputs_cases.every(Path(folder))
        wanted = flags.only.split(",") if flags.only else {case.group for case in cases}
        chosen = [case for case in cases if case.group in wanted][:: flags.every]
        counts: dict[str, collections.Counter] = {}
        lines = []
        for outcome in run(chosen, seconds=flags.seconds):
            counts.setdefault(outcome.case.group, collections.Counter())[outcome.kind] += 1
            row = {"group": outcome.case.group, "input": outcome.case.name}
            lines.append(json.dumps({**row, "outcome": outcome.kind, "said": outcome.said}))
            if outcome.kind not in ("answered", "accepted"):
                print(lines[-1][:300], file=sys.stderr)
    if out:
        out.write_text("\n".join(lines) + "\n")
    print(f"| what is bad | inputs | {' | '.join(OUTCOMES)} |")
    print("| --- " * (2 + len(OUTCOMES)) + "|")
    for group, count in counts.items():
        print(f"| {group} | {count.total()} | {' | '.join(str(count[x]) for x in OUTCOMES)} |")


if __name__ == "__main__":
    main()
