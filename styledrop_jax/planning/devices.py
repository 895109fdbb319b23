"""Accelerators, by their makers' data sheets, and what JAX needs to compile for those that are not
there.
"""

import functools
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh

from styledrop_jax.errors import UserError, did_you_mean, shown
from styledrop_jax.training import mesh
from styledrop_jax.training.mesh import MeshSettings

GB = 1e9
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  device_memory_size: 84978434048
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
_ALONE = mesh.imagined(MeshSettings(), 1)


class Device(NamedTuple):
    """One kind of chip, and how many of them.

    Attributes:
        name: as the user gave it.
        memory: of a chip, GB, that a program can take.
        peak: of a chip, Tflop/s in bfloat16. bandwidth: of its memory, TB/s. None of a CPU.
        mesh: of the chips, which share the work.
        described: what JAX needs to compile for it; None for this machine's CPU.
    """

    name: str
    memory: float
    peak: float | None
    bandwidth: float | None
    mesh: AbstractMesh = _ALONE
    described: dict[str, Any] | None = None

    @property
    def chips(self) -> int:
        return self.mesh.size


class _Tpu(NamedTuple):
    memory: float
    peak: float
    bandwidth: float
    axes: int  # of a topology


_TPUS = {
    "v5e": _Tpu(16, 197, 0.819, 2),
    "v6e": _Tpu(32, 918, 1.64, 2),
    "v5p": _Tpu(95, 459, 2.765, 3),
}
_GPUS = {
    "h100": Device(
        name="h100",
        memory=80 * 0.75,  # the share that JAX takes, unless told otherwise
        peak=989,
        bandwidth=3.35,
        described={
            "platform": "cuda",
            "topology_name": "h100",
            "target_config": _H100,
            "topology": "1x1x1",
        },
    )
}
NAMES = (*_TPUS, *_GPUS, "cpu")


def find(name: str, share: MeshSettings | None = None) -> Device:
    """The device "h100", "v6e", "v5e:2x4" or "cpu"; a TPU without a topology is one chip.

    Args:
        share: how its chips share the work; None is a batch alone.

    Raises:
        UserError: it is not known, a TPU does not come in that shape, or they are not as many.
    """
    kind, colon, shape = name.partition(":")
    if kind in _TPUS:
        found, count = _tpu(name, _TPUS[kind], kind, shape if colon else "")
    elif name in _GPUS:
        found, count = _GPUS[name], 1
    elif name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found, count = Device(name, memory / GB, None, None), 1
    else:
        hint = did_you_mean(kind, NAMES)
        raise UserError(f"--device: found {shown(name)}{hint}; expected one of {', '.join(NAMES)}")
    return found._replace(mesh=mesh.imagined(share or MeshSettings(), count))


def _tpu(name: str, chip: _Tpu, kind: str, shape: str) -> tuple[Device, int]:
    """With how many chips there are."""
    one = "x".join("1" * chip.axes)
    asked = shape or one
    if not re.fullmatch(r"[1-9]\d?" + r"x[1-9]\d?" * (chip.axes - 1), asked):
        raise UserError(f"--device: found {shown(name)}, expected a shape such as {kind}:{one}")
    described: dict[str, Any] = {"platform": "tpu", "topology_name": f"{kind}:{asked}"}
    if asked == one:
        described["chips_per_host_bounds"] = [1, 1, 1]
    count = math.prod(int(side) for side in asked.split("x"))
    return Device(name, chip.memory, chip.peak, chip.bandwidth, described=described), count


def chips(device: Device) -> Mesh | None:
    """The chips to compile for; None is this machine's CPU.

    Raises:
        UserError: the compiler is not installed, or knows no such topology.
    """
    if device.described is None:
        return None
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to be asked
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    _find_assembler()
    try:
        topology = topologies.get_topology_desc(**device.described)
        return topologies.make_mesh(topology, device.mesh.axis_sizes, mesh.AXES)
    except Exception as error:  # of JAX's plugins, of any type
        raise UserError(
            f"--device {device.name}: no compiler ({shown(str(error), 100)}); expected the extra "
            'compilers: pip install ".[compilers]"'
        ) from error


@functools.cache
def _find_assembler() -> None:
    """Puts the wheel's ptxas on the path, which the compiler for GPUs calls."""
    wheels = importlib.util.find_spec("nvidia")
    for folder in wheels.submodule_search_locations or () if wheels else ():
        os.environ["PATH"] += f":{folder}/cu13/bin"
