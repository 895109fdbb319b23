"""Whole runs on models of public size with random weights: the seconds of each stage, and memory.

    python benchmarks/real_size.py --workdir runs/real_size [--only amused-256,sd15]

Nothing is fetched: each model is written in its public layout, in float16, with weights of random
numbers and the shipped tokenizer. A `styledrop personalize` of its preset then runs on it in a
process of its own, from a cold cache of programs: one round of two training steps on one image,
and one sample of two steps before it and after it. What it draws is noise; the shipped CLIP scores
it. A model that is there is not written again, and a finished run is run again. `--pixels 256` has
a Stable Diffusion's U-Net of the same weights draw smaller images.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flax import nnx

from styledrop_jax import cli, log, rounds
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.files import read_object, write_json
from styledrop_jax.models import clip
from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer
from styledrop_jax.pipelines.load import LOADERS

MODELS = {
    "amused-256": ("muse", "amused/amused-256"),
    "amused-512": ("muse", "amused/amused-512"),
    "sd15": ("stable_diffusion", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sd21": ("stable_diffusion", "stabilityai/stable-diffusion-2-1"),
    "sdxl": ("stable_diffusion_xl", "stabilityai/stable-diffusion-xl-base-1.0"),
}
_DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
SCHEDULERS = {
    "muse": {"_class_name": "AmusedScheduler", "mask_token_id": 8255},
    "stable_diffusion": _DDIM,
    "stable_diffusion_xl": _DDIM,
}
STAGES = {
    "loading": ("begin",),
    "training": ("train_round",),
    "sampling": ("sample_base", "sample_round"),
    "scoring": ("score_base", "score_round"),
    "report": ("told",),
}
_TOKENIZER = hub.SHIPPED / "emoji128" / "tokenizer"


def write(name: str, folder: Path) -> None:
    """A model of random weights, in its public layout."""
    kind, public = MODELS[name]
    loader = LOADERS[kind]
    tokenizer = load_tokenizer(_TOKENIZER)
    for place in loader.layout.tokenizers:
        save_tokenizer(tokenizer, folder / place)
    for component in loader.components:
        config = loader.named[public][component.folder]
        if isinstance(config, clip.TextConfig):
            config = dataclasses.replace(
                config,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        log.say(f"{name}: random weights of {component.folder}")
        module = nnx.eval_shape(lambda: component.module(config, rngs=pretrained.ONE_KEY))  # noqa: B023
        values = config.to_dict()
        write_json(folder / component.folder / "config.json", values)
        file = folder / component.folder / f"{hub.stem(values)}.safetensors"
        save_random(file, pretrained.shapes(module, component.rules))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULERS[kind])


def resize(config: Path, pixels: int) -> None:
    """Has a U-Net draw images of so many pixels on a side."""
    write_json(config, {**read_object(config), "sample_size": pixels // 8})


def save_random(file: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """A safetensors file of random numbers in float16, of which one tensor is in memory at a
    time."""
    header = {}
    end = 0
    for name, shape in shapes.items():
        begin = end
        end += 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            scale = float("norm" in name and name.endswith("weight"))
            noise = rng.standard_normal(shape, np.float32)
            (scale + 0.02 * noise).astype(np.float16).tofile(out)
        os.fsync(out)


def measured(words: list[str]) -> None:
    """Carries out a run, and prints the seconds of its stages."""
    seconds = dict.fromkeys(STAGES, 0.0)
    began = time.monotonic()

    def timed(stage: str, function: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                seconds[stage] += time.monotonic() - start

        return run

    for stage, names in STAGES.items():
        for function in names:
            patched = timed(stage, getattr(rounds, function))
            mock.patch.object(rounds, function, patched).start()
    sys.argv = ["styledrop", *words]
    cli.run()
    print(json.dumps({"all": time.monotonic() - began, **seconds}), flush=True)


def row(name: str, folder: Path) -> str:
    """The line of a model in the table."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "prompts.txt").write_text("a cat\n")
    config = {
        "base": folder / "model",
        "clip": "emoji64/clip",
        "prompts": folder / "prompts.txt",
        "rounds": 1,
        "round_1.train.steps": 2,
        "round_1.train.batch_size": 1,
        "round_1.train.accumulate": 1,
        "round_1.sample.steps": 2,
        "round_1.sample.batch_size": 1,
        "round_1.sample.images_per_prompt": 1,
    }
    words = ["personalize", "--config", f"styledrop:{name}", "--workdir", str(folder / "run")]
    for field, value in config.items():
        words += [f"--config.{field}", str(value)]
    line = [sys.executable, __file__, "--measured", *words]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    with (folder / "out.txt").open("w") as out:
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
        child = os.posix_spawn(sys.executable, line, environment, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{name}: the run failed; see {folder / 'out.txt'}")
    seconds = json.loads((folder / "out.txt").read_text().splitlines()[-1])
    cells = [name, *(f"{seconds[stage]:.0f}" for stage in (*STAGES, "all"))]
    cells += [f"{used.ru_utime + used.ru_stime:.0f}", f"{used.ru_maxrss / 2**20:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    if "--measured" in sys.argv:
        measured(sys.argv[sys.argv.index("--measured") + 1 :])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="where models and runs go")
    parser.add_argument("--only", default=",".join(MODELS), help="models, with commas; all else")
    parser.add_argument("--pixels", type=int, help="of a Stable Diffusion's images; else its own")
    flags = parser.parse_args()
    rows = []
    for name in flags.only.split(","):
        folder = flags.workdir / name
        if not (folder / "model" / "scheduler").is_dir():
            write(name, folder / "model")
        if flags.pixels:
            resize(folder / "model" / "unet" / "config.json", flags.pixels)
        rows.append(row(name, folder))
    print(f"| model | {' | '.join(STAGES)} | all s | CPU s | peak GiB |\n{'|---' * 9}|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
