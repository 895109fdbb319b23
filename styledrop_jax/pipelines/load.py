"""A model's name → the pipeline that its folder holds."""

import jax.numpy as jnp

from styledrop_jax.io import hub
from styledrop_jax.pipelines import muse, stable_diffusion
from styledrop_jax.pipelines.base import Pipeline


def load(name: str, dtype: jnp.dtype = jnp.float32) -> Pipeline:
    """Loads a Muse or a Stable Diffusion: see `muse.load` and `stable_diffusion.load`.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    if name.endswith(".safetensors") or (hub.resolve_pipeline(name, "muse") / "unet").is_dir():
        return stable_diffusion.load(name, dtype)
    return muse.load(name, dtype)


LOADERS = {"unet": stable_diffusion.load, "transformer": muse.load}
