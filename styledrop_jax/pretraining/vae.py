"""The autoencoder: drawings → latents (KL-regularised, Rombach et al., 2112.10752 §3.1)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax import hub, log, pretrained, train
from styledrop_jax.backbones import muse
from styledrop_jax.data import corpus, folders
from styledrop_jax.models import vae
from styledrop_jax.pretraining.base import Task, examples, unit

_MEASURED = 512  # drawings over which the deviation of the latents is taken


def _loss(kl_weight: float) -> train.Loss:
    def loss(model: vae.AutoencoderKL, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
        """L1 + L2 + gradient difference of the picture, and the divergence from a unit Gaussian, a mean each."""
        images = unit(batch)
        latents = model.encode(images)
        error = model.decode(latents.sample(key)) - images
        slopes = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
        kl = jnp.mean(latents.mean**2 + jnp.exp(latents.logvar) - 1 - latents.logvar) / 2
        l1 = jnp.mean(jnp.abs(error))
        return l1 + jnp.mean(error**2) + slopes + kl_weight * kl, {"l1": l1, "kl": kl}

    return loss


def _take(model: vae.AutoencoderKL, folder: Path) -> None:
    """Copies every weight of a tokenizer's encoder and decoder that has its place in the autoencoder."""
    given = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(muse.load_codec(folder), nnx.Param)))
    own = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    fits = {path: given[path] for path, x in own.items() if path in given and given[path].shape == x.shape}
    nnx.update(model, nnx.traversals.unflatten_mapping(own | fits))


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    """Trains all of it; `config.init`, a `vqvae` folder, gives the blocks to start from."""
    del workdir
    size, model_config = config.batch_size, vae.Config.emoji64()
    model = vae.AutoencoderKL(model_config, rngs=nnx.Rngs(config.seed))
    if config.init:
        _take(model, Path(config.init))
    held = data.held_out_images(32)
    encode = nnx.jit(lambda model, images: model.encode(unit(images)).mode())
    decode = nnx.jit(lambda model, latents: jnp.clip(model.decode(latents), 0, 1))

    def batches(start: int, count: int) -> jax.Array:
        images, _ = examples(data, config, start * size, count * size)
        return jnp.asarray(images).reshape(count, size, *images.shape[1:])

    def picture(trained: vae.AutoencoderKL) -> np.ndarray:
        out = decode(trained, encode(trained, held))
        log.say(f"vae: mean absolute error on held-out concepts {float(jnp.abs(out - unit(held)).mean()):.4f}")
        pairs = np.stack([np.asarray(unit(held)), np.asarray(out)], 1).reshape(-1, *held.shape[1:])
        return folders.grid(list(pairs), columns=8)

    def export(trained: vae.AutoencoderKL, folder: Path) -> None:
        images, _ = examples(data, config, 0, _MEASURED)
        latents = encode(trained, images)
        scaled = dataclasses.replace(
            model_config, scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean())
        )
        tensors = pretrained.export(trained, vae.RULES, dtype=np.float16)
        hub.save_component(folder / "vae", scaled.to_dict(), tensors)

    return Task(model=model, loss=_loss(config.kl_weight), batches=batches, picture=picture, export=export)
