"""A model's name → the pipeline that its files hold."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io import hub
from styledrop_jax.models.tokenizer import load_tokenizer
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.components import Component, Source
from styledrop_jax.training import mesh

_STAND_IN = "emoji128"  # whose tokenizer is taken for one that is not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """One kind of pipeline.

    Attributes:
        layout: what its folder holds, by which it is known.
        load: makes the pipeline of it.
        components: what the folder holds.
        shapes: makes the pipeline of their configs, by their folders, and a tokenizer, every array
            a shape.
        named: configs of models by the hub's name.
        takes_vae: whether another autoencoder can take the place of its own.
    """

    layout: hub.Layout
    load: Callable[[Source], Pipeline]
    components: Sequence[Component] = ()
    shapes: Callable[[Source, Mapping[str, Any], PreTrainedTokenizerBase], Pipeline] | None = None
    named: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    takes_vae: bool = False


LOADERS = {
    "muse": Loader(
        layout=muse_files.LAYOUT,
        load=muse_files.load,
        components=(muse_files.TRANSFORMER, muse_files.VQVAE, muse_files.TEXT),
        shapes=muse_files.shapes,
        named=muse_files.NAMED,
    ),
    "stable_diffusion": Loader(
        layout=stable_diffusion_files.LAYOUT,
        load=stable_diffusion_files.load_folder,
        components=(
            stable_diffusion_files.UNET,
            stable_diffusion_files.VAE,
            stable_diffusion_files.TEXT,
        ),
        shapes=stable_diffusion_files.shapes,
        named=stable_diffusion_files.NAMED,
        takes_vae=True,
    ),
    "stable_diffusion_xl": Loader(
        layout=stable_diffusion_files.LAYOUT_XL,
        load=stable_diffusion_files.load_folder_xl,
        components=(
            stable_diffusion_files.UNET,
            stable_diffusion_files.VAE,
            stable_diffusion_files.TEXT,
            stable_diffusion_files.TEXT_2,
        ),
        shapes=stable_diffusion_files.shapes,
        named=stable_diffusion_files.NAMED_XL,
        takes_vae=True,
    ),
}
"""The kinds of pipelines, by name."""


def load(
    name: str,
    dtype: jnp.dtype = jnp.float32,
    *,
    weights: jnp.dtype | None = None,
    vae: str = "",
    field: str = "config.base",
    revision: str = "",
    devices: Mesh | None = None,
) -> Pipeline:
    """Loads a pipeline of any of `LOADERS`, by what its folder holds.

    Args:
        name: a model that ships with the package, such as "emoji128" or "emoji128-muse"; a
            diffusers folder; "owner/name" from the Hugging Face cache or hub; or a Stable Diffusion
            in one `.safetensors` file, see `stable_diffusion_files.load_file`.
        dtype: what the model computes in.
        weights: what its weights are kept in; None is `dtype`. An autoencoder's stay in float32.
        vae: an autoencoder in place of a Stable Diffusion's own: a file, a folder, or a name like
            the model's. Empty is its own.
        field: the setting that named the model, for errors.
        revision: of a model of the hub, in place of that in its name.
        devices: that hold its weights and share its work; None is all.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    file = Path(os.path.expanduser(name))
    kept = dtype if weights is None else weights
    source = Source(name=name, path=file, dtype=dtype, weights=kept, vae=vae)
    if _is_file(file):
        load_it = stable_diffusion_files.load_file
    else:
        folder = hub.resolve(name, layouts(), field=field, revision=revision)
        loader = _loader(folder)
        _check_vae(loader, source)
        load_it = loader.load
        source = dataclasses.replace(source, path=folder)
    with mesh.used(devices or mesh.make()):
        return dataclasses.replace(load_it(source), revision=hub.commit(source.path))


def _check_vae(loader: Loader, source: Source) -> None:
    if source.vae and not loader.takes_vae:
        raise UserError(
            f"config.vae: found {shown(source.vae, 120)}, expected it empty: "
            f"{shown(source.name, 120)} is no Stable Diffusion"
        )


def shapes(name: str, dtype: jnp.dtype, *, weights: jnp.dtype, vae: str = "") -> Pipeline:
    """A pipeline without its weights, every array a shape.

    Args:
        name, dtype, weights, vae: see `load`. Of a folder the components' config.json are enough;
            of the hub's models those in the cache are known, and some by their names.

    Raises:
        UserError: the model is not known, or its configs do not fit.
    """
    file = Path(os.path.expanduser(name))
    source = Source(name=name, path=file, dtype=dtype, weights=weights, vae=vae)
    if _is_file(file):
        configs = stable_diffusion_files.configs_of_file(file)
        return stable_diffusion_files.shapes(source, configs, _tokenizer(None))
    folder = hub.on_this_machine(name, layouts())
    if folder is not None:
        loader = _loader(folder)
        configs = {}
        for part in loader.components:
            configs[part.folder] = part.config_in(folder / part.folder)
        return _of_shapes(loader, source, configs, _tokenizer(folder))
    names: list[str] = []
    without = hub.without_revision(name)
    for loader in LOADERS.values():
        if without in loader.named:
            return _of_shapes(loader, source, loader.named[without], _tokenizer(None))
        names += loader.named
    raise UserError(
        f"config.base: {shown(name)} is not on this machine, and not known by its name; expected "
        f"a folder with the config.json of every component, or one of {', '.join(names)}"
    )


def _of_shapes(
    loader: Loader,
    source: Source,
    configs: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> Pipeline:
    if loader.shapes is None:
        raise UserError(f"config.base: {source.name} is of a kind whose shapes are not known")
    _check_vae(loader, source)
    return loader.shapes(source, configs, tokenizer)


def _tokenizer(folder: Path | None) -> PreTrainedTokenizerBase:
    """The model's own, or if it is not there a shipped one in its place."""
    if folder is not None and (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    return load_tokenizer(hub.resolve(_STAND_IN, (hub.PIPELINE_TOKENIZER,)) / "tokenizer")


def _is_file(path: Path) -> bool:
    return os.path.isfile(path) or path.suffix == ".safetensors"


def layouts() -> list[hub.Layout]:
    """Of every kind of pipeline."""
    return [loader.layout for loader in LOADERS.values()]


def _loader(folder: Path) -> Loader:
    """Of the kind that the folder holds."""
    best = hub.best_layout(folder, layouts())
    return next(loader for loader in LOADERS.values() if loader.layout is best)
