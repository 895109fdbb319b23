"""What every adapter shares: its parameters' type, its identity, and its file."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from styledrop_jax import tree
from styledrop_jax.errors import UserError

_FORMAT = 1
# One metadata key with one JSON string: safetensors writes several keys in a random order, so the same adapter would
# not be the same bytes.
_METADATA = "styledrop_jax"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class AdapterParam(nnx.Param):
    """A weight of an adapter: what trains while every other `nnx.Param` is frozen.

    Contract: an adapter whose `AdapterParam`s are all zero changes nothing, exactly.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What builds one kind of adapter, as its file records it. Fields are what JSON can hold."""

    kind: ClassVar[str]

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        """Sets fresh adapters into `module`, in place of any that were there; touches no weight.

        Args:
            module: a denoiser or a text tower.
            rngs: the `params` stream initialises what is not zero at first.

        Raises:
            UserError: the module has no place for them.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What `save_adapter` records; `from_dict` reads it."""
        return {"adapter": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config of an `AdapterFile`; UserError if it describes another kind of adapter."""
        fields = dict(fields)
        if (kind := fields.pop("adapter", None)) != cls.kind:
            raise UserError(f"adapter: {kind!r}, expected {cls.kind!r}")
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in fields if name not in names]:
            expected = ", ".join(names) or "nothing more"
            raise UserError(
                f"adapter: its config does not fit (found {', '.join(unknown)}, expected {expected})"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(f"adapter: its config does not fit ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """What trains of a pipeline; whatever is None stays as it is.

    Attributes:
        denoiser: the adapter in the denoiser. text: the adapter in the text tower.
        words: new words of the text tower, a `textual_inversion.Config`.
    """

    denoiser: AdapterConfig | None = None
    text: AdapterConfig | None = None
    words: Any = None

    def to_dict(self) -> dict[str, Any]:
        """What an adapter file records; `trainable.from_dict` reads it."""
        parts = {"denoiser": self.denoiser, "text": self.text, "words": self.words}
        return {name: part and part.to_dict() for name, part in parts.items()}

    @property
    def trains_text(self) -> bool:
        """Whether features of prompts change while it trains."""
        return self.text is not None or self.words is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter, as the registry holds it.

    Attributes:
        settings: the dataclass of its fields of `config.round_N.adapter`.
        config: what its file records, and what attaches it.
        trains: (its settings, the method's identifiers) → what trains.
    """

    settings: type
    config: type[AdapterConfig]
    trains: Callable[[Any, Sequence[str]], Trainable]


def identity(state: Any) -> Any:
    """The state, of the same structure, that makes the adapter an exact identity: the branch with the adapter off."""
    return jax.tree.map(jnp.zeros_like, state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        path: where it was read from.
        tensors: dotted NNX path → array.
        base_name: the base model it was trained on. base_hash: the hash of that model's weights.
        config: what builds the adapter, e.g. `styledrop.Config.to_dict()`.
        round: which round of training it comes from, from 1.
        extra: anything else that was recorded.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    base_name: str
    base_hash: str
    config: Mapping[str, Any]
    round: int
    extra: Mapping[str, Any]


def save_adapter(
    path: Path | str,
    state: Any,
    *,
    base_name: str,
    base_hash: str,
    config: Mapping[str, Any],
    round: int,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter's state as safetensors named by dotted NNX path; the same state gives the same bytes.

    Written under a temporary name and renamed, so that no half-written file is ever found. See `AdapterFile` for the
    fields; `config` and `extra` hold what JSON can.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in tree.flatten(state).items()}
    metadata = {
        "format": _FORMAT,
        "base_name": base_name,
        "base_hash": base_hash,
        "config": dict(config),
        "round": round,
        "extra": dict(extra or {}),
    }
    metadata["digest"] = _digest(metadata, tensors)
    data = save(tensors, metadata={_METADATA: json.dumps(metadata, sort_keys=True)})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot write the adapter ({error.strerror})") from None


def load_adapter(path: Path | str, *, base_hash: str | None = None) -> AdapterFile:
    """Reads an adapter file. Only safetensors are read: nothing in the file is ever executed.

    Args:
        path: what `save_adapter` wrote.
        base_hash: the hash of the base model it will be used on; None skips that check.

    Raises:
        UserError: no such file, a pickle, not an adapter of this package, a corrupted or truncated file, or an adapter
            of another base model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such adapter file")
    if path.suffix in _PICKLES:
        raise UserError(
            f"{path}: a {path.suffix} file may be a pickle, which is never opened; expected .safetensors"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file, or cut short ({error}); pickles are never opened"
        ) from None
    if text is None:
        raise UserError(f"{path}: a safetensors file, but not an adapter that styledrop_jax wrote")
    adapter = _parse(path, text, tensors)
    if base_hash is not None and adapter.base_hash != base_hash:
        raise UserError(
            f"{path}: trained on base model {adapter.base_name} ({adapter.base_hash}), "
            f"but this one has hash {base_hash}"
        )
    return adapter


def restore(state: Any, adapter: AdapterFile) -> Any:
    """`state` with every array replaced by the file's tensor of that name, in the state's dtype.

    Args:
        state: the adapter's `nnx.State`, pure or not; its arrays may be shape structs.
        adapter: from `load_adapter`.

    Raises:
        UserError: lists every missing, unexpected and misshapen tensor.
    """
    expected = {name: leaf.shape for name, leaf in tree.flatten(state).items()}
    found = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    if problems := tree.differences(found, expected):
        raise UserError(
            f"{adapter.path} does not fit, {len(problems)} tensors differ: " + "; ".join(problems)
        )

    def fill(path: tuple, leaf: Any) -> jax.Array:
        # A state that still has its variables ends each path with the attribute of the variable.
        name = tree.path_name(
            tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        )
        return jnp.asarray(adapter.tensors[name], leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, state)


def _parse(path: Path, text: str, tensors: dict[str, np.ndarray]) -> AdapterFile:
    try:
        metadata = json.loads(text)
        digest = metadata.pop("digest")
        intact = digest == _digest(metadata, tensors)
        if (version := metadata.pop("format")) != _FORMAT:
            raise UserError(
                f"{path}: adapter format {version}, expected {_FORMAT}; update styledrop_jax"
            )
        adapter = AdapterFile(path=path, tensors=tensors, **metadata)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: its metadata is corrupted; expected what styledrop_jax writes"
        ) from None
    if not intact:
        raise UserError(
            f"{path}: corrupted, its content does not match the checksum written with it"
        )
    return adapter


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the metadata and the tensors' names, dtypes, shapes and values."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
