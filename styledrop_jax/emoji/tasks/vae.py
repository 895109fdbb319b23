"""The autoencoder: images → latents (KL-regularised, Rombach et al., 2112.10752 §3.1)."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import VaeSettings
from styledrop_jax.emoji.tasks import base
from styledrop_jax.models import vae
from styledrop_jax.pipelines import muse_files

_MEASURED = 512  # images over which the deviation of the latents is taken


def _loss(
    model: vae.AutoencoderKL, batch: jax.Array, keys: jax.Array, *, kl_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss`, and the mean divergence from a unit Gaussian."""
    images = base.to_floats(batch)
    latents = model.encode(images)
    restored = model.decode(jax.vmap(vae.Posterior.sample)(latents, keys))
    value, l1 = base.reconstruction_loss(restored - images)
    kl = jnp.mean(latents.mean**2 + jnp.exp(latents.logvar) - 1 - latents.logvar) / 2
    return value + kl_weight * kl, {"l1": l1, "kl": kl}


def _take(model: vae.AutoencoderKL, folder: Path) -> None:
    """Copies those of a tokenizer's weights that have a place of their shape in the autoencoder."""
    given = dict(nnx.to_flat_state(nnx.state(muse_files.VQVAE.load(folder), nnx.Param)))
    own = nnx.state(model, nnx.Param)
    for path, weight in nnx.to_flat_state(own):
        if path in given and given[path].shape == weight.shape:
            weight[...] = given[path][...]
    nnx.update(model, own)


def _centre(model: vae.AutoencoderKL, mean: float) -> None:
    """Takes the mean off the latents, in the layers beside them.

    The pipelines of Stable Diffusion know a scale of latents but no shift.
    """
    into = model.quant_conv
    out = model.post_quant_conv
    assert into is not None and into.bias is not None
    assert out is not None and out.bias is not None
    into.bias[...] = into.bias[...].at[: model.config.latent_channels].add(-mean)
    out.bias[...] = out.bias[...] + mean * out.kernel[...].sum(axis=0)


def task(settings: VaeSettings, data: Corpus, workdir: Path) -> base.Task[vae.AutoencoderKL]:
    """Trains all of it; `settings.init`, a `vqvae` folder, gives the blocks to start from."""
    del workdir
    config = vae.Config.emoji64(width=settings.width)
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(settings.seed))
    if settings.init:
        _take(model, Path(settings.init))
    held = data.held_out_images(32)
    encode = nnx.jit(lambda model, images: model.encode(base.to_floats(images)).mode())
    decode = nnx.jit(lambda model, latents: jnp.clip(model.decode(latents), 0, 1))

    def sheet(trained: vae.AutoencoderKL) -> np.ndarray:
        return base.reconstructions("vae", held, decode(trained, encode(trained, held)))

    def export(trained: vae.AutoencoderKL, out: Path) -> None:
        images, _ = base.examples(data, settings, 0, _MEASURED)
        latents = encode(trained, images)
        scaled = dataclasses.replace(config, scaling_factor=1 / float(latents.std()))
        centred = nnx.clone(trained)
        _centre(centred, float(latents.mean()))
        base.save_component(out / "vae", centred, vae.RULES, scaled.to_dict())

    return base.Task(
        model=model,
        loss=functools.partial(_loss, kl_weight=settings.kl_weight),
        batches=base.image_batches(data, settings),
        sheet=sheet,
        export=export,
    )
