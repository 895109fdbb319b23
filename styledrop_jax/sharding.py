"""Where arrays live when there are several devices: weights on all of them, a batch cut between them."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, devices: Mesh) -> Any:
    """Every array whole on every device."""
    return jax.device_put(tree, NamedSharding(devices, PartitionSpec()))


def shard_batches(batches: Any, devices: Mesh) -> Any:
    """Arrays [steps, b, …], the same on every process, cut along b; whole where b does not divide."""

    def put(x):
        spec = PartitionSpec(None, "data") if x.shape[1] % devices.size == 0 else PartitionSpec()
        sharding = NamedSharding(devices, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batches)
