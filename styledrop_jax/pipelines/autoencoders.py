"""The autoencoder of a Stable Diffusion: its own, or what `config.vae` names in its place."""

import dataclasses
import os
from pathlib import Path

from styledrop_jax.errors import UserError, naming, shown
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.identity import Part
from styledrop_jax.io.pretrained import Tensors
from styledrop_jax.models import vae
from styledrop_jax.pipelines.components import DIFFUSERS, Component, Source

VAE = Component(
    folder="vae",
    config=vae.Config.from_dict,
    module=vae.AutoencoderKL,
    rules=vae.RULES,
    stem=DIFFUSERS,
    upcasts=True,
)
_LAYOUTS = (
    hub.Layout(weights={"": VAE.stem}),  # an autoencoder alone, or a whole model
    hub.Layout(weights={VAE.folder: VAE.stem}),
)
_FIELD = "config.vae"


def build(source: Source, own: Part) -> tuple[Part, vae.AutoencoderKL]:
    """The autoencoder of a model, and what it was opened as.

    Args:
        source: of the model.
        own: the model's own. An autoencoder in a single file has its config.

    Raises:
        UserError: it is nowhere, or does not fit; of another one the message names the field.
    """
    if not source.vae:
        return own, source.build(VAE, own)
    with naming(_FIELD):
        place = _place(source.vae)
        if place.is_dir():
            part = VAE.open(place)
            _check(source.vae, part.config, own.config)
        else:
            part = Part(own.config, Tensors.of_autoencoder(place, vae.RULES))
        return part, dataclasses.replace(source, name=source.vae).build(VAE, part)


def config(source: Source, own: vae.Config) -> vae.Config:
    """The config of a model's autoencoder, whose weights are not read; its `own` too where another
    one is on the hub alone.

    Raises:
        UserError: it does not fit.
    """
    if not source.vae or _is_file(source.vae):
        return own
    with naming(_FIELD):
        folder = hub.on_this_machine(source.vae, _LAYOUTS)
        if folder is None:
            return own
        found = VAE.config_in(_inside(folder))
        _check(source.vae, found, own)
        return found


def files(name: str) -> list[Path]:
    """The weights of the autoencoder that `config.vae` names; UserError if they are nowhere."""
    place = _place(name)
    return pretrained.weight_files(place, VAE.stem) if place.is_dir() else [place]


def _place(name: str) -> Path:
    """The single file, or the folder of the autoencoder alone."""
    if _is_file(name):
        return Path(os.path.expanduser(name))
    return _inside(hub.resolve(name, _LAYOUTS, field=_FIELD))


def _is_file(name: str) -> bool:
    file = Path(os.path.expanduser(name))
    return os.path.isfile(file) or file.suffix == ".safetensors"


def _inside(folder: Path) -> Path:
    inner = folder / VAE.folder
    return inner if inner.is_dir() else folder


def _check(name: str, found: vae.Config, own: vae.Config) -> None:
    """UserError unless its latents have the shape of the model's own."""
    for fact in ("latent_channels", "downsampling"):
        if getattr(found, fact) != getattr(own, fact):
            raise UserError(
                f"{shown(name, 120)} has {fact} {getattr(found, fact)}, expected "
                f"{getattr(own, fact)}, as the base model's own autoencoder"
            )
