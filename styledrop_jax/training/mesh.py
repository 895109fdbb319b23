"""Where arrays live when there are several devices.

The mesh has two axes. A batch is cut along both of them. Large weights, their gradients and their
optimiser's state are cut along `fsdp` (fully sharded data parallelism: ZeRO 1910.02054, stage 3):
a device holds a part of each, and is sent the others when it computes with them. All else is whole
on every device.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from styledrop_jax.errors import UserError
from styledrop_jax.settings import setting

AXES = ("data", "fsdp")
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # A step looks rows of these up: a table that is cut by rows would be sent around for it.
    (r"(targets|places|words)\.\d+", PartitionSpec()),
    (r"(.+\.)?embedding", PartitionSpec(None, "fsdp")),
)
"""Which arrays are cut how: the first whose pattern a dotted path matches in full, if that divides.

For all others the size decides: see `spec`.
"""
_KINDS = (AxisType.Auto,) * len(AXES)
_SMALL = 2**16  # numbers: what is smaller is not worth sending


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How many devices share the work, and how."""

    data: int = setting(
        0, "parts of a batch, beside those of fsdp; 0 is as many as there are devices for", low=0
    )
    fsdp: int = setting(
        1, "devices that large weights and their optimiser's state are spread over", low=1
    )


def make(settings: MeshSettings | None = None) -> Mesh:
    """The mesh of these devices, those of all processes; all of them along `data` by default.

    Raises:
        UserError: there are not enough devices, or some of a process would have no part.
    """
    all_of_them = jax.process_count() > 1
    sides = _sides(settings or MeshSettings(), jax.device_count(), all_of_them=all_of_them)
    return jax.make_mesh(sides, AXES, _KINDS, devices=jax.devices()[: math.prod(sides)])


def imagined(settings: MeshSettings, count: int) -> AbstractMesh:
    """The mesh of `count` devices that need not be there: arrays on it are shapes.

    Raises:
        UserError: the settings ask for another number of devices.
    """
    return AbstractMesh(_sides(settings, count, all_of_them=True), AXES, _KINDS)


def _sides(asked: MeshSettings, count: int, *, all_of_them: bool) -> tuple[int, int]:
    """How many of `count` devices are along each axis, if need be all of them."""
    if asked.fsdp > count or (not asked.data and count % asked.fsdp):
        raise UserError(
            f"config.mesh.fsdp: found {asked.fsdp}, expected a divisor of {count}, "
            "the devices that there are"
        )
    data = asked.data or count // asked.fsdp
    used = data * asked.fsdp
    if used > count or (used < count and all_of_them):
        raise UserError(
            f"config.mesh.data: found {data}, which with fsdp {asked.fsdp} is {used} devices; "
            f"expected {count}, the devices that there are"
        )
    return data, asked.fsdp


def fitting(settings: MeshSettings) -> MeshSettings:
    """The settings, or the defaults where they ask for other devices than there are."""
    try:
        make(settings)
    except UserError:
        return MeshSettings()
    return settings


def of(tree: Any) -> Mesh:
    """The mesh that the arrays of a tree lie on; of the first device alone if on none."""
    for leaf in jax.tree.leaves(tree):
        sharding: Any = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return make(MeshSettings(data=1))


def used(mesh: Mesh) -> contextlib.AbstractContextManager:
    """The context in which programs run: kernels, which XLA cannot cut, learn of the devices."""
    return contextlib.nullcontext() if mesh.size == 1 else jax.set_mesh(mesh)


def spec(name: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How the array at dotted path `name` is cut over `fsdp` devices.

    Where no rule says it, a large array is cut along its longest axis that divides.
    """
    if fsdp == 1:
        return PartitionSpec()
    for pattern, rule in RULES:
        if re.fullmatch(pattern, name) and _divides(shape, rule, fsdp):
            return rule
    if np.prod(shape) < _SMALL:
        return PartitionSpec()
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, "fsdp")


def _divides(shape: tuple[int, ...], rule: PartitionSpec, fsdp: int) -> bool:
    fits = len(shape) >= len(rule)
    return fits and all(size % fsdp == 0 for size, axis in zip(shape, rule, strict=False) if axis)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A `NamedSharding` for each array, or shape, of a tree of weights."""

    def of_leaf(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree of weights, the same on every process, where they belong."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def placer() -> Callable[[str, np.ndarray], jax.Array] | None:
    """What puts one weight after another, by its dotted path, where it belongs on the devices in
    use; None if that is one.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.size < 2:  # 0 where none is set
        return None

    def put(name: str, array: np.ndarray) -> jax.Array:
        return _put(array, NamedSharding(mesh, spec(name, array.shape, mesh.shape["fsdp"])))

    return put


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and (x.sharding == sharding or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    own = np.asarray(x)
    return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])


def shard(batches: Any, mesh: Mesh, axis: int = 1) -> Any:
    """Arrays, the same on every process, cut along an axis, [k, b, …] along b; whole where it does
    not divide.
    """
    if mesh.size == 1:
        return batches

    def put(x: Any) -> jax.Array:
        even = x.shape[axis] % mesh.size == 0
        return _put(x, NamedSharding(mesh, _along(axis) if even else PartitionSpec()))

    return jax.tree.map(put, batches)


def apart(compute: Callable[..., Any], axes: Sequence[Any]) -> Callable[..., Any]:
    """`compute` inside a program, each of the devices in use on its own examples, with all weights:
    these are all that devices send each other, once.

    Left to itself XLA exchanges activations where weights are cut, or where a `vmap` is joined with
    the batch. On one device, and where the examples do not divide, it is `compute` itself.

    Args:
        compute: returns a tree of arrays [b, …].
        axes: for each of its arguments where the examples of its arrays are; None is nowhere. A
            tuple of these for a tuple.
    """

    def run(*arguments: Any) -> Any:
        size = jax.sharding.get_abstract_mesh().size  # 0 where none is set
        counts = jax.tree.leaves(jax.tree.map(_count, tuple(axes), arguments, is_leaf=_is_none))
        if size < 2 or any(count % size for count in counts):
            return compute(*arguments)
        specs = jax.tree.map(_along, tuple(axes), is_leaf=_is_none)
        parts = PartitionSpec(AXES)
        return jax.shard_map(compute, in_specs=specs, out_specs=parts, check_vma=False)(*arguments)

    return run


def _is_none(x: Any) -> bool:
    return x is None


def _along(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXES)


def _count(axis: int | None, tree: Any) -> list[int]:
    """The examples of each array of a tree."""
    return [] if axis is None else [x.shape[axis] for x in jax.tree.leaves(tree)]


def fetch(tree: Any) -> Any:
    """NumPy arrays, whole on every process, of arrays that may be cut over several."""

    def get(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(get, tree)


def rounded(count: int, mesh: Mesh | AbstractMesh) -> int:
    """`count` examples, or a few more that the devices share evenly."""
    return -(-count // mesh.size) * mesh.size


def in_chunks(compute: Callable[[Any], Any], rows: Any, size: int, mesh: Mesh) -> Any:
    """What `compute` makes of rows, a tree of arrays [n, …]: a tree of NumPy arrays [n, …], `size`
    rows at a time.

    The last chunk is padded with its own last row: one compiled program for any n. The devices
    share each chunk.
    """
    size = rounded(size, mesh)
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for start in range(0, count, size):
        places = np.minimum(np.arange(start, start + size), count - 1)
        chunk = jax.tree.map(lambda x: x[places], rows)  # noqa: B023
        if mesh.size > 1:
            cut = NamedSharding(mesh, PartitionSpec(AXES))
            chunk = jax.tree.map(functools.partial(_put, sharding=cut), chunk)
        with used(mesh):
            parts.append(fetch(compute(chunk)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
