"""What a program takes: by the compiler of a device, or as far as shapes alone tell."""

import contextlib
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from styledrop_jax.pipelines.base import Compilable
from styledrop_jax.planning.devices import Device, mesh
from styledrop_jax.planning.programs import Cut

# Nothing can be timed to choose a kernel, and some that would not be chosen do not compile.
_OF_PLATFORM: dict[str, dict[str, Any]] = {
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
}


class Cost(NamedTuple):
    """What one program takes of a chip.

    Attributes:
        arguments: bytes of weights, optimiser and batch.
        flops: XLA's count of the program as written, with the plain attention; the body of a loop
            once.
        temporaries: bytes beside the arguments; None if nothing compiled it.
        traffic: bytes that the compiled program reads and writes; None is not reported.
        seconds: that compiling took.
    """

    arguments: int
    flops: float
    temporaries: int | None = None
    traffic: float | None = None
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
    placed = _placed(program.arguments, None)
    lowered = program.function.trace(*placed).lower(lowering_platforms=("cpu",))
    cost: Any = lowered.cost_analysis()
    arguments = 0
    for leaf in jax.tree.leaves(program.arguments):
        parts = device.chips if _is_cut(leaf, device.chips) else 1
        arguments += getattr(leaf, "size", 0) * _width(leaf) // parts
    return Cost(arguments, cost["flops"] / device.chips)


def compiled(program: Compilable, device: Device) -> Cost:
    """What the compiler of a device says.

    Raises:
        UserError: there is no such compiler here.
    """
    chips = mesh(device)
    known = estimated(program, device)
    start = time.monotonic()
    with contextlib.nullcontext() if device.chips == 1 else jax.set_mesh(chips):
        lowered = program.function.lower(*_placed(program.arguments, chips))
    platform = (device.described or {}).get("platform", "cpu")
    built = lowered.compile(compiler_options=_OF_PLATFORM.get(platform))
    memory = built.memory_analysis()
    own: Any = built.cost_analysis() or {}
    return known._replace(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=own.get("bytes accessed") or None,
        seconds=time.monotonic() - start,
    )


def _placed(arguments: tuple, chips: Mesh | None) -> tuple:
    """The arguments with every shape whole on each chip, or cut over them."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if chips is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        spec = PartitionSpec(None, "data") if _is_cut(leaf, chips.size) else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(chips, spec))

    return jax.tree.map(place, arguments)


def _is_cut(leaf: Any, chips: int) -> bool:
    return isinstance(leaf, Cut) and chips > 1 and leaf.shape[1] % chips == 0


def _width(leaf: Any) -> int:
    """Bytes of one number; of a random key."""
    if not hasattr(leaf, "dtype"):
        return 0
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return math.prod(jax.eval_shape(jax.random.key_data, leaf).shape[leaf.ndim :]) * 4
    return leaf.dtype.itemsize
