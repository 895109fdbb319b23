"""The one rule engine between safetensors names and NNX paths, in both directions.

A checkpoint either fits a model exactly, or one error says which tensors are missing, unexpected
or misshapen. Only safetensors are read: nothing in a weight file is ever executed.
"""

import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from styledrop_jax import tree
from styledrop_jax.errors import UserError, few, shown
from styledrop_jax.io import fp8, single_file
from styledrop_jax.io.files import read_object, write_by
from styledrop_jax.io.paths import check_file, shown_path
from styledrop_jax.models.rules import Layout, Rules

_Module = TypeVar("_Module", bound=nnx.Module)
_PERMUTATIONS: dict[Layout, tuple[int, ...]] = {
    "same": (),
    "linear": (1, 0),
    "conv": (3, 2, 0, 1),
    "conv_transpose": (2, 3, 0, 1),
}
# Quantised weights mean nothing without their scales.
_FLOATS = ("F16", "BF16", "F32", "F64", *fp8.DTYPES)
_VARIANTS = ("", ".fp16", ".bf16")  # of a weight file's name, the preferred first
MOST_TENSORS = 50_000  # of a file: the largest models have a few thousand
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


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


class _Slot(NamedTuple):
    """Where a tensor goes: the NNX path of its parameter, how the file lays it out, its shape
    there."""

    path: tuple
    layout: Layout
    shape: tuple[int, ...]


def _slots(module: nnx.Module, rules: Rules) -> dict[str, _Slot]:
    """{tensor name: slot} for every parameter of `module`."""
    slots = {}
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name, layout = rules.name_of(tree.path_name(path))
        stand_in = np.broadcast_to(np.int8(0), param.shape)  # takes no memory
        slots[name] = _Slot(path, layout, _to_file(stand_in, layout).shape)
    return slots


def shapes(module: nnx.Module, rules: Rules) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of the checkpoint that `module` (abstract is fine) reads and writes."""
    return {name: slot.shape for name, slot in _slots(module, rules).items()}


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        file: a safetensors file.
        stored: its name there.
        shape: of the tensor.
        third: which third of the stored rows it is; None for all.
        transposed: whether the stored tensor is its transpose.
    """

    file: Path
    stored: str
    shape: tuple[int, ...]
    third: int | None = None
    transposed: bool = False


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or more safetensors files, read one at a time on access.

    Args:
        files: safetensors files.
        rules: whose renames and ignored names are applied to the files' own names.

    Raises:
        UserError: a file is missing, is not safetensors, is cut short, or holds weights that are
            not plain floats or more of them than any model.
    """

    def __init__(self, files: Collection[Path], rules: Rules):
        self.places: dict[str, Place] = {}
        for file in files:
            self._add(file, rules)

    def _add(self, file: Path, rules: Rules) -> None:
        with open_safetensors(file) as handle:
            stored_names = handle.keys()
            check_count(file, len(stored_names))
            fp8.check_unscaled(file, stored_names)
            for stored in stored_names:
                name = rules.renamed(stored)
                if re.fullmatch(rules.ignored, name):
                    continue
                part = handle.get_slice(stored)
                dtype = part.get_dtype()
                if dtype not in _FLOATS:
                    expected = ", ".join(_FLOATS)
                    raise UserError(f"{file}: {stored} is {dtype}, expected one of {expected}")
                self.places[name] = Place(file, stored, tuple(part.get_shape()))

    @classmethod
    def of_single_file(cls, file: Path) -> dict[str, Self]:
        """The components of a Stable Diffusion checkpoint in one file, by the names of the
        diffusers layout.

        Returns:
            {"unet" | "vae" | "text_encoder" | "text_encoder_2": its tensors}

        Raises:
            UserError: it is not such a file, or not readable.
        """
        whole = cls([file], Rules(rules=(), ignored=single_file.IGNORED)).places
        components = {}
        for part, sources in single_file.split(list(whole), source=str(file)).items():
            components[part] = cls._at(whole, sources)
        return components

    @classmethod
    def of_autoencoder(cls, file: Path, rules: Rules) -> Self:
        """The autoencoder of Stable Diffusion in one file, alone or in a whole model.

        Args:
            file: whose names are those of the latent-diffusion code, or of the diffusers layout.
            rules: see `Tensors`.

        Raises:
            UserError: there is none in it, or it is not readable.
        """
        whole = cls([file], Rules(rules=(), ignored=single_file.IGNORED)).places
        found = cls._at(whole, single_file.autoencoder(list(whole), source=str(file)))
        found.places = {rules.renamed(name): place for name, place in found.places.items()}
        return found

    @classmethod
    def _at(cls, whole: Mapping[str, Place], sources: Mapping[str, single_file.Source]) -> Self:
        """The tensors that lie at `sources` in the one file of `whole`."""
        tensors = cls([], Rules(rules=()))
        for name, (stored, third, transposed) in sources.items():
            file, _, shape, *_ = whole[stored]
            if third is not None:
                shape = (shape[0] // 3, *shape[1:])
            if transposed:
                shape = shape[::-1]
            tensors.places[name] = Place(file, stored, shape, third, transposed)
        return tensors

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored, shape, third, transposed = self.places[name]
        with open_safetensors(file) as handle:
            tensor = fp8.tensor(handle, file, stored)
        if third is not None:
            tensor = tensor[third * shape[0] : (third + 1) * shape[0]]
        return tensor.T if transposed else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def check_count(file: Path, count: int) -> None:
    """UserError if a file holds more tensors than any model or adapter."""
    if count > MOST_TENSORS:
        raise UserError(
            f"{shown_path(file)}: holds {count:,} tensors, expected at most {MOST_TENSORS:,}"
        )


def check_finite(source: str, name: str, tensor: np.ndarray) -> None:
    """UserError if a tensor holds NaN or infinity: all that is computed with it would be lost."""
    if not _is_finite(tensor):
        raise UserError(
            f"{source}: tensor {shown(name, 120)} holds NaN or infinity, expected finite numbers"
        )


def _is_finite(tensor: np.ndarray) -> bool:
    if tensor.dtype not in (np.float16, jnp.bfloat16):
        return bool(np.isfinite(np.asarray(tensor, np.float32)).all())
    # By their bits, since NumPy widens such numbers one by one. The sign is the highest.
    infinity = np.asarray(np.inf, tensor.dtype).view(np.uint16)
    highest = tensor.view(np.int16).max(initial=0)
    lowest = tensor.view(np.uint16).max(initial=0)
    return bool(highest < infinity and lowest < infinity + 0x8000)


def open_safetensors(file: Path):
    """`safe_open` for NumPy, with a one-line UserError in place of a parser's exception."""
    check_file(file)
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
        stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers). A variant, `.fp16` or
            `.bf16`, is taken when there is no file without one.

    Raises:
        UserError: no safetensors there (a pickle alone is named and refused), or a shard is
            missing.
    """
    names = set()
    if os.path.isdir(folder):
        names = {path.name for path in folder.iterdir() if path.is_file()}
    chosen = choose_weights(names, stem, lambda index: folder / index, source=str(folder))
    return [folder / name for name in chosen if name.endswith(".safetensors")]


def choose_weights(
    names: Collection[str], stem: str, fetch: Callable[[str], Path], *, source: str
) -> list[str]:
    """Chooses the weight files of one variant among the names in a folder.

    Args:
        names: of the folder's files, here or elsewhere.
        stem: see `weight_files`.
        fetch: the name of an index of shards → that file on this machine.
        source: the folder, for errors.

    Returns:
        One file; or the index of shards and after it the shards.

    Raises:
        UserError: see `weight_files`.
    """
    incomplete = ""
    for variant in _VARIANTS:
        index = f"{stem}.safetensors.index{variant}.json"
        if index in names:
            shards = _shards(fetch(index))
            missing = sorted(set(shards).difference(names))
            if not missing:
                return [index, *shards]
            first = few(missing, joint=", ")
            incomplete = incomplete or f"{source}/{index}: shards not found: {first}"
        single = f"{stem}{variant}.safetensors"
        if single in names:
            return [single]
    if incomplete:
        raise UserError(f"{incomplete}; finish the download")
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    hint = f"; {pickles[0]} is a pickle and is never opened" if pickles else ""
    raise UserError(f"{source}: expected {stem}.safetensors{hint}")


def _shards(index: Path) -> list[str]:
    """The shards that an index names."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(
            f"{shown_path(index)}: weight_map is {shown(found)}, expected a file for each tensor"
        )
    return sorted(set(found.values()))


class _OneKey:
    """In place of `nnx.Rngs` where only shapes matter: one key for all.

    To count its keys, `nnx.Rngs` has JAX search the whole trace at each layer.
    """

    def params(self) -> jax.Array:
        return self._key

    @functools.cached_property
    def _key(self) -> jax.Array:
        with jax.ensure_compile_time_eval():  # that of all traces
            return jax.random.key(0)


ONE_KEY: Any = _OneKey()
TO_FILL: Any = _OneKey()
"""Beside that says that every weight is read from a file next: shapes are enough, outside of a
trace too."""


def load(
    build: Callable[[], _Module],
    tensors: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    source: str,
    dtype: jax.typing.DTypeLike = jnp.float32,
    place: Callable[[str, np.ndarray], jax.Array] | None = None,
) -> _Module:
    """Builds a module without initialising it and fills every parameter from `tensors`.

    One tensor is read, and put where it belongs, at a time. A linear layer may be stored as a 1×1
    convolution and the reverse.

    Args:
        build: constructs the module; run abstractly, so no memory is spent on random weights.
        tensors: name → array, e.g. a `Tensors` or a plain dict.
        rules: the model's naming.
        source: the file or folder, for errors.
        dtype: what the parameters are stored as in memory.
        place: puts the array of a dotted path on its devices; None: all on the first.

    Raises:
        UserError: tensors are missing, unexpected or misshapen (counts them and names the first),
            or hold what is no number.
    """
    try:
        module = nnx.eval_shape(build)
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{source}: its config describes no model ({shown(error, 120)})") from error
    slots = _slots(module, rules)
    _check_fit(tensors, slots, source)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    filled = {}
    for name, (path, layout, shape) in slots.items():
        tensor = tensors[name]
        check_finite(source, name, tensor)
        array = _from_file(tensor.reshape(shape), layout)
        array = array.astype(dtype)  # here, as JAX would compile it for each shape
        if place is None:
            filled[path] = jax.device_put(array)
        else:
            filled[path] = place(tree.path_name(path), array)
    flat = [(path, param.replace(filled[path])) for path, param in nnx.to_flat_state(params)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), rest)


def _check_fit(tensors: Mapping[str, np.ndarray], slots: Mapping[str, _Slot], source: str) -> None:
    found = {}
    for name in tensors:
        # The shapes of a `Tensors` are known without reading any data.
        shape = tensors.places[name].shape if isinstance(tensors, Tensors) else tensors[name].shape
        if name in slots and _holds_the_same(shape, slots[name]):
            shape = slots[name].shape
        found[name] = shape
    expected = {name: slot.shape for name, slot in slots.items()}
    if problems := tree.differences(found, expected):
        count = f"{len(problems)} tensors differ"
        raise UserError(f"{source} does not fit the model, {count}: {few(problems)}")


def _holds_the_same(shape: tuple[int, ...], slot: _Slot) -> bool:
    """Whether the shapes are of a linear layer and of a 1×1 convolution with the same numbers."""
    is_linear = slot.layout in ("linear", "1x1")
    return is_linear and shape[:2] == slot.shape[:2] and set(shape[2:]) <= {1}


def export(
    module: nnx.Module, rules: Rules, *, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """{tensor name: array in the file's layout}: what the reference library loads."""
    params = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    tensors = {}
    for name, (path, layout, _) in _slots(module, rules).items():
        array = _to_file(np.asarray(params[path][...]), layout)
        tensors[name] = array.astype(dtype, order="C")
    return tensors


def save(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file under a temporary name and renames it: never half-written.

    Raises:
        UserError: the disk is full or read-only, or writing is forbidden.
    """

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # which wraps what the disk says
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise UserError(f"{path}: cannot be written ({error})") from None
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        # safetensors leaves the file to its owner alone
        temporary.chmod(path.parent.stat().st_mode & 0o666)

    write_by(path, write)
