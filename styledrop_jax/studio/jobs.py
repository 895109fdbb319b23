"""The queue: ordinary commands, one at a time, each in a process of its own that outlives the
studio.

A job is a file of the studio's state beside its log. The process holds the log's lock, inherited
with its output, until it ends: so a studio that is opened again knows what still runs. Drawings
share one process, which keeps the model; it gives way to every other command.
"""

import contextlib
import dataclasses
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from styledrop_jax.errors import UserError, one_line, shown
from styledrop_jax.io.files import guard, locked, read_object, write_json
from styledrop_jax.studio.folders import Missing
from styledrop_jax.studio.worker import COMMANDS as DRAWING
from styledrop_jax.studio.worker import Turn, Worker

QUEUED, RUNNING, DONE, FAILED, STOPPED = "queued", "running", "done", "failed", "stopped"
_MOST = 200  # jobs that are remembered
_LONGEST_LOG = 2**16  # bytes of a log's end that are looked at
_POLL = 0.5  # seconds


@dataclasses.dataclass(kw_only=True)
class Job:
    """One command.

    Attributes:
        id: of its files. run: the name of the run that it is about.
        words: of the command line, without the program.
        state: queued, running, done, failed or stopped.
        pid: of its process, 0 before.
        told: whether it was told to stop.
        made, began, ended: seconds since 1970; 0 if not yet.
        said: the last line of a job that failed.
    """

    id: str
    run: str
    words: Sequence[str]
    state: str = QUEUED
    pid: int = 0
    told: bool = False
    made: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    said: str = ""

    @property
    def line(self) -> str:
        """The command as a person would type it."""
        return shlex.join(["styledrop", *self.words])


class Jobs:
    """The jobs of a studio, and the thread that starts them.

    Args:
        folder: where they are kept.
        program: that a job's words are given to.
        warm: the program that draws one job after the other; empty for a process each.
    """

    def __init__(
        self,
        folder: Path,
        program: Sequence[str] = (sys.executable, "-m", "styledrop_jax"),
        warm: Sequence[str] = (),
    ):
        self._folder = folder
        self._program = program
        self._change = threading.Condition()
        self._own: dict[str, subprocess.Popen[bytes] | Turn] = {}
        self._worker = Worker(warm) if warm else None
        self._over = False
        with guard(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._jobs = {job.id: job for job in _read(folder)}
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Starts nothing more; what runs goes on without the studio."""
        with self._change:
            self._over = True
            self._change.notify_all()
        self._thread.join()
        if self._worker:
            self._worker.end()

    def add(self, run: str, words: Sequence[str]) -> Job:
        """Puts a command at the end of the queue.

        Raises:
            UserError: the same is there already.
        """
        with self._change:
            for job in self._jobs.values():
                if job.state == QUEUED and list(job.words) == list(words):
                    raise UserError(f"{shown(run)}: this is in the queue already")
            now = time.time_ns()  # of two in one millisecond too, the first is first
            job = Job(
                id=f"{now:020d}-{secrets.token_hex(4)}",
                run=run,
                words=list(words),
                made=now / 1e9,
            )
            self._jobs[job.id] = job
            self._keep(job)
            self._forget()
            self._change.notify_all()
            return dataclasses.replace(job)

    def stop(self, name: str) -> Job:
        """Takes a job out of the queue, or tells its process to end: a run keeps what it has. One
        that was told before is killed.

        Raises:
            Missing: there is no such job.
        """
        with self._change:
            job = self._jobs.get(name)
            if job is None:
                raise Missing("no such job")
            if job.state == QUEUED:
                self._end(job, STOPPED)
            elif job.state == RUNNING:
                how = signal.SIGKILL if job.told else signal.SIGTERM
                job.told = True
                self._keep(job)
                # Its lock is held, so the process lives and the number is its own.
                if not _is_free(self._log(job)):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(job.pid, how)
            self._change.notify_all()
            return dataclasses.replace(job)

    def all(self) -> list[dict[str, Any]]:
        """All jobs as the page shows them, the last one first."""
        with self._change:
            found = []
            for job in sorted(self._jobs.values(), key=lambda job: job.id, reverse=True):
                found.append({**dataclasses.asdict(job), "line": job.line})
            return found

    def busy(self, run: str) -> Job | None:
        """The job of a run that is queued, or else the one that runs."""
        with self._change:
            for state in (QUEUED, RUNNING):
                for job in self._jobs.values():
                    if job.run == run and job.state == state:
                        return dataclasses.replace(job)
        return None

    def failure(self, run: str) -> str:
        """What the last job of a run said, if it failed."""
        with self._change:
            own = [job for job in self._jobs.values() if job.run == run]
            last = max(own, key=lambda job: job.id, default=None)
            return last.said if last is not None and last.state == FAILED else ""

    def log(self, run: str, lines: int = 40) -> list[str]:
        """The last lines of the last job of a run that has begun, and before them its warnings."""
        with self._change:
            begun = [job for job in self._jobs.values() if job.run == run and job.began]
            path = self._log(max(begun, key=lambda job: job.began)) if begun else None
        found = _tail(path) if path else []
        early = [line for line in found[:-lines] if line.startswith("warning:")]
        return early + found[-lines:]

    def wait(self, until: Callable[[], bool], timeout: float) -> bool:
        """Waits until something holds of the jobs; for tests and for an orderly end."""
        with self._change:
            return self._change.wait_for(until, timeout)

    # ---------------------------------------------------------- the thread

    def _work(self) -> None:
        with self._change:
            while not self._over:
                for job in list(self._jobs.values()):
                    if job.state == RUNNING:
                        self._look(job)
                waiting = [job for job in self._jobs.values() if job.state == QUEUED]
                if waiting and not any(job.state == RUNNING for job in self._jobs.values()):
                    self._begin(min(waiting, key=lambda job: job.id))
                running = any(job.state == RUNNING for job in self._jobs.values())
                self._change.wait(_POLL if running else None)

    def _begin(self, job: Job) -> None:
        try:
            with self._log(job).open("ab") as file:
                locked(file)
                process = self._started(job.words, file)
        except OSError as error:
            job.said = one_line(str(error), 200)
            self._end(job, FAILED)
            return
        self._own[job.id] = process
        job.state = RUNNING
        job.pid = process.pid
        job.began = time.time()
        self._keep(job)
        self._change.notify_all()

    def _started(self, words: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes] | Turn:
        """A process on a command, in a session of its own: ctrl-c in the studio's terminal is not
        meant for it.
        """
        if self._worker:
            if words[0] in DRAWING:
                return self._worker.begin(words, log)
            self._worker.end()
        return subprocess.Popen(
            [*self._program, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _look(self, job: Job) -> None:
        """Ends a job whose process has ended."""
        process = self._own.get(job.id)
        if process is not None:
            code = process.poll()
            if code is None:
                return
            del self._own[job.id]
        elif not _is_free(self._log(job)):
            return
        else:  # a studio before this one began it: only the log says how it ended
            last = (_tail(self._log(job)) or [""])[-1]
            code = 1 if last.startswith(("error:", "Traceback")) or not last else 0
        if job.told:
            self._end(job, STOPPED)
        elif code:
            job.said = one_line((_tail(self._log(job)) or [f"ended with code {code}"])[-1], 290)
            self._end(job, FAILED)
        else:
            self._end(job, DONE)

    def _end(self, job: Job, state: str) -> None:
        job.state = state
        job.ended = time.time()
        self._keep(job)
        self._change.notify_all()

    def _log(self, job: Job) -> Path:
        return self._folder / f"{job.id}.log"

    def _keep(self, job: Job) -> None:
        write_json(self._folder / f"{job.id}.json", dataclasses.asdict(job))

    def _forget(self) -> None:
        over = [job for job in self._jobs.values() if job.state not in (QUEUED, RUNNING)]
        for job in sorted(over, key=lambda job: job.id)[: max(0, len(over) - _MOST)]:
            del self._jobs[job.id]
            for ending in (".json", ".log"):
                (self._folder / f"{job.id}{ending}").unlink(missing_ok=True)


def _read(folder: Path) -> list[Job]:
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(UserError, TypeError):
            found.append(Job(**read_object(path)))
    return found


def _is_free(path: Path) -> bool:
    """Whether no process holds the lock of a log."""
    try:
        with path.open("ab") as file:
            return locked(file)
    except OSError:
        return True


def _tail(path: Path) -> list[str]:
    """The last lines of a log, printable."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_LOG))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [one_line(line, 1000) for line in text.splitlines() if line.strip()]
