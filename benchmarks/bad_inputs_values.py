"""What bad inputs are made of: values that nothing expects, and how they get into nested data."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

VALUES: dict[str, Any] = {
    "null": None,
    "minus one": -1,
    "a billion": 10**9,
    "400 digits": 10**400,
    "a half": -0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "1e300": 1e300,
    "true": True,
    "text": "x",
    "a million letters": "x" * 10**6,
    "a zero byte": "a\0b",
    "half a letter": "\ud800",
    "two lines": "a\nb",
    "an empty list": [],
    "a list of null": [None],
    "a hundred thousand numbers": [0] * 10**5,
    "an object": {"a": 1},
    "levels": functools.reduce(lambda inner, _: [inner], range(300), []),
}


def paths(tree: Any, start: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to every value of nested data, those of branches too."""
    inner = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in inner:
        yield (*start, key)
        if isinstance(value, Mapping | list):
            yield from paths(value, (*start, key))


def put(tree: Any, keys: Sequence[Any], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value
