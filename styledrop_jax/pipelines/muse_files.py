"""A Muse from the files of a diffusers folder, such as amused/amused-256."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, identity
from styledrop_jax.models import clip, uvit, vqgan
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer
from styledrop_jax.pipelines.components import DIFFUSERS, TRANSFORMERS, Component, Source
from styledrop_jax.pipelines.muse import Muse

TRANSFORMER = Component(
    folder="transformer",
    config=uvit.Config.from_dict,
    module=uvit.UVit,
    rules=uvit.RULES,
    stem=DIFFUSERS,
)
VQVAE = Component(
    folder="vqvae",
    config=vqgan.Config.from_dict,
    module=vqgan.VQModel,
    rules=vqgan.RULES,
    stem=DIFFUSERS,
    upcasts=True,
)
TEXT = Component(
    folder="text_encoder",
    config=clip.TextConfig.from_dict,
    module=clip.ClipText,
    rules=clip.RULES,
    stem=TRANSFORMERS,
)
LAYOUT = hub.Layout(
    weights={part.folder: part.stem for part in (TRANSFORMER, VQVAE, TEXT)},
    tokenizers=("tokenizer",),
)
NAMED = {
    "amused/amused-256": {
        "transformer": uvit.Config.amused_256(),
        "vqvae": vqgan.Config.amused(),
        "text_encoder": clip.TextConfig.vit_l_14(),
    },
    "amused/amused-512": {
        "transformer": uvit.Config.amused_512(),
        "vqvae": vqgan.Config.amused(),
        "text_encoder": clip.TextConfig.vit_l_14(),
    },
}
"""Configs by the hub's name of the model."""


def shapes(source: Source, configs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Muse:
    """A Muse without its weights: every array is a shape.

    Args:
        source: see `load`.
        configs: of its components, by their folders.
        tokenizer: its own, or a stand-in.
    """
    return Muse(
        name=source.name,
        base_hash="",
        denoiser=source.shapes(TRANSFORMER, configs[TRANSFORMER.folder]),
        autoencoder=source.shapes(VQVAE, configs[VQVAE.folder]),
        text=source.shapes(TEXT, configs[TEXT.folder]),
        tokenizer=tokenizer,
    )


def load(source: Source) -> Muse:
    """Loads a Muse from its folder.

    Raises:
        UserError: a file is missing or damaged, or does not fit.
    """
    denoiser = source.open(TRANSFORMER)
    autoencoder = source.open(VQVAE)
    text = source.open(TEXT)
    tokenizer = load_tokenizer(source.path / "tokenizer")
    if not text.config.projection:
        expected = "CLIPTextModelWithProjection"
        raise UserError(f"{source.path / TEXT.folder}: found CLIPTextModel, expected {expected}")
    check_tokenizer(tokenizer, text.config, source=str(source.path / "tokenizer"))
    parts = {"denoiser": denoiser, "autoencoder": autoencoder, "text": text}
    return Muse(
        name=source.name,
        base_hash=identity.of_base(parts, tokenizer),
        denoiser=source.build(TRANSFORMER, denoiser),
        autoencoder=source.build(VQVAE, autoencoder),
        text=source.build(TEXT, text),
        tokenizer=tokenizer,
    )
