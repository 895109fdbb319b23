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
from styledrop_jax.emoji.tasks import base, doubling
from styledrop_jax.models import vae
from styledrop_jax.pipelines import stable_diffusion_files

_MEASURED = 512  # images over which the deviation of the latents is taken


class Trained(nnx.Module):
    """An autoencoder, and the frozen one of half its size whose latents it is to share."""

    def __init__(self, autoencoder: vae.AutoencoderKL, like: vae.AutoencoderKL | None):
        self.autoencoder = autoencoder
        self.like = like


def _loss(
    model: Trained, batch: jax.Array, keys: jax.Array, *, kl_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss` and the encoder's mean divergence from a Gaussian.

    It is the unit one; or `like`'s own of the image at half the size, whose samples the decoder
    learns from: those are the latents that a denoiser draws.
    """
    images = base.to_floats(batch)
    own = model.autoencoder.encode(images)
    if model.like is None:
        given = own
        prior = vae.Posterior(jnp.zeros_like(own.mean), jnp.zeros_like(own.logvar))
    else:
        given = prior = jax.lax.stop_gradient(model.like.encode(doubling.halved(images)))
    restored = model.autoencoder.decode(jax.vmap(vae.Posterior.sample)(given, keys))
    value, l1 = base.reconstruction_loss(restored - images)
    kl = jnp.mean(_divergence(own, prior))
    return value + kl_weight * kl, {"l1": l1, "kl": kl}


def _divergence(own: vae.Posterior, prior: vae.Posterior) -> jax.Array:
    """Kullback and Leibler's, of each number's Gaussian from the other, in nats."""
    precision = jnp.exp(-prior.logvar)
    spread = own.logvar - prior.logvar
    return ((own.mean - prior.mean) ** 2 * precision + jnp.exp(spread) - 1 - spread) / 2


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
    """Trains all of it; `settings.init` gives the weights to start from."""
    del workdir
    config = vae.Config.emoji(width=settings.width, size=settings.size)
    like = stable_diffusion_files.VAE.load(Path(settings.like)) if settings.like else None
    if like is not None:
        doubling.check_half(settings.like, like.config, config)
        config = dataclasses.replace(config, scaling_factor=like.config.scaling_factor)
    key = jax.random.key(settings.seed)
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(key))
    if settings.init:
        doubling.begin(model, doubling.load(Path(settings.init)), key)
    held = data.held_out_images(32)
    encode = nnx.jit(lambda model, images: model.encode(base.to_floats(images)).mode())
    decode = nnx.jit(lambda model, latents: jnp.clip(model.decode(latents), 0, 1))

    def sheet(trained: Trained) -> np.ndarray:
        latents = encode(trained.autoencoder, held)
        return base.reconstructions("vae", held, decode(trained.autoencoder, latents))

    def export(trained: Trained, out: Path) -> None:
        if trained.like is not None:
            base.save_component(out / "vae", trained.autoencoder, vae.RULES, config.to_dict())
            return
        images, _ = base.examples(data, settings, 0, _MEASURED)
        latents = encode(trained.autoencoder, images)
        scaled = dataclasses.replace(config, scaling_factor=1 / float(latents.std()))
        centred = nnx.clone(trained.autoencoder)
        _centre(centred, float(latents.mean()))
        base.save_component(out / "vae", centred, vae.RULES, scaled.to_dict())

    return base.Task(
        model=Trained(model, like),
        trainable=nnx.All(nnx.Param, nnx.PathContains("autoencoder")),
        loss=functools.partial(_loss, kl_weight=settings.kl_weight),
        batches=base.image_batches(data, settings),
        sheet=sheet,
        export=export,
    )
