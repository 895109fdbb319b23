"""What a base model is, whatever files hold it: a hash of all that decides what it computes.

Weights count by their names, types, shapes and values, so that a file that was saved anew with
another header, or split into shards, is the same model. Reading gigabytes takes seconds, so the
hash of each component's weights is kept in the user's cache folder, for as long as the files have
the same sizes and times of change.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from styledrop_jax import cache
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_json
from styledrop_jax.io.pretrained import Tensors

_KEPT = 1000  # entries of the cache; the oldest go first
_NOT_COMPUTED_WITH = ("version", "truncation", "padding")  # of a tokenizer.json; see `tokenize`


@dataclasses.dataclass(frozen=True)
class Part:
    """One component of a base model: its config, a frozen dataclass, and its weights."""

    config: Any
    tensors: Tensors


def of_base(
    parts: Mapping[str, Part],
    tokenizer: PreTrainedTokenizerBase,
    schedule: Any = None,
    pair: Any = None,
) -> str:
    """The hash of a base model: 64 hexadecimal digits.

    Args:
        parts: {name: component}, such as the denoiser, the autoencoder and the text tower.
        tokenizer: the text tower's.
        schedule: the noise schedule, a frozen dataclass; None for a model without one.
        pair: how two text towers read one text, likewise.
    """
    facts: dict[str, Any] = {"tokenizer": _of_tokenizer(tokenizer)}
    for name, part in parts.items():
        facts[name] = [_changed(part.config), of_weights(part.tensors)]
    for name, settings in (("schedule", schedule), ("pair", pair)):
        if settings is not None:
            facts[name] = _changed(settings)
    return _of_json(facts)


def of_merged(base_hash: str, loras: Sequence[Any]) -> str:
    """The hash of a base model with adapters merged into it: of its own, and of what is known of
    each, plain data."""
    return _of_json([base_hash, list(loras)])


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """The hash of arrays by their names, types, shapes and values."""
    return _hash(arrays)


def of_weights(tensors: Tensors) -> str:
    """The hash of a component's tensors, from the cache if the files are those of that time."""
    path = cache_file()
    key = _key(tensors)
    known = _read(path)
    if key in known:
        return known[key]
    found = _hash(tensors)
    _write(path, {**_read(path), key: found})  # another process may have written meanwhile
    return found


def cache_file() -> Path:
    """`identity.json` in the user's cache folder."""
    return cache.folder() / "identity.json"


def _hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Reads one tensor at a time."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        shape = list(array.shape)
        while shape and shape[-1] == 1:  # a linear layer may be stored as a 1×1 convolution
            shape.pop()
        digest.update(json.dumps([name, array.dtype.name, shape, array.nbytes]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _key(tensors: Tensors) -> str:
    """Changes when a file is replaced, moved or touched, or its tensors go by other names."""
    files = []
    for file in sorted({place.file for place in tensors.places.values()}):
        real = file.resolve()
        status = real.stat()
        files.append([str(real), status.st_size, status.st_mtime_ns])
    names = []
    for name in sorted(tensors):
        place = tensors.places[name]
        names.append([name, place.file.name, *place[1:]])
    return _of_json([files, names])


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    assert isinstance(
        tokenizer, PreTrainedTokenizerFast
    )  # as all are that `load_tokenizer` returns
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in _NOT_COMPUTED_WITH:
        rules.pop(name, None)
    return _of_json([rules, tokenizer.pad_token_id])


def _changed(settings: Any) -> dict[str, Any]:
    """The fields that differ from their defaults: a new field does not make old models others."""
    changed = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            changed[field.name] = value
    return changed


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """The cache; empty where there is none or it is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(known, dict) and all(isinstance(x, str) for x in known.values())
    return known if is_whole else {}


def _write(path: Path, known: Mapping[str, str]) -> None:
    """Without a cache the next command reads the weights again, and no more than that."""
    if not path.is_absolute():  # a user without a home
        return
    kept = dict(list(known.items())[-_KEPT:])
    with contextlib.suppress(UserError, OSError):
        write_json(path, kept)
