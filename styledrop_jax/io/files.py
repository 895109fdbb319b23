"""The run folder: what a run leaves on disk, and how it survives any kind of death.

Every file is written under a temporary name and renamed, so a file that exists is whole. A stage is done when its
final file exists; nothing else keeps track. JSON-lines files are appended, and a torn last line is dropped.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from styledrop_jax.errors import UserError, did_you_mean

_LOG = logging.getLogger(__name__)

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; expected a folder that can be written",
    errno.EACCES: "permission denied; expected a folder that can be written",
    errno.EPERM: "permission denied; expected a folder that can be written",
    errno.ENOTDIR: "a part of this path is a file; expected folders",
    errno.EEXIST: "a part of this path is a file; expected folders",
    errno.EISDIR: "found a folder; expected a file",
    errno.ENAMETOOLONG: "the name is too long; expected a shorter one",
    errno.EIO: "the disk reported an input/output error",
}


@contextlib.contextmanager
def guard(path: str | os.PathLike) -> Iterator[None]:
    """Turns the failures of a disk (full, read-only, forbidden, …) into one-line `UserError`s that name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise UserError(f"{path}: cannot be written: {_REASONS[error.errno]}") from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file or nothing, making its folders: temporary name, fsync, rename.

    Raises:
        UserError: the disk is full or read-only, or writing is forbidden.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                _to_disk(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; numpy and jax scalars and arrays and paths are allowed in it."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: str | os.PathLike) -> Any:
    """Reads one JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found something else: {error}") from error


def read_jsonl(path: str | os.PathLike) -> list[Any]:
    """Reads the records of a JSON-lines file, without a last line that death tore; a missing file has none.

    Raises:
        UserError: a line before the last is not JSON.
    """
    return _whole_lines(Path(path))[0]


class JsonLines:
    """A JSON-lines file open for appending: what was appended before a death is there after it, whole.

    Opening drops a torn last line. `rows` are the records read then.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.rows, size = _whole_lines(self.path)
        with guard(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(size)

    def append(self, row: Any) -> None:
        """Appends one record and waits until it is on the disk."""
        line = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"
        with guard(self.path):
            self._file.write(line.encode())
            _to_disk(self._file)

    def close(self) -> None:
        with guard(self.path):
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclasses.dataclass(kw_only=True)
class Run:
    """One run folder. `open` makes or continues it, `load` only looks at it."""

    workdir: Path
    config: dict[str, Any]
    _lock: IO[bytes] | None = None

    @classmethod
    def open(cls, workdir: str | os.PathLike, config: Mapping[str, Any]) -> "Run":
        """Makes the run folder of `config` (plain nested data), or continues it, and locks it for this process.

        Raises:
            UserError: another process works in the folder; the folder holds a run of another config (the message
                names each field that differs, with both values); the folder cannot be written.
        """
        workdir = Path(workdir).expanduser()
        with guard(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        run = cls(workdir=workdir, config=_plain(config), _lock=_take_lock(workdir))
        try:
            if run.done("config.json"):
                _check_same(run.path("config.json"), run.config)
            else:
                write_json(run.path("config.json"), run.config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def load(cls, workdir: str | os.PathLike) -> "Run":
        """Looks at an existing run folder, without locking it: for `sample`, `mix`, `edit`, `report`.

        Raises:
            UserError: the folder is missing or holds no run.
        """
        workdir = Path(workdir).expanduser()
        if not workdir.is_dir():
            siblings = [p.name for p in workdir.parent.iterdir()] if workdir.parent.is_dir() else []
            raise UserError(f"{workdir}: no such run folder{did_you_mean(workdir.name, siblings)}")
        if not (workdir / "config.json").exists():
            raise UserError(
                f"{workdir}: not a run folder: expected config.json in it, as `personalize` leaves"
            )
        return cls(workdir=workdir, config=read_json(workdir / "config.json"))

    def path(self, *parts: str) -> Path:
        return self.workdir.joinpath(*parts)

    def done(self, name: str) -> bool:
        """Whether the stage whose final file is `name` ("round_1/adapter.safetensors") is done."""
        return self.path(name).exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` holds now."""
        return read_json(self.path("manifest.json")) if self.done("manifest.json") else {}

    def update_manifest(self, entries: Mapping[str, Any]) -> None:
        """Merges `entries` into `manifest.json`, nested mappings key by key."""
        old = self.manifest
        new = _merge(old, _plain(entries))
        if new != old:
            write_json(self.path("manifest.json"), new)

    def discard(self) -> None:
        """Takes back what `open` made, the folder too if it holds nothing else: for a run that never began."""
        for name in ("config.json", ".lock"):
            self.path(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.workdir.rmdir()

    def close(self) -> None:
        """Gives the lock back; death gives it back too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _take_lock(workdir: Path) -> IO[bytes]:
    path = workdir / ".lock"
    with guard(path):
        file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read(20).decode(errors="replace").strip()
        file.close()
        raise UserError(
            f"{workdir}: another process ({owner or 'unknown'}) works in this run folder"
        ) from None
    except (
        OSError
    ) as error:  # some network file systems have no locks: better unlocked than unusable
        _LOG.warning(
            "%s: cannot be locked (%s); do not start a second process on it",
            workdir,
            error.strerror,
        )
    with guard(path):
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    return file


def _check_same(path: Path, config: dict[str, Any]) -> None:
    old, new = _flat(read_json(path)), _flat(config)
    changed = [
        f"{name} was {_show(old, name)}, now {_show(new, name)}"
        for name in dict.fromkeys([*old, *new])
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changed:
        raise UserError(
            f"{path.parent}: holds a run of another config: {'; '.join(changed)}; expected the same values, "
            "or another --workdir"
        )


def _show(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not there"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not (isinstance(tree, dict) and tree):
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _plain(value: Any) -> Any:
    """The same value as JSON can hold it; what is not a number becomes null, since JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float | bool | None):
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"cannot be written as JSON: {value!r}")
        return _plain(array.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(path: Path) -> tuple[list[Any], int]:
    """The records of a JSON-lines file and the bytes that they take, without a torn last line."""
    if not path.exists():
        return [], 0
    rows, size = [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not JSON: {error}") from error
            break
        size += len(line)
    return rows, size


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
