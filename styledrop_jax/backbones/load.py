"""A model's name → the backbone that its folder holds."""

from pathlib import Path

import jax.numpy as jnp

from styledrop_jax import hub
from styledrop_jax.backbones import muse, stable_diffusion
from styledrop_jax.backbones.base import Backbone


def load(name: str, dtype: jnp.dtype = jnp.float32) -> Backbone:
    """Loads a Muse or a Stable Diffusion: see `muse.load` and `stable_diffusion.load`.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    if name.endswith(".safetensors") or (not (hub.SHIPPED / name / "muse").is_dir() and _has_unet(name)):
        return stable_diffusion.load(name, dtype)
    return muse.load(name, dtype)


def _has_unet(name: str) -> bool:
    folder: Path = hub.resolve(name)
    return (folder / "unet").is_dir()
