"""An autoencoder of images of twice the size, which shares the latents or tokens of another."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.models import vae, vqgan
from styledrop_jax.pipelines import muse_files, stable_diffusion_files

Autoencoder = vae.AutoencoderKL | vqgan.VQModel

_DIFFERENT = 0.1  # of itself: the deviation between the weights of copied channels


def load(folder: Path) -> Autoencoder:
    """The tokenizer or the autoencoder with latents in an exported `vqvae` or `vae` folder."""
    is_tokenizer = hub.read_config(folder).get("_class_name") == "VQModel"
    part = muse_files.VQVAE if is_tokenizer else stable_diffusion_files.VAE
    return part.load(folder)


def check_half(name: str, half: vqgan.CodecConfig, config: vqgan.CodecConfig) -> None:
    """Checks that `half`, of the autoencoder in the folder `name`, is of half the size.

    Raises:
        UserError: it is of another size, or has other channels.
    """
    theirs = (2 * half.downsampling, half.latent_channels)
    if theirs != (config.downsampling, config.latent_channels):
        raise UserError(
            f"config.like: {name} has {half.downsampling} pixels a latent and "
            f"{half.latent_channels} channels, expected {config.downsampling // 2} and "
            f"{config.latent_channels}: an autoencoder of half of config.size {config.sample_size}"
        )


def halved(images: jax.Array) -> jax.Array:
    """Images [b, h, w, c] at half the size, each pixel the mean of four."""
    b, h, w, c = images.shape
    return images.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def begin(model: Autoencoder, source: Autoencoder, key: jax.Array) -> None:
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
