"""Images of a class, drawn by the frozen model to keep what it knew (DreamBooth's prior, 2208.12242 §3.2).

They are kept between runs, by everything that they depend on, and topped up when a run asks for more.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from styledrop_jax import guidance, log
from styledrop_jax.io import image_files
from styledrop_jax.pipelines.base import Pipeline, SampleSettings


def class_images(
    base: Pipeline, prompt: str, count: int, *, settings: SampleSettings, batch_size: int, seed: int
) -> list[np.ndarray]:
    """`count` images uint8 [r, r, 3] of `prompt`, the i-th with seed `seed` + i, from the cache or drawn now."""
    folder = _folder(base, prompt, settings, batch_size, seed)
    paths = [folder / f"{i:05d}.png" for i in range(count)]
    if all(path.is_file() for path in paths):
        log.say(f"images of {prompt!r} by the frozen model: {count} drawn before, in {folder}")
    else:
        guidance.generate_files(
            f"drawing {prompt!r} with the frozen model",
            paths,
            [prompt] * count,
            range(seed, seed + count),
            functools.partial(guidance.base_branches, base),
            settings=settings,
            batch_size=batch_size,
        )
    return [image_files.read_image(path) for path in paths]


def _folder(
    base: Pipeline, prompt: str, settings: SampleSettings, batch_size: int, seed: int
) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps([base.base_hash, prompt, dataclasses.asdict(settings), batch_size, seed])
    return cache / "styledrop_jax" / "class_images" / hashlib.sha256(key.encode()).hexdigest()[:16]
