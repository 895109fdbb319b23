"""A Muse from the files of a diffusers folder, such as amused/amused-256."""

from pathlib import Path

import jax.numpy as jnp

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, identity
from styledrop_jax.models import clip, uvit, vqgan
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer
from styledrop_jax.pipelines.components import DIFFUSERS, TRANSFORMERS, Component
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
    kind="muse",
    weights={part.folder: part.stem for part in (TRANSFORMER, VQVAE, TEXT)},
    tokenizer="tokenizer",
)


def load(
    name: str,
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
    weights: jnp.dtype | None = None,
) -> Muse:
    """Loads the Muse in `folder`.

    Args:
        name: as the user gave it.
        folder: of the diffusers layout.
        dtype: what it computes in; the autoencoder in float32 if its config says `force_upcast`.
        weights: what its weights are kept in; None is `dtype`.

    Raises:
        UserError: a file is missing or damaged, or does not fit.
    """
    denoiser = TRANSFORMER.open(folder / TRANSFORMER.folder)
    autoencoder = VQVAE.open(folder / VQVAE.folder)
    text = TEXT.open(folder / TEXT.folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if not text.config.projection:
        expected = "CLIPTextModelWithProjection"
        raise UserError(f"{folder / TEXT.folder}: found CLIPTextModel, expected {expected}")
    check_tokenizer(tokenizer, text.config, source=str(folder / "tokenizer"))
    parts = {"denoiser": denoiser, "autoencoder": autoencoder, "text": text}
    return Muse(
        name=name,
        base_hash=identity.of_base(parts, tokenizer),
        denoiser=TRANSFORMER.build(
            denoiser, dtype, source=f"transformer of {name}", weights=weights
        ),
        autoencoder=VQVAE.build(autoencoder, dtype, source=f"vqvae of {name}"),
        text=TEXT.build(text, dtype, source=f"text_encoder of {name}", weights=weights),
        tokenizer=tokenizer,
    )
