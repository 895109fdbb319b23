"""The folder of runs that a studio is opened on: every path that a page names is resolved here."""

import dataclasses
import hashlib
import os
import re
import secrets
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from styledrop_jax import cache, runs
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import guard, locked, read_object
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.records import check_own, inside

_LONGEST_PART = 255  # bytes
_LONGEST_PATH = 1024
_NAME = re.compile(r"[^\W_][\w .+-]{0,59}")


class Missing(UserError):
    """There is no such run, picture or round."""


class Studio:
    """A folder of runs, and what a studio keeps about it: the queue, uploads and thumbnails, in
    the user's cache folder, so that nothing in RUNS tells the studio what to start.

    Raises:
        UserError: RUNS is a run, or cannot be made; another studio is open on it.
    """

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(expanded(root)))
        if (self.root / "config.json").exists():
            raise UserError(
                f"{root}: found a run folder; expected the folder that it is in: "
                f"styledrop studio {self.root.parent}"
            )
        with guard(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._real = Path(os.path.realpath(self.root))
        digest = hashlib.sha256(os.fsencode(self._real)).hexdigest()[:16]
        self.state = cache.folder() / "studio" / digest
        with guard(self.state):
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (self.state / "lock").open("ab")
        if not locked(self._lock):
            raise UserError(f"{root}: a studio is open on this folder; use its page, or end it")
        self._known: dict[Path, tuple[tuple[int, int], runs.RunSummary]] = {}
        self._listing = threading.Lock()

    def session(self) -> str:
        """A secret of this user and folder: a page that is open finds a studio again that was ended
        and opened anew.
        """
        path = self.state / "session"
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
        found = path.read_text()
        if path.stat().st_mode & 0o077 or len(found) < 40:
            raise UserError(f"{path}: cut short, or others may read it; delete it")
        return found

    def close(self) -> None:
        """Lets another studio open the folder."""
        self._lock.close()

    def run(self, name: str) -> Path:
        """The run folder of a name as `list_runs` gives it.

        Raises:
            Missing: it leads out of RUNS, is hidden, or holds no run.
        """
        path = self._below(name)
        if path is None or not (path / "config.json").is_file():
            raise Missing(f"no run {shown(name)} here")
        return path

    def new(self, name: str) -> Path:
        """The folder for a new run.

        Raises:
            UserError: the name is no simple name, or taken.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"name: found {shown(name)}, expected a letter or digit, then letters, digits, "
                "spaces and . _ + -, at most 60"
            )
        path = self.root / name
        if path.is_symlink() or (path / "config.json").exists():
            raise UserError(f"name: {shown(name)} is taken; expected another one")
        given = path / "given"
        if given.is_symlink() or (path.exists() and not set(os.listdir(path)) <= {"given"}):
            raise UserError(f"name: a folder {shown(name)} is there; expected another name")
        return path

    def file(self, name: str, file: str) -> Path:
        """A file of a run.

        Raises:
            Missing: it is not there, or not in the run folder.
        """
        path = None
        if is_plain(file):
            path = inside(self.run(name), file)
        if path is None:
            raise Missing(f"no file {shown(file)} in {shown(name)}")
        return path

    def config(self, name: str) -> dict[str, Any]:
        """What a run was told; UserError if its files are damaged or lead out of it."""
        workdir = self.run(name)
        check_own(workdir)
        return read_object(workdir / "config.json")

    def list_runs(self) -> list[runs.RunSummary]:
        """All of them, the one that changed last first."""
        with self._listing:
            return runs.list_runs(self.root, self._summary)

    def _summary(self, workdir: Path, folder: Path) -> runs.RunSummary | None:
        """A finished run is not walked through again."""
        report = workdir / "report.html"
        if not report.exists() or runs.is_locked(workdir):
            self._known.pop(workdir, None)
            return runs.summary(workdir, folder)
        stamp = (report.stat().st_mtime_ns, (workdir / "config.json").stat().st_mtime_ns)
        if workdir in self._known and self._known[workdir][0] == stamp:
            return self._known[workdir][1]
        found = runs.summary(workdir, folder)
        if found is not None:
            self._known[workdir] = (stamp, found)
        return found

    def _below(self, name: str) -> Path | None:
        if not is_plain(name):
            return None
        path = Path(os.path.realpath(self.root / name))
        return path if path != self._real and path.is_relative_to(self._real) else None


def is_plain(name: str) -> bool:
    """Whether it is a relative path without `..`, hidden parts, and letters that no path has."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or "\0" in name or "\\" in name:
        return False
    try:
        sizes = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError:
        return False
    fits = max(sizes) <= _LONGEST_PART and sum(sizes) <= _LONGEST_PATH
    return fits and not any(part.startswith(".") for part in path.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a run stands with its rounds, as files on the disk say.

    Attributes:
        rounds: how many it is told to make.
        scored: numbers of those whose samples have scores; 0 is the base model.
        waits: the round whose images wait for a person; 0 if none does.
    """

    rounds: int
    scored: list[int]
    waits: int


def stand(workdir: Path, config: dict[str, Any]) -> Stage:
    """Where a run stands.

    An answer that a person has begun, a click at a time, still waits until the run goes on.
    """
    found = config.get("rounds")
    rounds = found if type(found) is int and 1 <= found <= 100 else 0
    scored = [0] if inside(workdir, "base", "scores.jsonl") else []
    waits = 0
    for number in range(1, rounds + 1):
        stage = f"round_{number}"
        if inside(workdir, stage, "scores.jsonl"):
            scored.append(number)
        asked = inside(workdir, stage, "feedback", "selected.json")
        if asked and not waits and not inside(workdir, stage, "selected.json"):
            waits = number
    if waits and runs.is_locked(workdir):
        waits = 0
    return Stage(rounds=rounds, scored=scored, waits=waits)
