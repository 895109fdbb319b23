"""The one rule engine between safetensors names and NNX paths, in both directions.

A checkpoint either fits a model exactly, or one error lists every tensor that is missing, unexpected or misshapen.
Only safetensors are read: nothing in a weight file is ever executed.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.io import single_file
from styledrop_jax.models.rules import Layout, Rules

_PERMUTATIONS: dict[Layout, tuple[int, ...]] = {
    "same": (),
    "linear": (1, 0),
    "conv": (3, 2, 0, 1),
    "conv_transpose": (2, 3, 0, 1),
}
_FLOATS = (
    "F16",
    "BF16",
    "F32",
    "F64",
)  # quantised weights (I8, F8_E4M3) mean nothing without their scales


def _to_file(array: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == "1x1":
        return array.T[:, :, None, None]
    if layout == "row":
        return array[None, None, None, :]
    permutation = _PERMUTATIONS[layout]
    return array.transpose(permutation) if permutation else array


def _from_file(array: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == "1x1":
        return array[:, :, 0, 0].T
    if layout == "row":
        return array[0, 0, 0]
    permutation = _PERMUTATIONS[layout]
    return array.transpose(np.argsort(permutation)) if permutation else array


def _file_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return _to_file(np.broadcast_to(np.int8(0), shape), layout).shape


def _names(module: nnx.Module, rules: Rules) -> dict[str, tuple[tuple, Layout, tuple[int, ...]]]:
    """{tensor name: (NNX path, layout, shape in the file)} for every parameter of `module`."""
    names = {}
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name, layout = rules.name_of(tree.path_name(path))
        names[name] = (path, layout, _file_shape(param.shape, layout))
    return names


def shapes(module: nnx.Module, rules: Rules) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of the checkpoint that `module` (abstract is fine) reads and writes."""
    return {name: shape for name, (_, _, shape) in _names(module, rules).items()}


class _Place(NamedTuple):
    """Of a tensor: its file, its name there, its shape, and which third of the stored rows it is, None for all."""

    file: Path
    stored: str
    shape: tuple[int, ...]
    third: int | None = None


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or more safetensors files, read one at a time on access.

    Args:
        files: safetensors files.
        rules: whose renames and ignored names are applied to the files' own names.

    Raises:
        UserError: a file is missing, is not safetensors, is cut short, or holds weights that are not plain floats.
    """

    def __init__(self, files: list[Path], rules: Rules):
        self._where: dict[str, _Place] = {}
        for file in files:
            with open_safetensors(file) as handle:
                for stored in handle.keys():  # noqa: SIM118  a safetensors handle is not a mapping
                    name = stored
                    for pattern, replacement in rules.renames:
                        name = re.sub(pattern, replacement, name)
                    if re.fullmatch(rules.ignored, name):
                        continue
                    part = handle.get_slice(stored)
                    if (dtype := part.get_dtype()) not in _FLOATS:
                        raise UserError(
                            f"{file}: {stored} is {dtype}, expected one of {', '.join(_FLOATS)}"
                        )
                    self._where[name] = _Place(file, stored, tuple(part.get_shape()))

    @classmethod
    def of_single_file(cls, file: Path) -> dict[str, Self]:
        """The components of a Stable Diffusion checkpoint in one file, by the names of the diffusers layout.

        Returns:
            {"unet" | "vae" | "text_encoder": its tensors}

        Raises:
            UserError: it is not such a file, or not readable.
        """
        whole = cls([file], Rules(rules=(), ignored=single_file.IGNORED))._where
        components = {}
        for component, sources in single_file.split(list(whole), source=str(file)).items():
            components[component] = tensors = cls([], Rules(rules=()))
            for name, (stored, third) in sources.items():
                shape = whole[stored].shape
                shape = shape if third is None else (shape[0] // 3, *shape[1:])
                tensors._where[name] = _Place(file, stored, shape, third)
        return components

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored, shape, third = self._where[name]
        with open_safetensors(file) as handle:
            if third is None:
                return handle.get_tensor(stored)
            return handle.get_slice(stored)[third * shape[0] : (third + 1) * shape[0]]

    def __iter__(self):
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} without reading any data."""
        return {name: place.shape for name, place in self._where.items()}


def open_safetensors(file: Path):
    """`safe_open` for NumPy, with a one-line UserError in place of a parser's exception."""
    if not file.is_file():
        raise UserError(f"{file}: no such weight file")
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); pickles are never opened"
        ) from None


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model folder: one file, or the shards that its index names.

    Args:
        folder: e.g. `<model>/transformer`.
        stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers). A `.fp16` variant is taken when there is
            no other.

    Raises:
        UserError: no safetensors there (a pickle alone is named and refused), or a shard is missing.
    """
    for variant in ("", ".fp16"):
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            try:
                shards = sorted(
                    set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{index}: not an index of shards, expected JSON with a weight_map"
                ) from None
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(
                    f"{index}: shards not found: {', '.join(missing)}; finish the download"
                )
            return [folder / shard for shard in shards]
        if (single := folder / f"{stem}{variant}.safetensors").is_file():
            return [single]
    pickles = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
    hint = f"; {pickles[0]} is a pickle and is never opened" if pickles else ""
    raise UserError(f"{folder}: expected {stem}.safetensors{hint}")


def _viewed(shape: tuple[int, ...], layout: Layout, expected: tuple[int, ...]) -> tuple[int, ...]:
    """`expected` for a linear layer stored as a 1×1 convolution or the reverse, which hold the same numbers."""
    same = layout in ("linear", "1x1") and shape[:2] == expected[:2] and set(shape[2:]) <= {1}
    return expected if same else shape


def load(
    build: Callable[[], nnx.Module],
    tensors: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    source: str,
    dtype=jnp.float32,
) -> nnx.Module:
    """Builds a module without initialising it and fills every parameter from `tensors`, one tensor at a time.

    A linear layer may be stored as a 1×1 convolution and the reverse.

    Args:
        build: constructs the module; run abstractly, so no memory is spent on random weights.
        tensors: name → array, e.g. a `Tensors` or a plain dict.
        rules: the model's naming.
        source: the file or folder, for errors.
        dtype: what the parameters are stored as in memory.

    Raises:
        UserError: lists every missing, unexpected and misshapen tensor.
    """
    module = nnx.eval_shape(build)
    names = _names(module, rules)
    found = (
        tensors.shapes()
        if isinstance(tensors, Tensors)
        else {name: a.shape for name, a in tensors.items()}
    )
    found = {
        name: _viewed(shape, *names[name][1:]) if name in names else shape
        for name, shape in found.items()
    }
    if problems := tree.differences(found, {name: shape for name, (_, _, shape) in names.items()}):
        raise UserError(
            f"{source} does not fit the model, {len(problems)} tensors differ: "
            + "; ".join(problems)
        )
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    filled = {
        path: jnp.asarray(_from_file(tensors[name].reshape(shape), layout), dtype)
        for name, (path, layout, shape) in names.items()
    }
    flat = [(path, param.replace(filled[path])) for path, param in nnx.to_flat_state(params)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), rest)


def export(module: nnx.Module, rules: Rules, *, dtype=np.float32) -> dict[str, np.ndarray]:
    """{tensor name: array in the file's layout}: what the reference library loads."""
    params = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    return {
        name: _to_file(np.asarray(params[path][...]), layout).astype(dtype, order="C")
        for name, (path, layout, _) in _names(module, rules).items()
    }


def save(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file under a temporary name and renames it: never half-written.

    Raises:
        UserError: the disk is full or read-only, or writing is forbidden.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(
            path.parent.stat().st_mode & 0o666
        )  # safetensors leaves it to its owner alone
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:  # safetensors wraps what the disk says
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error})") from None


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()
