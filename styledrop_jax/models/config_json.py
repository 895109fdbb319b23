"""What the configs of all models share: reading a config.json, and refusing what does not fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from styledrop_jax.errors import UserError, shown


def known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that the dataclass `cls` has fields for.

    Null entries are left out, so that those fields keep their defaults. Lists become tuples.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    known = {}
    for name, value in values.items():
        if name in names and value is not None:
            known[name] = tuple(value) if isinstance(value, list) else value
    return known


def require_value(source: str, values: Mapping[str, Any], name: str, supported: Any) -> None:
    """Refuses a config.json in which `name` is there and is not `supported`.

    Raises:
        UserError: begins with `source`, as in "unet config".
    """
    found = values.get(name, supported)
    if found != supported:
        raise UserError(f"{source}: {name} is {shown(found)}, expected {supported!r}")


def require(fits: bool, source: str, config: object, field: str, expected: str) -> None:
    """Refuses a config whose `field` does not fit.

    Raises:
        UserError: begins with `source`, as in "unet config".
    """
    if not fits:
        found = shown(getattr(config, field))
        raise UserError(f"{source}: {field} is {found}, expected {expected}")
