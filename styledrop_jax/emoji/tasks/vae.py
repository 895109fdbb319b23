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
from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.models import vae, vqgan
from styledrop_jax.pipelines import muse_files, stable_diffusion_files

_MEASURED = 512  # images over which the deviation of the latents is taken
_DIFFERENT = 0.1  # of itself: the deviation between the weights of copied channels


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
        given = prior = jax.lax.stop_gradient(model.like.encode(base.halved(images)))
    restored = model.autoencoder.decode(jax.vmap(vae.Posterior.sample)(given, keys))
    value, l1 = base.reconstruction_loss(restored - images)
    kl = jnp.mean(_divergence(own, prior))
    return value + kl_weight * kl, {"l1": l1, "kl": kl}


def _divergence(own: vae.Posterior, prior: vae.Posterior) -> jax.Array:
    """Kullback and Leibler's, of each number's Gaussian from the other, in nats."""
    precision = jnp.exp(-prior.logvar)
    spread = own.logvar - prior.logvar
    return ((own.mean - prior.mean) ** 2 * precision + jnp.exp(spread) - 1 - spread) / 2


def _begin(
    model: vae.AutoencoderKL, source: vae.AutoencoderKL | vqgan.VQModel, key: jax.Array
) -> None:
    """Another's weights wherever they fit, so that at first the model does what that one did.

    Blocks are counted from the latents on. Where the model is a multiple as wide each channel
    begins as that many copies of one, which share what they give (Net2Net, 1511.05641 §3.1) and
    differ a little. Blocks beyond the other's begin as identities that halve and double.
    """
    given = dict(nnx.to_flat_state(nnx.state(source, nnx.Param)))
    outside = len(model.encoder.down_blocks) - len(source.encoder.down_blocks)
    own = nnx.state(model, nnx.Param)
    for i, (path, weight) in enumerate(nnx.to_flat_state(own)):
        known = given.get(_moved(path, -outside))
        if known is not None:
            if _fits(known.shape, weight.shape):
                weight[...] = _widened(known[...], weight.shape, jax.random.fold_in(key, i))
        elif path[-2:] == ("conv2", "kernel"):
            weight[...] = jnp.zeros(weight.shape)
        elif path[-1] == "kernel" and "upsamplers" in path:
            weight[...] = jnp.zeros(weight.shape).at[1, 1].set(jnp.eye(weight.shape[-1]))
        elif path[-1] == "kernel" and "downsamplers" in path:
            weight[...] = jnp.zeros(weight.shape).at[:2, :2].set(jnp.eye(weight.shape[-1]) / 4)
    nnx.update(model, own)


def _moved(path: tuple, by: int) -> tuple:
    """A parameter's path in an encoder of other many outer blocks; all others as they are."""
    if path[:2] == ("encoder", "down_blocks"):
        return (*path[:2], path[2] + by, *path[3:])
    return path


def _fits(known: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether every side of a weight's new shape is a multiple of its old one."""
    return not any(new % old for old, new in zip(known, shape, strict=True))


def _widened(known: jax.Array, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """A weight with each channel repeated to fill `shape`."""
    wide = known
    for axis, new in enumerate(shape):
        wide = jnp.repeat(wide, new // known.shape[axis], axis=axis)
    if wide.ndim == 1 or wide.shape == known.shape:
        return wide
    shared = known.shape[-2] / shape[-2]
    return wide * shared * (1 + _DIFFERENT * jax.random.normal(key, shape))


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
    config = vae.Config.emoji64(width=settings.width, size=settings.size)
    like = stable_diffusion_files.VAE.load(Path(settings.like)) if settings.like else None
    if like is not None:
        theirs = (2 * like.config.downsampling, like.config.latent_channels)
        if theirs != (config.downsampling, config.latent_channels):
            raise UserError(
                f"config.like: {settings.like} has {like.config.downsampling} pixels a latent and "
                f"{like.config.latent_channels} channels, expected {config.downsampling // 2} and "
                f"{config.latent_channels}: an autoencoder of half of config.size {settings.size}"
            )
        config = dataclasses.replace(config, scaling_factor=like.config.scaling_factor)
    key = jax.random.key(settings.seed)
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(key))
    if settings.init:
        folder = Path(settings.init)
        is_tokenizer = hub.read_config(folder).get("_class_name") == "VQModel"
        part = muse_files.VQVAE if is_tokenizer else stable_diffusion_files.VAE
        _begin(model, part.load(folder), key)
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
