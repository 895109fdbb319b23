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
from styledrop_jax.io import hub
from styledrop_jax.models import vae
from styledrop_jax.pipelines import muse_files, stable_diffusion_files

_MEASURED = 512  # images over which the deviation of the latents is taken


class Trained(nnx.Module):
    """An autoencoder beside the frozen one of half its size whose latents it is to have."""

    def __init__(self, autoencoder: vae.AutoencoderKL, like: vae.AutoencoderKL | None):
        self.autoencoder = autoencoder
        self.like = like


def _loss(
    model: Trained, batch: jax.Array, keys: jax.Array, *, kl_weight: float, like_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss`, the mean divergence from a unit Gaussian, the distance to `like`."""
    images = base.to_floats(batch)
    latents = model.autoencoder.encode(images)
    restored = model.autoencoder.decode(jax.vmap(vae.Posterior.sample)(latents, keys))
    value, l1 = base.reconstruction_loss(restored - images)
    kl = jnp.mean(latents.mean**2 + jnp.exp(latents.logvar) - 1 - latents.logvar) / 2
    value += kl_weight * kl
    metrics = {"l1": l1, "kl": kl}
    if model.like is not None:
        target = jax.lax.stop_gradient(model.like.encode(base.halved(images)).mode())
        distance = jnp.mean((latents.mean[..., : target.shape[-1]] - target) ** 2)
        value += like_weight * distance
        metrics["like"] = distance
    return value, metrics


def _take(model: vae.AutoencoderKL, folder: Path) -> None:
    """Copies those of another's weights that have a place of their shape in the autoencoder.

    Blocks are counted from the latents on: one of larger images has more on the outside.
    """
    is_tokenizer = hub.read_config(folder).get("_class_name") == "VQModel"
    part = muse_files.VQVAE if is_tokenizer else stable_diffusion_files.VAE
    source = part.load(folder)
    given = dict(nnx.to_flat_state(nnx.state(source, nnx.Param)))
    outside = len(model.encoder.down_blocks) - len(source.encoder.down_blocks)
    own = nnx.state(model, nnx.Param)
    for path, weight in nnx.to_flat_state(own):
        if path[:2] == ("encoder", "down_blocks") and isinstance(path[2], int):
            path = (*path[:2], path[2] - outside, *path[3:])
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


def task(settings: VaeSettings, data: Corpus, workdir: Path) -> base.Task[Trained]:
    """Trains all of it; `settings.init` gives the blocks to start from."""
    del workdir
    config = vae.Config.emoji64(
        width=settings.width, size=settings.size, channels=settings.channels
    )
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(settings.seed))
    if settings.init:
        _take(model, Path(settings.init))
    like = stable_diffusion_files.VAE.load(Path(settings.like)) if settings.like else None
    held = data.held_out_images(32)
    encode = nnx.jit(lambda model, images: model.encode(base.to_floats(images)).mode())
    decode = nnx.jit(lambda model, latents: jnp.clip(model.decode(latents), 0, 1))

    def sheet(trained: Trained) -> np.ndarray:
        latents = encode(trained.autoencoder, held)
        return base.reconstructions("vae", held, decode(trained.autoencoder, latents))

    def export(trained: Trained, out: Path) -> None:
        images, _ = base.examples(data, settings, 0, _MEASURED)
        latents = encode(trained.autoencoder, images)
        scaled = dataclasses.replace(config, scaling_factor=1 / float(latents.std()))
        centred = nnx.clone(trained.autoencoder)
        _centre(centred, float(latents.mean()))
        base.save_component(out / "vae", centred, vae.RULES, scaled.to_dict())

    return base.Task(
        model=Trained(model, like),
        trainable=nnx.All(nnx.Param, nnx.PathContains("autoencoder")),
        loss=functools.partial(
            _loss, kl_weight=settings.kl_weight, like_weight=settings.like_weight
        ),
        batches=base.image_batches(data, settings),
        sheet=sheet,
        export=export,
    )
