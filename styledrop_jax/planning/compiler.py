"""What a program takes: by the compiler of a device, or as far as shapes alone tell."""

import contextlib
import math
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from styledrop_jax.pipelines.base import Compilable
from styledrop_jax.planning.devices import Device, chips
from styledrop_jax.training import mesh

# Nothing can be timed to choose a kernel, and some that would not be chosen do not compile.
_OF_PLATFORM: dict[str, dict[str, Any]] = {
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
}

_COLLECTIVE = re.compile(
    r" = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\(.*channel_id=(\d+)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


class Cost(NamedTuple):
    """What one program takes of a chip.

    Attributes:
        arguments: bytes of weights, optimiser and batch, of a chip its own share.
        flops: XLA's count of the program as written, with the plain attention; the body of a loop
            once.
        temporaries: bytes beside the arguments; None if nothing compiled it.
        traffic: bytes that the compiled program reads and writes; None is not reported.
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
    own: Any = built.cost_analysis() or {}
    return known._replace(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=own.get("bytes accessed") or None,
        sent={} if device.chips == 1 else sent(built.as_text()),
        seconds=time.monotonic() - start,
    )


def sent(program: str) -> dict[str, int]:
    """Bytes of the arrays that a compiled program's chips exchange, {"all-gather": …}: of each the
    whole array, of the body of a loop once.

    Args:
        program: XLA's text of it.
    """
    found: dict[tuple[Any, ...], int] = {}
    reduces = False
    for line in program.splitlines():
        if not line.startswith(" "):
            reduces = "reduce-scatter" in line  # the TPU's is a program of its own
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes, kind, start, channel = match.groups()
        name = "reduce-scatter" if reduces else kind
        arrays = tuple(_ARRAY.findall(shapes))
        total = sum(_bytes(*array) for array in arrays)
        # One that runs beside other work is written once for each of its parts.
        found[name, arrays, channel] = total // 2 if start else total  # what comes, what goes
    totals: dict[str, int] = {}
    for (name, _, _), count in sorted(found.items()):
        totals[name] = totals.get(name, 0) + count
    return totals


def _bytes(kind: str, sides: str) -> int:
    """Of an array as XLA writes it: ("bf16", "2,3")."""
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8


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
