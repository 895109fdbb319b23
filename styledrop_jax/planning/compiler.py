"""What a program takes: by the compiler of a device, or as far as shapes alone tell."""

import contextlib
import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from styledrop_jax.pipelines.base import Compilable
from styledrop_jax.planning import hlo
from styledrop_jax.planning.devices import Device, chips
from styledrop_jax.training import mesh

# Nothing can be timed to choose a kernel, and some that would not be chosen do not compile.
_OF_PLATFORM: dict[str, dict[str, Any]] = {
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
}


class Cost(NamedTuple):
    """What one program takes of a chip.

    Attributes:
        arguments: bytes of weights, optimiser and batch, of a chip its own share.
        flops: XLA's count of the program as written, with the plain attention; the body of a loop
            once.
        temporaries: bytes beside the arguments; None if nothing compiled it.
        traffic: bytes that the main memory is read or written; None is not known.
        sent: bytes of the arrays that go between the chips, by what is done with them.
        seconds: that compiling took.
    """

    arguments: int
    flops: float
    temporaries: int | None = None
    traffic: float | None = None
    sent: Mapping[str, int] = MappingProxyType({})
    seconds: float = 0.0

    @property
    def memory(self) -> int:
        """Bytes, as far as they are known."""
        return self.arguments + (self.temporaries or 0)

    def bound(self, device: Device) -> float | None:
        """Seconds that the device takes at least for the body of the program's loop: at its peak,
        or for the traffic.
        """
        if device.peak is None or device.bandwidth is None:
            return None
        moved = (self.traffic or 0) / device.bandwidth / 1e12
        return max(self.flops / device.peak / 1e12, moved)


def estimated(program: Compilable, device: Device) -> Cost:
    """What is known without a compiler."""
    lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("cpu",))
    cost: Any = lowered.cost_analysis()
    return Cost(bytes_of(program.arguments), cost["flops"] / device.chips)


def compiled(program: Compilable, device: Device) -> Cost:
    """What the compiler of a device says.

    Raises:
        UserError: there is no such compiler here.
    """
    there = chips(device)
    known = estimated(program, device)
    start = time.monotonic()
    with contextlib.nullcontext() if there is None else mesh.used(there):
        lowered = program.function.lower(*_placed(program.arguments, there))
    platform = (device.described or {}).get("platform", "cpu")
    built = lowered.compile(compiler_options=_OF_PLATFORM.get(platform))
    memory = built.memory_analysis()
    text = built.as_text()
    return known._replace(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=float(hlo.moved(text)) if platform == "tpu" else None,
        sent={} if device.chips == 1 else hlo.sent(text),
        seconds=time.monotonic() - start,
    )


def _placed(arguments: tuple, there: Mesh | None) -> tuple:
    """The arguments on the chips that the compiler knows."""

    def place(leaf: Any) -> Any:
        if there is None or not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        spec = getattr(leaf.sharding, "spec", PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(there, spec))

    return jax.tree.map(place, arguments)


def bytes_of(arguments: Any) -> int:
    """Bytes of a tree of shapes, of a chip its own share."""
    total = 0
    for leaf in jax.tree.leaves(arguments):
        if hasattr(leaf, "dtype"):
            sharding = getattr(leaf, "sharding", None)
            own = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
            total += math.prod(own) * _width(leaf)
    return total


def _width(leaf: Any) -> int:
    """Bytes of one number; of a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return math.prod(jax.eval_shape(jax.random.key_data, leaf).shape[leaf.ndim :]) * 4
    return leaf.dtype.itemsize
