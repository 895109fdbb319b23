"""A model's name → the pipeline that its files hold."""

import os
from pathlib import Path

import jax.numpy as jnp

from styledrop_jax.io import hub
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline

_LAYOUTS = (muse_files.LAYOUT, stable_diffusion_files.LAYOUT)


def load(name: str, dtype: jnp.dtype = jnp.float32, *, field: str = "config.base") -> Pipeline:
    """Loads a Muse or a Stable Diffusion.

    Args:
        name: a model that ships with the package, such as "emoji64" (its Muse) or "emoji64/sd"; a
            diffusers folder; "owner/name" from the Hugging Face cache or hub; or a Stable Diffusion
            in one `.safetensors` file, see `stable_diffusion_files.load_file`.
        dtype: what the model computes in.
        field: the setting that named the model, for errors.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    file = Path(os.path.expanduser(name))
    if file.is_file() or file.suffix == ".safetensors":
        return stable_diffusion_files.load_file(name, file, dtype)
    folder = hub.resolve(name, _LAYOUTS, field=field)
    if hub.best_layout(folder, _LAYOUTS) is stable_diffusion_files.LAYOUT:
        return stable_diffusion_files.load_folder(name, folder, dtype)
    return muse_files.load(name, folder, dtype)
