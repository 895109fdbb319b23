"""Checkpoints of the trainable state, by Orbax: atomic, garbage-collected, restored against an abstract target."""

import os
import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from styledrop_jax.errors import UserError
from styledrop_jax.io.files import guard


class Checkpoints:
    """The checkpoints of one training stage: separate items `params`, `opt` and `meta`.

    Args:
        folder: created if absent.
        keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        with guard(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @staticmethod
    def remove(folder: Path) -> None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)

    def latest(self) -> int | None:
        """The step of the last whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves `state` = {"params", "opt"} (trees of arrays) and `meta` (plain JSON) after `step` steps.

        Raises:
            UserError: the disk is full or read-only, or writing is forbidden; earlier checkpoints stay.
        """
        args = {name: ocp.args.StandardSave(state[name]) for name in ("params", "opt")}
        with guard(self._folder / str(step)):
            try:
                self._manager.save(
                    step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args)
                )
            except ValueError as error:  # TensorStore wraps what the disk says
                if not (code := re.search(r"os_error_code='(\d+)'", str(error))):
                    raise
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error

    def restore(self, step: int, target: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state and meta saved at `step`, with the shapes and dtypes of `target`.

        Raises:
            UserError: the checkpoint is damaged or of another shape.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        args = {name: ocp.args.StandardRestore(abstract[name]) for name in ("params", "opt")}
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
            )
        except (
            Exception
        ) as error:  # Orbax and TensorStore raise many unrelated types for a damaged folder
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"{self._folder / str(step)}: cannot be restored ({cause}); delete it"
            ) from error
        return {name: found[name] for name in ("params", "opt")}, found["meta"]

    def close(self) -> None:
        """Frees Orbax's threads."""
        self._manager.close()
