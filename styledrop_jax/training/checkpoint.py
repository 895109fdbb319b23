"""Checkpoints of the trainable state, by Orbax: written whole or not at all, in the background, old
ones deleted.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from styledrop_jax import hosts
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import guard

_ITEMS = ("params", "opt")
# What fails in Orbax's threads is raised here, in one line: it need not print it as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one training stage: separate items `params`, `opt` and `meta`.

    Args:
        folder: created if absent.
        keep: how many of the latest are kept.

    It is a context, at whose end everything is on the disk.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = folder
        self._saved = 0  # the step that was saved last
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        with guard(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The step of the last whole checkpoint, or None."""
        self._wait()
        return hosts.shared(self._manager.latest_step)

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves `state` = {"params", "opt"} (trees of arrays) and `meta` (plain JSON).

        The state may be donated once this returns; it is being written still.

        Args:
            step: how many steps led to the state.

        Raises:
            UserError: the disk is full or read-only, or writing is forbidden, now or as the one
                before was written; earlier checkpoints stay.
        """
        self._wait()
        self._saved = step
        args: dict[str, Any] = {"meta": ocp.args.JsonSave(meta)}
        for name in _ITEMS:
            args[name] = ocp.args.StandardSave(state[name])
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**args))

    def _wait(self) -> None:
        """Until what was saved is written."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Where the disk may fail, as what was saved last is written."""
        with guard(self.folder / str(self._saved)):
            try:
                yield
            except ValueError as error:  # TensorStore wraps what the disk says
                code = re.search(r"os_error_code='(\d+)'", str(error))
                if code is None:
                    raise
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error

    def restore(self, step: int, target: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state and meta saved at `step`, with the shapes and dtypes of `target`.

        Raises:
            UserError: the checkpoint is damaged or of another shape.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        args: dict[str, Any] = {"meta": ocp.args.JsonRestore()}
        for name in _ITEMS:
            args[name] = ocp.args.StandardRestore(abstract[name])
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # Orbax raises many unrelated types for a damaged folder
            lines = str(error).strip().splitlines()
            cause = shown(lines[0] if lines else type(error).__name__, 120)
            raise UserError(
                f"{self.folder / str(step)}: cannot be restored ({cause}); delete it"
            ) from error
        return {name: found[name] for name in _ITEMS}, found["meta"]

    def close(self) -> None:
        """Waits until all is written, and frees Orbax's threads.

        Raises:
            UserError: see `save`.
        """
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def remove(folder: Path) -> None:
    """Deletes the checkpoints of a stage that is done; nothing happens if there are none.

    The folder disappears at once, by a new name that begins with a dot, and is then deleted. After
    a death in the middle, another call deletes what is left.

    Raises:
        UserError: the disk is read-only, or deleting is forbidden.
    """
    if not hosts.first():
        return
    removed = folder.with_name(f".{folder.name}.removed")
    with guard(folder):
        if removed.exists():
            shutil.rmtree(removed)
        if folder.exists():
            folder.rename(removed)
            shutil.rmtree(removed)
