"""The user's cache folder, and the compiled programs in it, so that the second start of a command
does not compile what the first one did.
"""

import os
import warnings
from pathlib import Path

_SIZE = 2**30  # bytes of programs, of which JAX drops those that were used longest ago
_ENTRY = "-cache"
_WHOLE = "-atime"


def folder() -> Path:
    """`styledrop_jax` in `$XDG_CACHE_HOME` or `~/.cache`: for what can be made again."""
    found = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(found):  # which its specification says to pass over
        found = os.path.expanduser("~/.cache")
    return Path(found) / "styledrop_jax"


def keep_programs() -> None:
    """Has JAX keep what it compiles in `programs` of the cache folder: to be called before it is
    imported.

    What the environment says of JAX's cache stands: `JAX_COMPILATION_CACHE_DIR` names another
    folder, `JAX_ENABLE_COMPILATION_CACHE=0` switches it off, `JAX_COMPILATION_CACHE_MAX_SIZE` is in
    bytes. Where the folder cannot be written, programs are compiled anew. Several processes may
    share it: JAX locks it.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    programs = folder() / "programs"
    if not programs.is_absolute() or not _writable(programs):
        return
    _drop_torn(programs)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_SIZE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # A full disk costs time, and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _writable(path: Path) -> bool:
    """Whether the folder, or the first above it that exists, can be written."""
    for each in (path, *path.parents):
        if os.path.lexists(each):
            return each.is_dir() and os.access(each, os.W_OK | os.X_OK)
    return False


def _drop_torn(programs: Path) -> None:
    """Removes entries that a death left without the time of their use, which JAX writes after them;
    it would trip over them for ever.
    """
    from filelock import FileLock, Timeout

    try:
        entries = list(programs.glob(f"*{_ENTRY}"))
        if all(_time_of(entry).exists() for entry in entries):
            return
        with FileLock(programs / ".lockfile", timeout=0):  # JAX's own: none is being written
            for entry in entries:
                if not _time_of(entry).exists():
                    entry.unlink(missing_ok=True)
    except (OSError, Timeout):
        return


def _time_of(entry: Path) -> Path:
    return entry.with_name(entry.name.removesuffix(_ENTRY) + _WHOLE)
