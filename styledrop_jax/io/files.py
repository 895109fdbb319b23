"""Files that survive any kind of death: written under a temporary name and renamed, so one that
exists is whole.

JSON-lines files are appended, and a torn last line is dropped.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from styledrop_jax import hosts
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.paths import check_file, shown_path

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
    errno.EFBIG: "the file would be larger than this system allows (see ulimit -f)",
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
        reason = _REASONS[error.errno]
        raise UserError(f"{shown_path(path)}: cannot be written: {reason}") from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file or nothing, making its folders: temporary name, fsync, rename.

    Of several processes the first alone writes; see `hosts.wait`.

    Raises:
        UserError: the disk is full or read-only, or writing is forbidden.
    """
    if not hosts.first():
        return
    path = Path(path)
    with _beside(path, Path.touch) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            _to_disk(file)
        os.replace(temporary, path)


def write_by(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """The same of a file that `write` makes, where a library writes by name.

    Raises:
        UserError: as `write_bytes`.
    """
    path = Path(path)
    with _beside(path, Path.mkdir) as folder:  # for a library's own temporary files too
        write(folder / path.name)
        with (folder / path.name).open("rb+") as file:
            _to_disk(file)
        os.replace(folder / path.name, path)


@contextlib.contextmanager
def _beside(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary file or folder in the folder of `path`, locked while it lasts: one that nobody
    holds was left by a process that died.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path.parent)
        try:
            with _held(temporary, make):
                yield temporary
        finally:
            with contextlib.suppress(OSError):
                _remove(temporary)


@contextlib.contextmanager
def _held(temporary: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Makes a file or folder and locks it."""
    while True:
        make(temporary)
        number = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(number, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), temporary.stat()):
                    yield
                    return
        finally:
            os.close(number)


_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_LOOKED_INTO: set[Path] = set()


def _remove_left(folder: Path) -> None:
    """Deletes the temporary files and folders that nobody holds any more, once a process."""
    if folder in _LOOKED_INTO:
        return
    _LOOKED_INTO.add(folder)
    for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            number = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder / name)
            finally:
                os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically; numpy and jax scalars and arrays and paths are
    allowed in it.
    """
    write_bytes(path, _encoded(value, indent=2))


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Writes a line of JSON for each row, all of them or none."""
    lines = [_line(row) for row in rows]
    write_bytes(path, b"".join(lines))


def _line(row: Any) -> bytes:
    return _encoded(row)


def _encoded(value: Any, **layout: Any) -> bytes:
    """JSON in UTF-8; a name of a file that is no Unicode is written in escapes, as it is read."""
    whole = plain(value)
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, **layout)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(whole, allow_nan=False, **layout)}\n".encode()


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads one JSON file.

    Raises:
        UserError: the file is missing, no regular file, or is not JSON.
    """
    path = Path(path)
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{shown_path(path)}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        found = f"found something else: {error}"
        raise UserError(f"{shown_path(path)}: expected JSON, {found}") from error


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The same of a file that holds one JSON object; UserError if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        found = shown(content)
        raise UserError(f"{shown_path(path)}: found {found}, expected a JSON object")
    return content


def read_jsonl(path: str | os.PathLike[str]) -> list[Any]:
    """Reads the records of a JSON-lines file, without a last line that death tore; a missing file
    has none.

    Raises:
        UserError: it is no regular file, or a line before the last is not JSON.
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
        UserError: another process has it, it is a link or no regular file, a line before the last
            is not JSON, or the disk fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, alone: bool = False):
        self.path = Path(path)
        with guard(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = appending(self.path)
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
    if not os.path.lexists(path):
        return [], 0
    check_file(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{shown_path(path)}: cannot be read: {error.strerror}") from error
    rows = []
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                where = f"{shown_path(path)}: line {number}"
                raise UserError(f"{where} is not JSON: {error}") from error
            break
        size += len(line)
    return rows, size


def appending(path: Path) -> IO[bytes]:
    """Opens a file to append to it, making it; what is written never goes through a link.

    Raises:
        UserError: it is a link, a pipe or a device.
        OSError: the disk refuses it.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
            raise
        number = -1
    if number >= 0 and stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "ab+")
    if number >= 0:
        os.close(number)
    name = shown_path(path)
    raise UserError(
        f"{name}: found a link, a pipe or a device; expected a file of the folder's own"
    )


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
