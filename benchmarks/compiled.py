"""What training steps and samplers take on accelerators, by the accelerators' own compilers.

    pip install ".[compilers]"
    python benchmarks/compiled.py --results compiled.json --only styledrop,sd15,h100
    python benchmarks/compiled.py --results compiled.json --batch 8 --only lora,sd15,v5e

No accelerator is needed, and no weights: these are the programs of `styledrop plan`, in bfloat16,
for one chip, or for a slice whose chips share the batch and the weights (config.mesh.fsdp). A cell
is a program of a model, at a batch, on a device: a training step (`styledrop`, `lora`, `full`), a
step of the sampler and the decoder (`sampling`, `decoding`), or the gradients of the model's
longest self-attention alone (`attention`). Each is compiled with the kernels of
`models/attention.py`, and with the plain attention beside it. It takes minutes, and stays in the
file of results: started again, the benchmark compiles what is missing. Every word of --only has to
be in a cell's name.

Memory is the compiler's: arguments (weights, optimiser, batch) and temporaries, GB. Tflop is XLA's
count of the program as written, with the plain attention, the body of a loop once. Traffic is the
bytes that the main memory is read or written, and roofline the time that the device takes for the
slower of the two at its peak; traffic is not known of a GPU. Of a slice all
numbers are a chip's, and what the chips send to each other is of whole arrays, once a step.
"""

import argparse
import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from styledrop_jax import log  # noqa: E402
from styledrop_jax.adapters import full, lora, styledrop  # noqa: E402
from styledrop_jax.adapters.base import AdapterConfig, Trainable  # noqa: E402
from styledrop_jax.models import attention  # noqa: E402
from styledrop_jax.pipelines.base import (  # noqa: E402
    Compilable,
    Pipeline,
    SampleSettings,
    TrainSettings,
)
from styledrop_jax.pipelines.load import shapes  # noqa: E402
from styledrop_jax.planning import compiler, devices, programs  # noqa: E402
from styledrop_jax.planning.compiler import Cost  # noqa: E402
from styledrop_jax.planning.devices import Device  # noqa: E402
from styledrop_jax.training.mesh import MeshSettings  # noqa: E402

DEVICES = ("v5e", "v5e:2x2", "v6e", "v5p", "h100")
MODELS = {
    "amused-256": "amused/amused-256",
    "amused-512": "amused/amused-512",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
}
TRAINED: dict[str, AdapterConfig] = {
    "styledrop": styledrop.Config(),
    "lora": lora.Config(rank=16),
    "full": full.Config(),
}
PROGRAMS = (*TRAINED, "sampling", "decoding", "attention")
_LONGEST = {  # self-attention: positions, width, heads
    "amused-256": (256, 1024, 16),
    "amused-512": (256, 1024, 16),
    "sd15": (4096, 320, 8),
    "sd21": (9216, 320, 5),
}
_STEPS = 10  # of training in a dispatch, as in a run


@functools.cache
def _pipeline(model: str, dtype: str) -> Pipeline:
    return shapes(MODELS[model], jnp.dtype(jnp.bfloat16), weights=jnp.dtype(dtype))


def _device(name: str) -> Device:
    """Of a slice all chips share the weights."""
    count = devices.find(name).chips
    return devices.find(name, MeshSettings(fsdp=count))


def program(name: str, model: str, batch: int, device: Device) -> Compilable:
    """The program of a cell."""
    if name == "attention":
        return _attention(model, batch)
    if name in TRAINED:
        adapter = TRAINED[name]
        pipeline = _pipeline(model, "float32" if adapter.exact else "bfloat16")
        settings = TrainSettings(batch_size=batch)
        what = Trainable(denoiser=adapter)
        side = pipeline.resolution
        images = [programs.Images([(side, side)])]
        return programs.training(
            pipeline, what, images, settings, steps=_STEPS, devices=device.mesh
        )
    settings = SampleSettings(batch_size=batch, steps=30 if model.startswith("sd") else 36)
    what = Trainable(denoiser=TRAINED["styledrop"])
    return programs.sampling(_pipeline(model, "bfloat16"), what, settings, device.mesh)[name]


def _attention(model: str, batch: int) -> Compilable:
    """The gradients of the longest self-attention."""
    positions, width, heads = _LONGEST[model]
    x = jax.ShapeDtypeStruct((batch, positions, width), jnp.bfloat16)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attention.attention(q, k, v, heads=heads).astype(jnp.float32) ** 2).sum()

    return Compilable(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), (x, x, x))


def _plain() -> contextlib.AbstractContextManager:
    """In which every attention is the plain one."""
    return mock.patch.object(attention, "_LONG", 1 << 60)


def measured(name: str, model: str, batch: int, device: str, *, kernels: bool) -> Cost:
    """What the compiler of a device says of one program, with or without the kernels."""
    jax.clear_caches()
    with contextlib.nullcontext() if kernels else _plain():
        chips = _device(device)
        return compiler.compiled(program(name, model, batch, chips), chips)


def _row(name: str, cost: Cost) -> str:
    device = _device(name.split(",")[3])
    bound = cost.bound(device) or 0.0
    seconds = cost.flops / (device.peak or 1.0) / 1e12
    temporaries = cost.temporaries or 0
    cells = name.split(",")
    cells += [f"{cost.arguments / 1e9:.2f}", f"{temporaries / 1e9:.2f}", f"{cost.flops / 1e12:.2f}"]
    if cost.traffic:
        cells += [f"{cost.traffic / 1e9:.1f}", f"{bound * 1e3:.1f}", f"{seconds / bound:.0%}"]
    else:
        cells += ["–", "–", "–"]
    cells.append(", ".join(f"{kind} {count / 1e9:.2f}" for kind, count in cost.sent.items()))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished cells")
    parser.add_argument("--only", default="", help="words of cells' names, with commas; all else")
    parser.add_argument("--batch", type=int, default=4, help="images at once (default 4)")
    flags = parser.parse_args()
    cells: dict[str, Any] = {}
    if flags.results.exists():
        cells = json.loads(flags.results.read_text())
    asked = set(filter(None, flags.only.split(",")))
    for device in DEVICES:
        for model in MODELS:
            for name in PROGRAMS:
                for form in ("kernels", "plain"):
                    words = (name, model, str(flags.batch), device, form)
                    cell = ",".join(words)
                    if cell in cells or not asked <= set(words):
                        continue
                    log.say(cell)
                    cost = measured(name, model, flags.batch, device, kernels=form == "kernels")
                    cells[cell] = cost._asdict()
                    flags.results.write_text(json.dumps(cells, indent=1))
    heads = "program | model | batch | device | attention | arguments GB | temporaries GB"
    print(f"| {heads} | Tflop | traffic GB | roofline ms | of peak | sent GB |\n{'|---' * 12}|")
    for cell, fields in cells.items():
        if asked <= set(cell.split(",")):
            print(_row(cell, Cost(**fields)))


if __name__ == "__main__":
    main()
