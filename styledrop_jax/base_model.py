"""The base model as a run's settings describe it: its files, another autoencoder, and LoRAs merged
into it.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from styledrop_jax.interchange import base_loras
from styledrop_jax.interchange.trained import Beneath
from styledrop_jax.io.files import digest
from styledrop_jax.io.paths import expanded
from styledrop_jax.pipelines import autoencoders
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
    base_loras.check(loras)
    pipeline = load_pipeline(
        name, dtype, weights=weights, vae=vae, field=field, revision=revision, devices=devices
    )
    return base_loras.merged(pipeline, loras) if loras else pipeline


def beneath(vae: str, loras: Sequence[tuple[str, float]]) -> list[Beneath]:
    """The files that `load` puts into a base model.

    Raises:
        UserError: one is nowhere.
    """
    found = []
    if vae:
        whole = expanded(vae)
        for file in autoencoders.files(vae):
            found.append(Beneath(_within(file, whole), "autoencoder", digest(file)))
    for path, weight in loras:
        whole = expanded(path)
        files = sorted(whole.rglob("*.safetensors")) if whole.is_dir() else [whole]
        for file in files:
            found.append(Beneath(_within(file, whole), f"LoRA, weight {weight:g}", digest(file)))
    return found


def _within(file: Path, whole: Path) -> str:
    """The name of a file that is `whole`, in it, or of the hub's model of that name."""
    if not file.is_relative_to(whole):
        return f"{whole.as_posix()}/{file.name}"
    return file.relative_to(whole.parent).as_posix()
