"""A tiny Stable Diffusion with something trained in it, and the reference's pipelines beside it."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.adapters import custom_diffusion, full, lora, styledrop, svdiff
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.adapters.textual_inversion import Config, Token
from styledrop_jax.interchange import merged
from styledrop_jax.interchange.read import Initial
from styledrop_jax.interchange.trained import Trained
from styledrop_jax.pipelines.base import Group, Pipeline
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

PROMPT = "a red house in <hut> style"
STEPS = 4
SCALE = 3.0
SCHEDULE = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
    prediction_type="v_prediction",
)
WORDS = Config(
    tokens=(
        Token(word="<hut>", initializer="a", vectors=2),
        Token(word="<cat>", initializer="a"),
    )
)
SMALL = lora.Config(rank=2, alpha=5.0)
EVERY = lora.Config(rank=3, alpha=1.5, targets="all")
WHAT = {
    "lora": Trainable(denoiser=SMALL),
    "lora everywhere": Trainable(denoiser=EVERY, text=EVERY),
    "words": Trainable(words=WORDS),
    "lora and words": Trainable(denoiser=SMALL, text=SMALL, words=WORDS),
    "custom_diffusion": Trainable(denoiser=custom_diffusion.Config(), words=WORDS),
    "svdiff": Trainable(denoiser=svdiff.Config(), text=svdiff.Config()),
    "full": Trainable(denoiser=full.Config(), text=full.Config()),
    "styledrop": Trainable(denoiser=styledrop.Config()),
    "lora everywhere and words": Trainable(denoiser=EVERY, text=EVERY, words=WORDS),
}


@functools.cache
def base() -> StableDiffusion:
    loaded = load(str(tiny.stable_diffusion()))
    assert isinstance(loaded, StableDiffusion)
    return dataclasses.replace(loaded, schedule=SCHEDULE)


@functools.cache
def base_xl() -> StableDiffusion:
    loaded = load(str(tiny.stable_diffusion_xl()))
    assert isinstance(loaded, StableDiffusion)
    return dataclasses.replace(loaded, schedule=SCHEDULE)


@functools.cache
def reference_folder() -> Path:
    """The base as the reference opens it."""
    folder = tiny.home() / "reference"
    merged.save(folder, base(), dtype="float32")
    return folder


@functools.cache
def reference_folder_xl() -> Path:
    folder = tiny.home() / "reference_xl"
    merged.save(folder, base_xl(), dtype="float32")
    return folder


def reference(folder: Path | None = None) -> Any:
    """A pipeline of the reference: the base's, or that of a folder."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder or reference_folder(), safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_xl(folder: Path | None = None) -> Any:
    """The same of an XL."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder or reference_folder_xl(), local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_state(base: Pipeline, what: Trainable, *, size: float = 0.2) -> Pipeline:
    """The base with noise added to all that trains, as if it had trained."""
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    graphdef, state, rest = nnx.split(trainable.parts(model, what), trainable.trained(what), ...)
    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, size, x.shape), x.dtype), nnx.as_pure(state)
    )
    whole: Any = nnx.merge(graphdef, moved, nnx.as_pure(rest))
    changed = {name: whole[name] for name in ("denoiser", "text") if name in whole}
    return dataclasses.replace(model, **changed)


@functools.cache
def trained(name: str) -> Trained:
    what = WHAT[name]
    size = 0.02 if name == "full" else 0.2
    return _trained(base(), what, size)


@functools.cache
def trained_xl(name: str = "lora everywhere and words") -> Trained:
    return _trained(base_xl(), WHAT[name], 0.2)


def _trained(base: StableDiffusion, what: Trainable, size: float) -> Trained:
    model = with_state(base, what, size=size)
    info = {"descriptor": "in watercolor", "prompts": ["a cat in watercolor"], "name": "mine"}
    return Trained(base=base, model=model, what=what, base_name="tiny", info=info)


def started(initial: Initial, pipeline: StableDiffusion) -> StableDiffusion:
    """The pipeline as training starts on it; the state must be what training splits off."""
    model = trainable.attach(pipeline, initial.what, rngs=nnx.Rngs(0))
    whole: Any = trainable.parts(model, initial.what)
    graphdef, state, rest = nnx.split(whole, trainable.trained(initial.what), ...)
    state = nnx.as_pure(state)
    assert jax.tree.structure(state) == jax.tree.structure(initial.state)
    for leaf, found in zip(jax.tree.leaves(state), jax.tree.leaves(initial.state), strict=True):
        assert found.shape == leaf.shape and found.dtype == leaf.dtype
    whole = nnx.merge(graphdef, initial.state, nnx.as_pure(rest))
    changed = {name: whole[name] for name in ("denoiser", "text") if name in whole}
    return dataclasses.replace(model, **changed)


def latents() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1, 8, 8, 4), np.float32)


def sampled(model: StableDiffusion, prompt: str = PROMPT) -> np.ndarray:
    """Latents [1, 8, 8, 4] under classifier-free guidance."""
    graphdef, frozen = nnx.split(model.denoiser, ...)
    text = jax.tree.map(lambda x: x[:, None], model.encode_text([prompt, ""]))
    weights = jnp.tile(jnp.array([SCALE, 1 - SCALE]), (STEPS, 1))
    group = Group(graphdef, {}, nnx.as_pure(frozen), text, weights)
    return model.sample([group], [0], sampler="ddim", steps=STEPS, latents=latents())


@functools.cache
def ours(name: str) -> np.ndarray:
    return sampled(trained(name).model)


@functools.cache
def ours_xl() -> np.ndarray:
    return sampled(trained_xl().model)


@functools.cache
def of_base() -> np.ndarray:
    return sampled(base())


@torch.no_grad()
def theirs(pipeline: Any, prompt: str = PROMPT) -> np.ndarray:
    """What the reference's pipeline samples from the same latents."""
    noise = torch.from_numpy(latents().transpose(0, 3, 1, 2).copy())
    out = pipeline(
        prompt,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="latent",
    )
    return out.images.numpy().transpose(0, 2, 3, 1)


def follow_card(folder: Path, pipeline: Any) -> Any:
    """Runs the Python of an export's README.md on a pipeline; returns the pipeline it leaves."""
    code = re.search(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    names = {"folder": str(folder), "pipeline": pipeline}
    exec(code[1], names)
    return names["pipeline"]
