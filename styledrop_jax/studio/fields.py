"""What a page sends, checked: every value has a type and a range before it is a word of a command
line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from styledrop_jax.errors import UserError, check_words, shown


def text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """One line of words; UserError without it, unless there is a default."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"{name}: found {shown(value)}, expected text")
    value = " ".join(value.split())
    check_words(value, name)
    return value


def needed(body: Mapping[str, Any], name: str, example: str) -> str:
    """The same, not empty."""
    value = text(body, name, "")
    if not value:
        raise UserError(f"{name}: empty; expected words like {example!r}")
    return value


def whole(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    value = body.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{name}: found {shown(value)}, expected a whole number, {low} to {high}")
    return value


def number(value: Any, name: str, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise UserError(f"{name}: found {shown(value)}, expected a number from {low} to {high}")
    return float(value)


def truth(body: Mapping[str, Any], name: str) -> bool:
    """True or false; false by default."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{name}: found {shown(value)}, expected true or false")
    return value


def listed(body: Mapping[str, Any], name: str, most: int) -> Sequence[Any]:
    """A list of 1 to `most` things."""
    value = body.get(name)
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise UserError(f"{name}: found {shown(value)}, expected a list of 1 to {most}")
    return value


def one_of(body: Mapping[str, Any], name: str, options: Sequence[str]) -> str:
    """One of some words."""
    value = body.get(name)
    if value not in options:
        raise UserError(f"{name}: found {shown(value)}, expected one of {', '.join(options)}")
    return str(value)
