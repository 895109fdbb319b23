"""The base model as a run's settings describe it: its files, another autoencoder, and LoRAs merged
into it.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from styledrop_jax.interchange import base_loras
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.load import load as load_pipeline


def load(
    name: str,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: jnp.dtype | None = None,
    vae: str = "",
    loras: Sequence[tuple[str, float]] = (),
    field: str = "config.base",
    revision: str = "",
    devices: Mesh | None = None,
) -> Pipeline:
    """Loads a base model.

    Args:
        name, dtype, weights, vae, field, revision, devices: see `pipelines.load.load`.
        loras: files or folders of LoRAs, each with the weight by which it is merged.

    Raises:
        UserError: a model is nowhere, or a file is missing, damaged or does not fit.
    """
    pipeline = load_pipeline(
        name, dtype, weights=weights, vae=vae, field=field, revision=revision, devices=devices
    )
    return base_loras.merged(pipeline, loras) if loras else pipeline
