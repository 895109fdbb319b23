"""Checkpoints of the trainable state, by Orbax: written whole or not at all, old ones deleted."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from styledrop_jax import hosts
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import guard

_ITEMS = ("params", "opt")


class Checkpoints:
    """The checkpoints of one training stage: separate items `params`, `opt` and `meta`.

    Args:
        folder: created if absent.
        keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        with guard(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The step of the last whole checkpoint, or None."""
        return hosts.shared(self._manager.latest_step)

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves `state` = {"params", "opt"} (trees of arrays) and `meta` (plain JSON).

        Args:
            step: how many steps led to the state.

        Raises:
            UserError: the disk is full or read-only, or writing is forbidden; earlier checkpoints
                stay.
        """
        args: dict[str, Any] = {"meta": ocp.args.JsonSave(meta)}
        for name in _ITEMS:
            args[name] = ocp.args.StandardSave(state[name])
        with guard(self.folder / str(step)):
            try:
                self._manager.save(step, args=ocp.args.Composite(**args))
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
        """Frees Orbax's threads."""
        self._manager.close()


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
