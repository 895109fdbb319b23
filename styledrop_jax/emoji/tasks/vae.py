"""The autoencoder: drawings → latents (KL-regularised, Rombach et al., 2112.10752 §3.1)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks.base import (
    Task,
    drawings,
    examples,
    picture_loss,
    reconstructions,
    unit,
)
from styledrop_jax.io import hub, pretrained
from styledrop_jax.models import vae
from styledrop_jax.pipelines import muse_files
from styledrop_jax.training import loop

_MEASURED = 512  # drawings over which the deviation of the latents is taken


def _loss(kl_weight: float) -> loop.Loss:
    def loss(model: vae.AutoencoderKL, batch: jax.Array, keys: jax.Array) -> tuple[jax.Array, dict]:
        """`picture_loss`, and the mean divergence from a unit Gaussian."""
        images = unit(batch)
        latents = model.encode(images)
        drawn, l1 = picture_loss(
            model.decode(jax.vmap(vae.Posterior.sample)(latents, keys)) - images
        )
        kl = jnp.mean(latents.mean**2 + jnp.exp(latents.logvar) - 1 - latents.logvar) / 2
        return drawn + kl_weight * kl, {"l1": l1, "kl": kl}

    return loss


def _take(model: vae.AutoencoderKL, folder: Path) -> None:
    """Copies every weight of a tokenizer's encoder and decoder that has its place in the autoencoder."""
    given = nnx.traversals.flatten_mapping(
        nnx.to_pure_dict(nnx.state(muse_files.VQVAE.load(folder), nnx.Param))
    )
    own = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    fits = {
        path: given[path]
        for path, x in own.items()
        if path in given and given[path].shape == x.shape
    }
    nnx.update(model, nnx.traversals.unflatten_mapping(own | fits))


def _centre(model: vae.AutoencoderKL, mean: float) -> None:
    """Takes the mean off the latents, in the layers beside them: pipelines of Stable Diffusion know no shift."""
    into, out = model.quant_conv, model.post_quant_conv
    into.bias[...] = into.bias[...].at[: model.config.latent_channels].add(-mean)
    out.bias[...] = out.bias[...] + mean * out.kernel[...].sum(axis=0)


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    """Trains all of it; `config.init`, a `vqvae` folder, gives the blocks to start from."""
    del workdir
    model_config = vae.Config.emoji64(width=config.width)
    model = vae.AutoencoderKL(model_config, rngs=nnx.Rngs(config.seed))
    if config.init:
        _take(model, Path(config.init))
    held = data.held_out_images(32)
    encode = nnx.jit(lambda model, images: model.encode(unit(images)).mode())
    decode = nnx.jit(lambda model, latents: jnp.clip(model.decode(latents), 0, 1))

    def picture(trained: vae.AutoencoderKL) -> np.ndarray:
        return reconstructions("vae", held, decode(trained, encode(trained, held)))

    def export(trained: vae.AutoencoderKL, folder: Path) -> None:
        images, _ = examples(data, config, 0, _MEASURED)
        latents = encode(trained, images)
        scaled = dataclasses.replace(model_config, scaling_factor=1 / float(latents.std()))
        centred = nnx.clone(trained)
        _centre(centred, float(latents.mean()))
        tensors = pretrained.export(centred, vae.RULES, dtype=np.float16)
        hub.save_component(folder / "vae", scaled.to_dict(), tensors)

    return Task(
        model=model,
        loss=_loss(config.kl_weight),
        batches=drawings(data, config),
        picture=picture,
        export=export,
    )
