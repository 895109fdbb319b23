"""Files that survive any kind of death: written under a temporary name and renamed, so one that
exists is whole.

JSON-lines files are appended, and a torn last line is dropped.
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from styledrop_jax.errors import UserError

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
def guard(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the failures of a disk (full, read-only, forbidden, …) into one-line `UserError`s that
    name `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise UserError(f"{path}: cannot be written: {_REASONS[error.errno]}") from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
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


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically; numpy and jax scalars and arrays and paths are
    allowed in it.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Writes a line of JSON for each row, all of them or none."""
    lines = [_line(row) for row in rows]
    write_bytes(path, b"".join(lines))


def _line(row: Any) -> bytes:
    return (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str]) -> Any:
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, found something else: {error}") from error


def read_jsonl(path: str | os.PathLike[str]) -> list[Any]:
    """Reads the records of a JSON-lines file, without a last line that death tore; a missing file
    has none.

    Raises:
        UserError: a line before the last is not JSON.
    """
    return _whole_lines(Path(path))[0]


class JsonLines:
    """A JSON-lines file open for appending: what was appended before a death is there after it,
    whole.

    Opening drops a torn last line. `rows` are the records read then.

    Args:
        path: of the file.
        alone: whether no other process may have it open so at the same time.

    Raises:
        UserError: another process has it, a line before the last is not JSON, or the disk fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, alone: bool = False):
        self.path = Path(path)
        with guard(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        if alone and not locked(self._file):
            self._file.close()
            raise UserError(
                f"{self.path.parent}: another command writes into this folder; "
                "wait for it, or pass another --out"
            )
        try:
            self.rows, size = _whole_lines(self.path)
            with guard(self.path):
                self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise

    def append(self, row: Any) -> None:
        """Appends one record and waits until it is on the disk."""
        line = _line(row)
        with guard(self.path):
            self._file.write(line)
            _to_disk(self._file)

    def close(self) -> None:
        with guard(self.path):
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def plain(value: Any) -> Any:
    """The same value as JSON can hold it; what is not a number becomes null, since JSON has no word
    for it.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float | bool | None):
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"cannot be written as JSON: {value!r}")
        return plain(array.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(path: Path) -> tuple[list[Any], int]:
    """The records of a JSON-lines file and the bytes that they take, without a torn last line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    rows = []
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not JSON: {error}") from error
            break
        size += len(line)
    return rows, size


def locked(file: IO[bytes]) -> bool:
    """Takes the lock of an open file for this process, until it is closed; False if another process
    has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (
        OSError
    ) as error:  # some network file systems have no locks: better unlocked than unusable
        _LOG.warning(
            "%s: cannot be locked (%s); do not start a second process on it",
            file.name,
            error.strerror,
        )
    return True


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def cache_folder() -> Path:
    """The user's cache folder for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "styledrop_jax"
