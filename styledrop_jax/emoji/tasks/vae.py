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
_LOGVAR = -6.0  # of channels that are added: little noise, so that they are soon read
_DIFFERENT = 0.1  # of itself: the deviation between the weights of copied channels


class Trained(nnx.Module):
    """An autoencoder, and the frozen one whose latents its first channels are to share."""

    def __init__(self, autoencoder: vae.AutoencoderKL, like: vae.AutoencoderKL | None):
        self.autoencoder = autoencoder
        self.like = like


def _loss(
    model: Trained, batch: jax.Array, keys: jax.Array, *, kl_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss` and the encoder's mean divergence from a Gaussian.

    It is the unit one; but in the first channels `like`'s own, whose samples the decoder learns
    from: those are the latents that a denoiser draws.
    """
    images = base.to_floats(batch)
    own = model.autoencoder.encode(images)
    given = own
    prior = vae.Posterior(jnp.zeros_like(own.mean), jnp.zeros_like(own.logvar))
    if model.like is not None:
        if model.like.config.downsampling < model.autoencoder.config.downsampling:
            theirs = model.like.encode(base.halved(images))
        else:
            theirs = model.like.encode(images)
        theirs = jax.lax.stop_gradient(theirs)
        given = _in_front(theirs, own)
        prior = _in_front(theirs, prior)
    restored = model.autoencoder.decode(jax.vmap(vae.Posterior.sample)(given, keys))
    value, l1 = base.reconstruction_loss(restored - images)
    kl = jnp.mean(_divergence(own, prior))
    return value + kl_weight * kl, {"l1": l1, "kl": kl}


def _in_front(first: vae.Posterior, others: vae.Posterior) -> vae.Posterior:
    """`others` with its first channels replaced by those of `first`."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[..., a.shape[-1] :]], -1), first, others)


def _divergence(own: vae.Posterior, prior: vae.Posterior) -> jax.Array:
    """Kullback and Leibler's, of each number's Gaussian from the other, in nats."""
    precision = jnp.exp(-prior.logvar)
    spread = own.logvar - prior.logvar
    return ((own.mean - prior.mean) ** 2 * precision + jnp.exp(spread) - 1 - spread) / 2


def _with_channels(source: vae.AutoencoderKL, channels: int, key: jax.Array) -> vae.AutoencoderKL:
    """The same function with more channels of latents, which its decoder does not read yet.

    Raises:
        UserError: it has no quant_conv, which says how narrow they begin.
    """
    old = source.config.latent_channels
    config = dataclasses.replace(source.config, latent_channels=channels)
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(key))
    given = dict(nnx.to_flat_state(nnx.state(source, nnx.Param)))
    # Encoders give all means, then all variances.
    moments = np.r_[:old, channels : channels + old]
    own = nnx.state(model, nnx.Param)
    for path, weight in nnx.to_flat_state(own):
        known = given[path][...]
        start = weight[...]
        if known.shape == start.shape:
            weight[...] = known
            continue
        if start.ndim == 2:
            start = jnp.eye(len(start))
        elif path[-2:] == ("conv_in", "kernel"):
            start = jnp.zeros_like(start)
        places = []
        for before, after in zip(known.shape, start.shape, strict=True):
            places.append(moments if before == 2 * old < after else np.arange(before))
        weight[...] = start.at[np.ix_(*places)].set(known)
    nnx.update(model, own)
    if model.quant_conv is None or model.quant_conv.bias is None:
        raise UserError("config.init: an autoencoder without quant_conv, expected one with it")
    model.quant_conv.bias[...] = model.quant_conv.bias[...].at[channels + old :].set(_LOGVAR)
    return model


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
    config = vae.Config.emoji64(
        width=settings.width, size=settings.size, channels=settings.channels
    )
    like = stable_diffusion_files.VAE.load(Path(settings.like)) if settings.like else None
    if like is not None:
        f = config.downsampling
        theirs = like.config
        if theirs.downsampling not in (f // 2, f) or theirs.latent_channels > settings.channels:
            raise UserError(
                f"config.like: {settings.like} has {theirs.downsampling} pixels a latent and "
                f"{theirs.latent_channels} channels, expected {f // 2} or {f} and no more than "
                f"{settings.channels}: an autoencoder of config.size {settings.size} or half of it"
            )
        config = dataclasses.replace(config, scaling_factor=like.config.scaling_factor)
    key = jax.random.key(settings.seed)
    model = vae.AutoencoderKL(config, rngs=nnx.Rngs(key))
    if settings.init:
        folder = Path(settings.init)
        is_tokenizer = hub.read_config(folder).get("_class_name") == "VQModel"
        if is_tokenizer:
            source = muse_files.VQVAE.load(folder)
        else:
            source = stable_diffusion_files.VAE.load(folder)
            known = source.config.latent_channels
            if known > settings.channels:
                raise UserError(
                    f"config.init: {folder} has {known} channels of latents, expected no more "
                    f"than config.channels, {settings.channels}"
                )
            if known < settings.channels:
                source = _with_channels(source, settings.channels, key)
        _begin(model, source, key)
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
