"""The run folder: what a run leaves on disk. A stage is done when its final file exists; nothing
else keeps track.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from styledrop_jax import hosts
from styledrop_jax.errors import UserError, check_words, did_you_mean, shown
from styledrop_jax.io.files import appending, guard, locked, plain, read_object, write_json
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.records import check_own

_MOST_SHOWN = 4  # differences in one error


@dataclasses.dataclass(kw_only=True)
class Run:
    """One run folder. `open` makes or continues it, `load` only looks at it."""

    workdir: Path
    config: dict[str, Any]
    _lock: IO[bytes] | None = None

    @classmethod
    def open(
        cls,
        workdir: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        completed: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> "Run":
        """Makes the run folder of `config` (plain nested data), or continues it, and locks it for
        this process, of several for the first.

        Args:
            workdir: new, or a run folder.
            config: what it is to do.
            completed: the form of a config in which two are compared, with what a run folder of
                an older version does not say.

        Raises:
            UserError: another process works in the folder; the folder holds a run of another config
                (the message names each field that differs, with both values); a link in it leads
                out of it; the folder cannot be written.
        """
        if re.match(r"[a-z0-9]{2,}:/", os.fspath(workdir)):
            raise UserError(
                f"{workdir}: a bucket cannot be a run folder; expected a folder of a disk, such as "
                "one that gcsfuse mounts the bucket to"
            )
        run = cls(workdir=expanded(workdir), config=plain(config))
        hosts.shared(lambda: run._take(completed))
        return run

    def _take(self, completed: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        with guard(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.workdir)
        try:
            check_own(self.workdir)
            if self.done("config.json"):
                _check_same(self.path("config.json"), self.config, completed, bool(self.changes))
            else:
                write_json(self.path("config.json"), self.config)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(cls, workdir: str | os.PathLike[str]) -> "Run":
        """Looks at an existing run folder, without locking it: for `sample`, `mix`, `edit`,
        `report`.

        Raises:
            UserError: the folder is missing or holds no run, or a link in it leads out of it.
        """
        workdir = expanded(workdir)
        if not workdir.is_dir():
            siblings = [p.name for p in workdir.parent.iterdir()] if workdir.parent.is_dir() else []
            raise UserError(f"{workdir}: no such run folder{did_you_mean(workdir.name, siblings)}")
        if not (workdir / "config.json").exists():
            raise UserError(
                f"{workdir}: not a run folder: expected config.json in it, as `personalize` leaves"
            )
        check_own(workdir)
        return cls(workdir=workdir, config=read_object(workdir / "config.json"))

    def path(self, *parts: str) -> Path:
        return self.workdir.joinpath(*parts)

    def done(self, name: str) -> bool:
        """Whether the stage whose final file is `name` ("round_1/adapter.safetensors") is done.

        All processes agree on it, and may then read what was written before.
        """
        return hosts.shared(lambda: os.path.exists(self.path(name)))

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` holds now; UserError if that is no object."""
        path = self.path("manifest.json")
        return hosts.shared(lambda: read_object(path) if path.exists() else {})

    @property
    def references(self) -> list[dict[str, Any]]:
        """The user's images as the manifest records them; none before the run has begun."""
        return self._recorded("references", dict)

    @property
    def prompts(self) -> list[str]:
        """The prompts of the run as the manifest records them."""
        return self._recorded("prompts", str)

    @property
    def changes(self) -> dict[str, Any]:
        """What `extend` recorded."""
        found = self.manifest.get("changes")
        return found if isinstance(found, dict) else {}

    def found_words(self, number: int) -> str:
        """The words of the style that round `number` found; empty if it did not look for any."""
        rounds = self.manifest.get("rounds")
        own = rounds.get(f"round_{number}") if isinstance(rounds, dict) else None
        words = own.get("words", "") if isinstance(own, dict) else ""
        if not isinstance(words, str):
            path = self.path("manifest.json")
            raise UserError(f"{path}: words are {shown(words)}, expected text as a run leaves it")
        check_words(words, f"{self.path('manifest.json')}: words")
        return words

    def revision(self, model: str) -> str:
        """The commit of the hub's "base" or "clip" that the run began with; empty if it is of no
        hub.
        """
        entry = self.manifest.get(model)
        found = entry.get("revision", "") if isinstance(entry, dict) else ""
        if found and not (isinstance(found, str) and re.fullmatch(r"[0-9a-f]{40}", found)):
            raise UserError(
                f"{self.path('manifest.json')}: {model}.revision is {shown(found)}, expected the "
                "40 digits of a commit"
            )
        return found

    def _recorded(self, name: str, kind: type) -> list[Any]:
        found = self.manifest.get(name, [])
        if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
            raise UserError(
                f"{self.path('manifest.json')}: {name} are {shown(found)}, expected a list as a "
                "run leaves it"
            )
        return found

    def extend(
        self, config: Mapping[str, Any], changes: Mapping[str, Any], anew: Iterable[str] = ()
    ) -> None:
        """Makes a finished run an unfinished one of another config, and records the changes in the
        manifest; the files `anew` are deleted, to be made again.
        """
        self.update_manifest({"changes": changes})
        for name in ("report.html", "verdict.json", *anew):
            with guard(self.path(name)):
                self.path(name).unlink(missing_ok=True)
        write_json(self.path("config.json"), config)
        self.config = plain(config)

    def update_manifest(self, entries: Mapping[str, Any]) -> None:
        """Merges `entries` into `manifest.json`, nested mappings key by key."""
        old = self.manifest
        new = _merge(old, plain(entries))
        if new != old:
            write_json(self.path("manifest.json"), new)

    def discard(self) -> None:
        """Takes back what `open` made, the folder too if it holds nothing else: for a run that
        never began.
        """
        if not hosts.first():
            return
        with contextlib.suppress(OSError):  # why it did not begin is told, not what the disk says
            for name in ("config.json", ".lock"):
                self.path(name).unlink(missing_ok=True)
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
        file = appending(path)
    if not locked(file):
        file.seek(0)
        owner = file.read(20).decode(errors="replace").strip()
        file.close()
        raise UserError(
            f"{workdir}: another process ({owner or 'unknown'}) works in this run folder"
        )
    with guard(path):
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    return file


def _check_same(
    path: Path,
    config: dict[str, Any],
    completed: Callable[[Mapping[str, Any]], dict[str, Any]],
    extended: bool,
) -> None:
    old = _flat(completed(read_object(path)))
    new = _flat(completed(config))
    changed = []
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new or old[name] != new[name]:
            changed.append(f"{name} was {_show(old, name)}, now {_show(new, name)}")
    if changed:
        more = len(changed) - _MOST_SHOWN
        if more > 0:
            changed = [*changed[:_MOST_SHOWN], f"and {more} more"]
        same = (
            "what `styledrop extend` made of it (--config FOLDER)"
            if extended
            else "the same values"
        )
        raise UserError(
            f"{path.parent}: holds a run of another config: {'; '.join(changed)}; "
            f"expected {same}, or another --workdir"
        )


def _show(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not there"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
