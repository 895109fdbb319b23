"""How every command reads its flags: argparse whose errors are ours."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from styledrop_jax.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, with a close match for a mistyped flag."""

    def __init__(self, command: str, function: Callable, **kwargs: Any):
        super().__init__(
            prog=f"styledrop {command}",
            description=inspect.getdoc(function),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message[:200]}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        found, rest = self.parse_known_args(argv)
        if rest:
            flags = []
            for action in self._actions:
                flags += action.option_strings
            hint = did_you_mean(rest[0].split("=")[0], flags)
            raise UserError(f"{self.prog}: unknown argument {rest[0][:80]!r}{hint}")
        return found
