"""The tokenizer: drawings → tokens (VQGAN)."""

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
from styledrop_jax.models import vqgan
from styledrop_jax.pipelines import muse_files


def _vq_loss(model: vqgan.VQModel, batch: jax.Array, keys: jax.Array) -> tuple[jax.Array, dict]:
    """`picture_loss`, and both codebook terms (VQ-VAE, 1711.00937, Eq. 3)."""
    del keys
    images = unit(batch)
    z = model.features(images)
    tokens = model.quantize.nearest(z)
    codes = model.quantize(tokens)
    out = model.decode_features(z + jax.lax.stop_gradient(codes - z))
    drawn, l1 = picture_loss(out - images)
    commit = jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2)
    codebook = jnp.mean((codes - jax.lax.stop_gradient(z)) ** 2)
    loss = drawn + 0.25 * commit + codebook
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

    held = data.held_out_images(32)
    model_config = vqgan.Config.emoji64(width=config.width)
    if config.init:
        model = muse_files.VQVAE.load(Path(config.init))
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
        return reconstructions("vq", held, restore(trained, held))

    def export(trained: vqgan.VQModel, folder: Path) -> None:
        tensors = pretrained.export(trained, vqgan.RULES, dtype=np.float16)
        hub.save_component(folder / "vqvae", model_config.to_dict(), tensors)

    decoder = nnx.Any(nnx.PathContains("decoder"), nnx.PathContains("post_quant_conv"))
    return Task(
        model=model,
        trainable=nnx.All(nnx.Param, decoder) if config.init else nnx.Param,
        loss=_vq_loss,
        batches=drawings(data, config),
        after=after,
        picture=picture,
        export=export,
    )
