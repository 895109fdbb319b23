"""What training steps and samplers take on accelerators, by the accelerators' own compilers.

    pip install ".[compilers]"
    python benchmarks/compiled.py --results compiled.json --only styledrop,sd15,h100
    python benchmarks/compiled.py --results compiled.json

No accelerator is needed, and no weights: every program is built from shapes alone and compiled for
one chip. A cell is a program of a model at the batch of its preset, in bfloat16, on a device: a
training step (`styledrop`, `lora`, `full`), the sampler (`sample`), or the gradients of the model's
longest self-attention alone (`attention`). Each is compiled with the kernels of
`models/attention.py`, and with the plain attention beside it. It takes minutes, and stays in the
file of results: started again, the benchmark compiles what is missing. Every word of --only has to
be in a cell's name.

Memory is the compiler's: arguments (weights, optimiser, batch) and temporaries, GB. Tflop is XLA's
count of the program as written, with the plain attention, the body of a sampler's loop once.
Traffic is the bytes that the compiled program reads and writes, and roofline the time that the
device takes for the slower of the two at its peak; the compiler for GPUs does not report traffic.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to be asked
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Nothing can be timed to choose a kernel, and some that would not be chosen do not compile.
_NO_TUNING = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_TUNING}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from styledrop_jax import log, trainable  # noqa: E402
from styledrop_jax.adapters import full, lora, styledrop  # noqa: E402
from styledrop_jax.adapters.base import AdapterConfig, AdapterParam, Trainable  # noqa: E402
from styledrop_jax.models import attention, unet, uvit, vae, vqgan  # noqa: E402
from styledrop_jax.pipelines import muse, stable_diffusion  # noqa: E402
from styledrop_jax.pipelines.base import Group, Pipeline, TrainSettings  # noqa: E402
from styledrop_jax.sampling.noise_schedule import NoiseSchedule  # noqa: E402
from styledrop_jax.training import loop, optim  # noqa: E402

_DTYPE = jnp.bfloat16
_TOKENS = 77  # of a prompt
_BRANCHES = 3  # of StyleDrop's guidance
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


class Device(NamedTuple):
    """One chip, by its maker's data sheet.

    Attributes:
        memory: GB. peak: Tflop/s in bfloat16. bandwidth: of the memory, TB/s.
        described: what JAX needs to compile for it.
    """

    memory: float
    peak: float
    bandwidth: float
    described: dict[str, Any]


def _tpu(name: str) -> dict[str, Any]:
    one = {"chips_per_host_bounds": [1, 1, 1]}
    return {"platform": "tpu", "topology_name": f"{name}:1x1", **one}


DEVICES = {
    "v5e": Device(16, 197, 0.819, _tpu("v5e")),
    "v6e": Device(32, 918, 1.64, _tpu("v6e")),
    "h100": Device(
        80,
        989,
        3.35,
        {
            "platform": "cuda",
            "topology_name": "h100",
            "target_config": _H100,
            "topology": "1x1x1",
        },
    ),
}


def mesh(device: str) -> Mesh:
    """One chip to compile for.

    Raises:
        Exception: of JAX, if its compiler is not installed.
    """
    wheels = importlib.util.find_spec("nvidia")
    for folder in wheels.submodule_search_locations or () if wheels else ():
        os.environ["PATH"] += f":{folder}/cu13/bin"  # where ptxas is
    topology = topologies.get_topology_desc(**DEVICES[device].described)
    return topologies.make_mesh(topology, (1,), ("data",))


class Cell(NamedTuple):
    """What was found of one program: bytes, but for flops and seconds; None is not reported."""

    arguments: int
    temporaries: int
    flops: float
    traffic: float | None
    compiled_in: float


class Model(NamedTuple):
    """A preset of the configs.

    Attributes:
        pipeline: one whose modules have shapes alone.
        build: makes its denoiser.
        targets, text: of a batch of b, as shapes.
        longest: positions, width and heads of the longest self-attention.
        train_batch, sample_batch, steps: of the preset.
    """

    pipeline: Pipeline
    build: Callable[[], nnx.Module]
    targets: Callable[[int], Any]
    text: Callable[[int], Any]
    longest: tuple[int, int, int]
    train_batch: int
    sample_batch: int
    steps: int


def _shape(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _stable_diffusion(config: unet.Config) -> Model:
    side = config.sample_size

    def build() -> nnx.Module:
        return unet.UNet(config, rngs=nnx.Rngs(0), dtype=_DTYPE)

    fields: dict[str, Any] = {"text": None, "tokenizer": None, "autoencoder": None}
    pipeline = stable_diffusion.StableDiffusion(
        name="", base_hash="", denoiser=None, schedule=NoiseSchedule(), **fields
    )

    def targets(b: int) -> vae.Posterior:
        return vae.Posterior(_shape(b, side, side, 4), _shape(b, side, side, 4))

    def text(b: int) -> stable_diffusion.TextStates:
        width = config.cross_attention_dim
        return stable_diffusion.TextStates(_shape(b, _TOKENS, width, dtype=_DTYPE))

    longest = side**2, config.block_out_channels[0], config.heads[0]
    return Model(pipeline, build, targets, text, longest, 4, 4, 30)


def _muse(config: uvit.Config) -> Model:
    side = config.sample_size

    def build() -> nnx.Module:
        return uvit.UVit(config, rngs=nnx.Rngs(0), dtype=_DTYPE)

    codec = nnx.eval_shape(lambda: vqgan.VQModel(vqgan.Config.amused(), rngs=nnx.Rngs(0)))
    fields: dict[str, Any] = {"text": None, "tokenizer": None}
    pipeline = muse.Muse(
        name="", base_hash="", denoiser=nnx.eval_shape(build), autoencoder=codec, **fields
    )

    def targets(b: int) -> jax.ShapeDtypeStruct:
        return _shape(b, side, side, dtype=jnp.int32)

    def text(b: int) -> muse.PooledText:
        states = _shape(b, _TOKENS, config.encoder_hidden_size, dtype=_DTYPE)
        return muse.PooledText(states, _shape(b, config.cond_embed_dim, dtype=_DTYPE))

    within = side // 2 if config.downsample else side
    longest = within**2, config.hidden_size, config.num_attention_heads
    return Model(pipeline, build, targets, text, longest, 8, 8, 36)


MODELS = {
    "amused-256": lambda: _muse(uvit.Config.amused_256()),
    "amused-512": lambda: _muse(uvit.Config.amused_512()),
    "sd15": lambda: _stable_diffusion(unet.Config.sd15()),
    "sd21": lambda: _stable_diffusion(unet.Config.sd21()),
}


def _attached(model: Model, adapter: AdapterConfig) -> nnx.Module:
    """The denoiser, as shapes, with what trains in it; the module that a step is given."""

    def build() -> nnx.Module:
        denoiser = model.build()
        adapter.attach(denoiser, rngs=nnx.Rngs(0))
        return nnx.Dict(denoiser=denoiser)

    return nnx.eval_shape(build)


def _kept(state: Any) -> Any:
    """Frozen weights, as shapes, as they are kept."""

    def narrow(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _shape(*x.shape, dtype=_DTYPE if x.dtype == jnp.float32 else x.dtype)

    return jax.tree.map(narrow, state)


def _training(model: Model, adapter: AdapterConfig) -> tuple[Callable, tuple]:
    """A training step and its arguments, the first of them static."""
    graphdef, params, frozen = loop.split(
        _attached(model, adapter), trainable.trained(Trainable(denoiser=adapter))
    )

    def loss(module: Any, batch: Any, keys: jax.Array) -> tuple[jax.Array, dict]:
        each, _ = model.pipeline.loss(module.denoiser, *batch, keys, TrainSettings())
        return each.mean(), {}

    optimizer = optim.make(1e-4)
    step = loop.make_train_step(loss, optimizer)
    state = jax.eval_shape(lambda params: loop.init_state(params, optimizer), params)
    batch = model.targets(model.train_batch), model.text(model.train_batch)
    one_step = jax.tree.map(lambda x: _shape(1, *x.shape, dtype=x.dtype), batch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (graphdef, state, _kept(frozen), one_step, key)


def _sampling(model: Model) -> tuple[Callable, tuple]:
    """The sampler with StyleDrop's guidance, and its arguments."""
    denoiser = _attached(model, styledrop.Config()).denoiser
    graphdef, adapter, rest = nnx.split(denoiser, AdapterParam, ...)
    b = model.sample_batch

    def branches(tree: Any) -> Any:
        return jax.tree.map(lambda x: _shape(_BRANCHES, *x.shape, dtype=x.dtype), tree)

    group = Group(
        graphdef=graphdef,
        states=branches(nnx.as_pure(adapter)),
        frozen=_kept(nnx.as_pure(rest)),
        text=branches(model.text(b)),
        weights=_shape(model.steps, _BRANCHES),
    )
    keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(b, dtype=jnp.uint32)))
    if isinstance(model.pipeline, muse.Muse):
        tokens = model.targets(b)
        micro = _shape(5)
        arguments = (group.static,), (group.arrays,), tokens, keys, _shape(), micro
        return muse._sample, (*arguments, model.pipeline.mask_id)
    shape = model.targets(b).mean.shape[1:]
    plan = stable_diffusion._Program(
        (group.static,), model.pipeline.schedule, "ddim", model.steps, shape
    )
    inputs = stable_diffusion._Inputs(None, None, None, None, None)
    return stable_diffusion._sample, (plan, (group.arrays,), keys, _shape(), inputs)


def _attention(model: Model) -> tuple[Callable, tuple]:
    """The gradients of the longest self-attention, and its arguments."""
    positions, width, heads = model.longest
    x = _shape(model.train_batch, positions, width, dtype=_DTYPE)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attention.attention(q, k, v, heads=heads).astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))), (x, x, x)


PROGRAMS: dict[str, Callable[[Model], tuple[Callable, tuple]]] = {
    "styledrop": lambda model: _training(model, styledrop.Config()),
    "lora": lambda model: _training(model, lora.Config(rank=16)),
    "full": lambda model: _training(model, full.Config()),
    "sample": _sampling,
    "attention": _attention,
}


def lowered(function: Any, arguments: tuple, devices: Mesh | None = None) -> Any:
    """A jitted function lowered for shapes: for one chip, or for this machine."""
    if devices is not None:
        whole = NamedSharding(devices, PartitionSpec())
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)  # noqa: E731
        is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
        arguments = jax.tree.map(
            lambda x: place(x) if is_shape(x) else x, arguments, is_leaf=is_shape
        )
    return function.lower(*arguments)


def _plain() -> contextlib.AbstractContextManager:
    """In which every attention is the plain one."""
    return mock.patch.object(attention, "_LONG", 1 << 60)


def measured(program: str, model: str, device: str, *, kernels: bool) -> Cell:
    """What the compiler of a device says of one program, with or without the kernels."""
    jax.clear_caches()
    found = MODELS[model]()
    with _plain():
        cost: Any = lowered(*PROGRAMS[program](found)).cost_analysis()
    jax.clear_caches()
    start = time.monotonic()
    with contextlib.nullcontext() if kernels else _plain():
        compiled = lowered(*PROGRAMS[program](found), mesh(device)).compile()
    memory = compiled.memory_analysis()
    own: Any = compiled.cost_analysis() or {}
    return Cell(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost["flops"],
        traffic=own.get("bytes accessed") or None,
        compiled_in=time.monotonic() - start,
    )


def _row(name: str, cell: Cell) -> str:
    device = DEVICES[name.split(",")[2]]
    seconds = cell.flops / device.peak / 1e12
    traffic = "–"
    bound = "–"
    if cell.traffic:
        moved = cell.traffic / device.bandwidth / 1e12
        traffic = f"{cell.traffic / 1e9:.1f}"
        bound = f"{max(seconds, moved) * 1e3:.1f}"
    memory = f"{cell.arguments / 1e9:.2f} | {cell.temporaries / 1e9:.2f}"
    fits = "yes" if (cell.arguments + cell.temporaries) / 1e9 <= device.memory else "no"
    words = " | ".join(name.split(","))
    return f"| {words} | {memory} | {fits} | {cell.flops / 1e12:.2f} | {traffic} | {bound} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished cells")
    parser.add_argument("--only", default="", help="words of cells' names, with commas; all else")
    flags = parser.parse_args()
    cells: dict[str, Any] = {}
    if flags.results.exists():
        cells = json.loads(flags.results.read_text())
    asked = set(filter(None, flags.only.split(",")))
    for device in DEVICES:
        for model in MODELS:
            for program in PROGRAMS:
                for form in ("kernels", "plain"):
                    words = (program, model, device, form)
                    name = ",".join(words)
                    if name in cells or not asked <= set(words):
                        continue
                    log.say(name)
                    cell = measured(program, model, device, kernels=form == "kernels")
                    cells[name] = cell._asdict()
                    flags.results.write_text(json.dumps(cells, indent=1))
    heads = "program | model | device | attention | arguments GB | temporaries GB | fits"
    print(f"| {heads} | Tflop | traffic GB | roofline ms |\n{'|---' * 10}|")
    for name, fields in cells.items():
        if asked <= set(name.split(",")):
            print(_row(name, Cell(**fields)))


if __name__ == "__main__":
    main()
