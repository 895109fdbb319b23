"""Seconds and memory that loading takes, of models of public size with random weights.

    python benchmarks/loads.py --workdir runs/real_size [--only sd15,sd21,sdxl]

Each is loaded in bfloat16 from its folder of the diffusers layout and from one file by the names of
the latent-diffusion code, both in float16; see `real_size.py`, which writes the folder. Three
times, each in a process of its own: at first, when its hash is not known and no file is in memory;
again, without the files in memory; and with them. Seconds are of the loading alone, memory is the
whole process's at its peak.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import real_size
from flax import nnx
from numpy.typing import DTypeLike

from styledrop_jax import log
from styledrop_jax.interchange import merged, single_file
from styledrop_jax.io import pretrained
from styledrop_jax.models.rules import Rules
from styledrop_jax.pipelines import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

NAMES = ("sd15", "sd21", "sdxl")
_HEAD = ("model", "weights GiB", "first s", "again s", "in memory s", "CPU s", "peak GiB")


class Loading(NamedTuple):
    """What one loading took: seconds, those of all cores, bytes of its weights; and the process's
    peak, bytes."""

    seconds: float
    cpu: float
    weights: int
    peak: int


def write_file(name: str, file: Path) -> None:
    """A model of random weights in one file."""
    pipeline = load.shapes(real_size.MODELS[name][1], jnp.float16, weights=jnp.float16)  # pyright: ignore
    assert isinstance(pipeline, StableDiffusion)

    def stand_ins(module: nnx.Module, rules: Rules, *, dtype: DTypeLike) -> dict[str, np.ndarray]:
        found = {}
        for tensor, shape in pretrained.shapes(module, rules).items():
            found[tensor] = np.broadcast_to(np.zeros((), dtype), shape)  # takes no memory
        return found

    with mock.patch.object(merged, "tensors", stand_ins):
        tensors = single_file.tensors(pipeline, dtype="float16")
    log.say(f"{name}: random weights of the single file")
    real_size.save_random(file, {tensor: array.shape for tensor, array in tensors.items()})


def measured(base: str) -> None:
    """Loads a model, and prints what it took."""
    began, used = time.monotonic(), time.process_time()
    pipeline = load.load(base, jnp.dtype(jnp.bfloat16))
    weights = 0
    for part in (pipeline.denoiser, pipeline.autoencoder, pipeline.text):
        arrays = jax.block_until_ready(jax.tree.leaves(nnx.as_pure(nnx.state(part))))
        weights += sum(array.nbytes for array in arrays)
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    print(json.dumps([seconds, cpu, weights]), flush=True)


def loading(base: Path, cache: Path) -> Loading:
    """Loads a model in a process of its own."""
    out = cache.parent / "out.txt"
    line = [sys.executable, __file__, "--measured", str(base)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with out.open("w") as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        child = os.posix_spawn(sys.executable, line, environment, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{base}: the loading failed; see {out}")
    seconds, cpu, weights = json.loads(out.read_text().splitlines()[-1])
    return Loading(seconds, cpu, weights, used.ru_maxrss * 1024)


def forget(base: Path) -> None:
    """Has the system let go of what it keeps of a model's files in memory."""
    for file in [base] if base.is_file() else base.rglob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def row(name: str, base: Path, cache: Path) -> Sequence[str]:
    """The cells of a model."""
    shutil.rmtree(cache, ignore_errors=True)
    found = []
    for cold in (True, True, False):
        if cold:
            forget(base)
        found.append(loading(base, cache))
    what = "file" if base.is_file() else "folder"
    cells = [f"{name}, {what}", f"{found[0].weights / 2**30:.2f}"]
    cells += [f"{each.seconds:.0f}" for each in found]
    cells.append(" / ".join(f"{each.cpu:.0f}" for each in found))
    cells.append(" / ".join(f"{each.peak / 2**30:.2f}" for each in found))
    return cells


def main() -> None:
    if "--measured" in sys.argv:
        measured(sys.argv[-1])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where models go")
    parser.add_argument("--only", default=",".join(NAMES), help="models, with commas; all else")
    flags = parser.parse_args()
    print(f"| {' | '.join(_HEAD)} |\n{'|---' * len(_HEAD)}|", flush=True)
    for name in flags.only.split(","):
        folder = flags.workdir / name
        model = folder / "model"
        if not (model / "scheduler").is_dir():
            real_size.write(name, model)
        file = folder / "model.safetensors"  # whose tokenizer and schedule are the folder's
        if not file.is_file():
            write_file(name, file)
        for base in (model, file):
            print(f"| {' | '.join(row(name, base, folder / 'cache'))} |", flush=True)


if __name__ == "__main__":
    main()
