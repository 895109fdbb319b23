"""Where arrays live when there are several devices: whole weights on each, a part of the batch."""

import contextlib
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def _mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def in_use() -> contextlib.AbstractContextManager:
    """The context in which programs run: kernels, which XLA cannot cut, learn of the devices."""
    return contextlib.nullcontext() if jax.device_count() == 1 else jax.set_mesh(_mesh())


def replicate(tree: Any) -> Any:
    """Every array whole on every device."""
    if jax.device_count() == 1:
        return tree
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def shard(batches: Any) -> Any:
    """Arrays [k, b, …], the same on every process, cut along b; whole where b does not divide."""
    if jax.device_count() == 1:
        return batches
    devices = _mesh()

    def put(x):
        spec = PartitionSpec(None, "data") if x.shape[1] % devices.size == 0 else PartitionSpec()
        sharding = NamedSharding(devices, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batches)
