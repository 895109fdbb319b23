"""A model's name → the pipeline that its files hold."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from styledrop_jax.io import hub
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.components import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """One kind of pipeline.

    Attributes:
        layout: what its folder holds, by which it is known.
        load: makes the pipeline of it.
    """

    layout: hub.Layout
    load: Callable[[Source], Pipeline]


LOADERS = {
    "muse": Loader(layout=muse_files.LAYOUT, load=muse_files.load),
    "stable_diffusion": Loader(
        layout=stable_diffusion_files.LAYOUT, load=stable_diffusion_files.load_folder
    ),
}
"""The kinds of pipelines, by name."""


def load(
    name: str,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: jnp.dtype | None = None,
    field: str = "config.base",
) -> Pipeline:
    """Loads a pipeline of any of `LOADERS`, by what its folder holds.

    Args:
        name: a model that ships with the package, such as "emoji64" (its Muse) or "emoji64/sd"; a
            diffusers folder; "owner/name" from the Hugging Face cache or hub; or a Stable Diffusion
            in one `.safetensors` file, see `stable_diffusion_files.load_file`.
        dtype: what the model computes in.
        weights: what its weights are kept in; None is `dtype`. An autoencoder's stay in float32.
        field: the setting that named the model, for errors.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    file = Path(os.path.expanduser(name))
    kept = dtype if weights is None else weights
    source = Source(name=name, path=file, dtype=dtype, weights=kept)
    if os.path.isfile(file) or file.suffix == ".safetensors":
        return stable_diffusion_files.load_file(source)
    layouts = [loader.layout for loader in LOADERS.values()]
    folder = hub.resolve(name, layouts, field=field)
    best = hub.best_layout(folder, layouts)
    loader = next(loader for loader in LOADERS.values() if loader.layout is best)
    return loader.load(dataclasses.replace(source, path=folder))
