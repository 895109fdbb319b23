"""What the configs of all models share: reading a config.json, and refusing what does not fit.

A config.json may come from anyone. So every field of it is of its type and in a range that no model
leaves, and there are no more layers than the weights beside it can be of, before any is built.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from styledrop_jax.errors import UserError, shown

_LARGEST = 2**20  # of a whole number: vocabularies, widths and sizes of images are smaller
_LONGEST = 64  # of a list
_LONGEST_NAME = 100  # letters
_LARGEST_SCALE = 1e6  # of a number that is not whole
_FROM_ZERO = ("bos_token_id", "eos_token_id", "pad_token_id", "freq_shift", "steps_offset")
_ABOVE_ZERO = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "scaling_factor")
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "num_res_blocks",
    "layers_per_block",
    "transformer_layers_per_block",
)
_TENSORS_OF_A_LAYER = 6  # every kind has at least so many
_WORDS = {bool: "true or false", float: "a number", str: "text"}


def known_fields(cls: type, values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The entries of a config.json that the dataclass `cls` has fields for.

    Null entries are left out, so that those fields keep their defaults. Lists become tuples.

    Raises:
        UserError: an entry is of another type than its field, or of a size that no model has; or a
            field that has no default is left out. Begins with `source`, as in "unet config".
    """
    hints = get_type_hints(cls)
    known = {}
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if value is not None:
            value = tuple(value) if isinstance(value, list) else value
            if not _fits(value, hints[field.name], field.name):
                expected = _expected(hints[field.name], field.name)
                raise UserError(
                    f"{source}: {field.name} is {shown(values[field.name])}, expected {expected}"
                )
            known[field.name] = value
    return known


def require_fields(cls: type, known: Mapping[str, Any], *, source: str) -> None:
    """UserError if a field of the dataclass `cls` that has no default is not in `known`."""
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in known:
            hint = get_type_hints(cls)[field.name]
            raise UserError(
                f"{source}: {field.name} is missing, expected {_expected(hint, field.name)}"
            )


def require_layers(config: Any, tensors: int, *, source: str) -> None:
    """Refuses a config of more layers than a file of so many tensors can hold: each takes time to
    build, even where it takes no memory.

    Raises:
        UserError: begins with `source`, the file or folder.
    """
    blocks = getattr(config, "block_out_channels", None)
    for name in _LAYERS:
        each = getattr(config, name, 0)
        count = each * (len(blocks) if isinstance(blocks, tuple) else 1)
        if isinstance(each, tuple):
            count = sum(each)
        if count * _TENSORS_OF_A_LAYER > tensors:
            raise UserError(
                f"{source}: {name} of its config.json is {shown(each)}, but its weights "
                f"are {tensors} tensors; expected those of every layer"
            )


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any, name: str) -> bool:
    """Whether a value that is not null is of a field's type, and no larger than such values are."""
    for option in _options(hint):
        if get_origin(option) is tuple:
            kind = get_args(option)[0]
            if isinstance(value, tuple) and 0 < len(value) <= _LONGEST:
                if all(_fits(item, kind, name) for item in value):
                    return True
        elif option is int:
            least = 0 if name in _FROM_ZERO else 1
            if type(value) is int and least <= value <= _LARGEST:
                return True
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                inside = abs(value) <= _LARGEST_SCALE  # which neither NaN nor infinity is
                return inside and (value > 0 or name not in _ABOVE_ZERO)
        elif option is str:
            if isinstance(value, str) and len(value) <= _LONGEST_NAME:
                return True
        elif dataclasses.is_dataclass(option):
            if isinstance(value, Mapping):  # which checks its own fields
                return True
        elif isinstance(value, option):
            return True
    return False


def _expected(hint: Any, name: str) -> str:
    words = []
    for option in _options(hint):
        if get_origin(option) is tuple:
            words.append(f"a list of 1 to {_LONGEST}, each {_expected(get_args(option)[0], name)}")
        elif option is int:
            words.append(f"a whole number from {int(name not in _FROM_ZERO)} to {_LARGEST}")
        elif option is float and name in _ABOVE_ZERO:
            words.append("a number above 0")
        elif dataclasses.is_dataclass(option):
            words.append("an object")
        elif option in _WORDS:
            words.append(_WORDS[option])
    return " or ".join(words)


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
