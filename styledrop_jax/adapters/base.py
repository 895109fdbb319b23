"""What every adapter shares: its parameters' type, its identity, and its file."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from styledrop_jax import tree
from styledrop_jax.errors import UserError, few, shown
from styledrop_jax.io import fp8
from styledrop_jax.io.files import write_bytes
from styledrop_jax.io.paths import check_file, shown_path
from styledrop_jax.io.pretrained import TO_FILL, check_count, check_finite
from styledrop_jax.models.config_json import known_fields, require_fields

_FORMAT = 1
# One metadata key with one JSON string: safetensors writes several keys in a random order, and then
# the same adapter would not be the same bytes.
METADATA = "styledrop_jax"
_RECORDED = {"base_name": str, "base_hash": str, "config": dict, "round": int, "extra": dict}
_MOST_ROUNDS = 1000
_UNFIT = "adapter: its config does not fit"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class AdapterParam(nnx.Param):
    """A weight of an adapter: what trains while every other `nnx.Param` is frozen.

    Contract: an adapter whose `AdapterParam`s are all zero changes nothing, exactly.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What builds one kind of adapter, as its file records it. Fields are what JSON can hold.

    Attributes:
        kind: its name.
        exact: whether it needs the base's weights in float32, whatever the model computes in,
            because it trains them or takes them apart.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False

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
        kind = fields.pop("adapter", None)
        if kind != cls.kind:
            raise UserError(f"adapter: {shown(kind)}, expected {cls.kind!r}")
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = set(fields) - set(names)
        if unknown:
            found = few(sorted(unknown))
            expected = ", ".join(names) or "nothing more"
            raise UserError(f"{_UNFIT} (found {found}, expected {expected})")
        known = known_fields(cls, fields, source=_UNFIT)
        require_fields(cls, known, source=_UNFIT)
        try:
            return cls(**known)
        except TypeError as error:
            raise UserError(f"{_UNFIT} ({error})") from None


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
        found = {"denoiser": None, "text": None, "words": None}
        for name in found:
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_dict()
        return found

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


def fresh(
    shape: tuple[int, ...], rngs: nnx.Rngs, initial: nnx.Initializer | None = None
) -> jax.Array | jax.ShapeDtypeStruct:
    """A new weight in float32, zero without `initial`; its shape alone if `rngs` is `TO_FILL`, as
    nothing is compiled for that.
    """
    if rngs is TO_FILL:
        return jax.ShapeDtypeStruct(shape, jnp.float32)
    return jnp.zeros(shape) if initial is None else initial(rngs.params(), shape)


def identity(state: Any) -> Any:
    """The state of the same structure that makes the adapter an exact identity: adapter off."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)


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
    """Writes an adapter's state as safetensors named by dotted NNX path.

    The same state gives the same bytes. See `AdapterFile` for the fields; `config` and `extra` hold
    what JSON can.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {}
    for name, leaf in tree.flatten(state).items():
        tensors[name] = np.ascontiguousarray(leaf)
    metadata = {
        "format": _FORMAT,
        "base_name": base_name,
        "base_hash": base_hash,
        "config": dict(config),
        "round": round,
        "extra": dict(extra or {}),
    }
    metadata["digest"] = _digest(metadata, tensors)
    write_bytes(path, save(tensors, metadata={METADATA: json.dumps(metadata, sort_keys=True)}))


def load_adapter(path: Path | str, *, base_hash: str | None = None) -> AdapterFile:
    """Reads an adapter file. Only safetensors are read: nothing in the file is ever executed.

    Args:
        path: what `save_adapter` wrote.
        base_hash: the hash of the base model it will be used on; None skips that check.

    Raises:
        UserError: no such file, a pickle, not an adapter of this package, a corrupted or truncated
            file, or an adapter of another base model.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    text = metadata.get(METADATA)
    if text is None:
        raise UserError(f"{path}: a safetensors file, but not an adapter that styledrop_jax wrote")
    adapter = _parse(path, text, tensors)
    if base_hash is not None and adapter.base_hash != base_hash:
        raise UserError(
            f"{path}: trained on base model {adapter.base_name} ({adapter.base_hash[:12]}), "
            f"but this one has hash {base_hash[:12]}"
        )
    return adapter


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a small safetensors file, by name, and its metadata.

    Raises:
        UserError: no such file, a pickle, a damaged or truncated file, or whole numbers, NaN or
            infinity in it.
    """
    check_file(path)
    if path.suffix in _PICKLES:
        raise UserError(
            f"{path}: a {path.suffix} file may be a pickle, which is never opened; "
            "expected .safetensors"
        )
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()
            check_count(path, len(names))
            for name in names:
                tensors[name] = fp8.tensor(file, path, name)
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file, or cut short ({shown(str(error))}); "
            "pickles are never opened"
        ) from None
    for name, tensor in tensors.items():
        if tensor.size > 1 and tensor.dtype.kind in "biu":  # a strength may be a whole number
            raise UserError(
                f"{shown_path(path)}: tensor {shown(name, 120)} is of {tensor.dtype}, expected "
                "floating-point numbers"
            )
        check_finite(shown_path(path), name, tensor)
    return tensors, metadata


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def restore(state: Any, adapter: AdapterFile) -> Any:
    """`state` with every array replaced by the file's tensor of that name, in the state's dtype.

    Args:
        state: the adapter's `nnx.State`, pure or not; its arrays may be shape structs.
        adapter: from `load_adapter`.

    Raises:
        UserError: a tensor is missing, unexpected or misshapen; names the first and counts them.
    """
    expected = _shapes(tree.flatten(state))
    found = _shapes(adapter.tensors)
    problems = tree.differences(found, expected)
    if problems:
        raise UserError(
            f"{adapter.path}: does not fit, {len(problems)} tensors differ: {few(problems)}"
        )

    return filled(state, adapter.tensors)


def filled(state: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """`state` with every array replaced by the tensor of its dotted path, in the state's dtype
    and on its devices.
    """

    def fill(path: tuple, leaf: Any) -> jax.Array:
        # A state that still has its variables ends each path with the attribute of the variable.
        keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        tensor = tensors[tree.path_name(tuple(keys))]
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return jnp.asarray(tensor, leaf.dtype)
        own = tensor.astype(leaf.dtype)
        return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])

    return jax.tree_util.tree_map_with_path(fill, state)


def _parse(path: Path, text: str, tensors: dict[str, np.ndarray]) -> AdapterFile:
    try:
        metadata = json.loads(text)
        digest = metadata.pop("digest")
        intact = digest == _digest(metadata, tensors)
        version = metadata.pop("format")
        if version != _FORMAT:
            raise UserError(
                f"{path}: adapter format {version}, expected {_FORMAT}; update styledrop_jax"
            )
        adapter = AdapterFile(path=path, tensors=tensors, **metadata)
        for field, kind in _RECORDED.items():
            if type(getattr(adapter, field)) is not kind:
                raise TypeError(field)
        if not 0 <= adapter.round <= _MOST_ROUNDS:
            raise ValueError("round")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            f"{path}: its metadata is corrupted; expected what styledrop_jax writes"
        ) from None
    if not intact:
        raise UserError(
            f"{path}: corrupted, its content does not match the checksum written with it"
        )
    _check_sizes(adapter)
    return adapter


def _check_sizes(adapter: AdapterFile) -> None:
    """Refuses a config that asks for more than the file holds, before any of it is built."""
    longest = max((max(x.shape, default=1) for x in adapter.tensors.values()), default=1)
    values: list[tuple[str, Any]] = [("config", adapter.config)]
    while values:
        name, value = values.pop()
        if isinstance(value, Mapping):
            values += value.items()
        elif isinstance(value, list):
            values += [(name, item) for item in value]
        elif type(value) is int and name != "alpha" and not 0 <= value <= longest:
            raise UserError(
                f"{shown_path(adapter.path)}: its {shown(name)} is {shown(value)}, but the longest "
                f"axis of its tensors is {longest}"
            )


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the metadata and the tensors' names, dtypes, shapes and values."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
