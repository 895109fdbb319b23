"""The tokenizer: drawings → tokens (VQGAN)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax import hub, log, pretrained
from styledrop_jax.backbones import muse
from styledrop_jax.data import corpus, folders
from styledrop_jax.models import vqgan
from styledrop_jax.pretraining.base import Task, examples, unit


def _vq_loss(model: vqgan.VQModel, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
    """L1 + L2 + gradient difference of the picture, and both codebook terms (VQ-VAE, 1711.00937, Eq. 3)."""
    del key
    images = unit(batch)
    z = model.features(images)
    tokens = model.quantize.nearest(z)
    codes = model.quantize(tokens)
    out = model.decode_features(z + jax.lax.stop_gradient(codes - z))
    error = out - images
    slopes = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    commit = jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2)
    codebook = jnp.mean((codes - jax.lax.stop_gradient(z)) ** 2)
    l1 = jnp.mean(jnp.abs(error))
    loss = l1 + jnp.mean(error**2) + slopes + 0.25 * commit + codebook
    used = jnp.bincount(tokens.ravel(), length=model.config.num_vq_embeddings) > 0
    return loss, {"l1": l1, "commit": commit, "codes_in_batch": used.sum().astype(jnp.float32)}


@jax.jit
def _revive(table: jax.Array, features: jax.Array, key: jax.Array) -> jax.Array:
    """Codes [v, d] that no feature [n, d] of a large batch chose, moved to where the codebook errs most.

    Features are drawn by their squared distance to the nearest code (k-means++). Drawn evenly, most would be of the
    plain background, which would then take hundreds of codes and hide the drawing from whoever reads the tokens.
    """
    distance = (features**2).sum(-1, keepdims=True) + (table**2).sum(-1) - 2 * features @ table.T
    dead = jnp.bincount(jnp.argmin(distance, -1), length=table.shape[0]) == 0
    error = jnp.maximum(distance.min(-1), 1e-9)
    drawn = features[jax.random.categorical(key, jnp.log(error), shape=(table.shape[0],))]
    return jnp.where(dead[:, None], drawn, table)


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    """Trains all of it; from `config.init`, a `vqvae` folder, its decoder alone."""
    del workdir
    size = config.batch_size

    def batches(start: int, count: int) -> jax.Array:
        images, _ = examples(data, config, start * size, count * size)
        return jnp.asarray(images).reshape(count, size, *images.shape[1:])

    held = data.held_out_images(32)
    model_config = vqgan.Config.emoji64()
    if config.init:
        model = muse.load_codec(Path(config.init))
        model_config = model.config
    else:
        model = vqgan.VQModel(model_config, rngs=nnx.Rngs(config.seed))
    encode = nnx.jit(lambda m, images: m.features(unit(images)))
    restore = nnx.jit(lambda m, images: m.decode(m.encode(unit(images))))

    def spread(params_model: vqgan.VQModel, step: int) -> jax.Array:
        images, _ = examples(data, config, step * size, 4 * size)
        features = encode(params_model, images).reshape(-1, model_config.vq_embed_dim)
        key = jax.random.fold_in(jax.random.key(config.seed + 1), step)
        return _revive(params_model.quantize.embedding[...], features, key)

    if not config.init:
        model.quantize.embedding[...] = spread(model, 0)

    def after(step: int, state: dict, graphdef: nnx.GraphDef, frozen: dict) -> dict:
        if config.init or step % config.revive_every or step > config.steps * 3 // 4:
            return state
        merged = nnx.merge(graphdef, state["params"], frozen)
        state["params"]["quantize"]["embedding"] = spread(merged, step)
        return state

    def picture(trained: vqgan.VQModel) -> np.ndarray:
        out = restore(trained, held)
        log.say(f"vq: mean absolute error on held-out concepts {float(jnp.abs(out - unit(held)).mean()):.4f}")
        pairs = np.stack([np.asarray(unit(held)), np.asarray(out)], 1).reshape(-1, *held.shape[1:])
        return folders.grid(list(pairs), columns=8)

    def export(trained: vqgan.VQModel, folder: Path) -> None:
        tensors = pretrained.export(trained, vqgan.RULES, dtype=np.float16)
        hub.save_component(folder / "vqvae", model_config.to_dict(), tensors)

    decoder = nnx.Any(nnx.PathContains("decoder"), nnx.PathContains("post_quant_conv"))
    return Task(
        model=model,
        trainable=nnx.All(nnx.Param, decoder) if config.init else nnx.Param,
        loss=_vq_loss,
        batches=batches,
        after=after,
        picture=picture,
        export=export,
    )
