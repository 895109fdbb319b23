"""The tokenizer: images → tokens (VQGAN)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import VqSettings
from styledrop_jax.emoji.tasks import base, doubling
from styledrop_jax.errors import UserError
from styledrop_jax.models import vqgan
from styledrop_jax.pipelines import muse_files


def _loss(
    model: vqgan.VQModel, batch: jax.Array, keys: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss`, and both codebook terms (VQ-VAE, 1711.00937, Eq. 3)."""
    del keys
    images = base.to_floats(batch)
    z = model.features(images)
    tokens = model.quantize.nearest(z)
    codes = model.quantize(tokens)
    restored = model.decode_features(z + jax.lax.stop_gradient(codes - z))
    value, l1 = base.reconstruction_loss(restored - images)
    commit = jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2)
    codebook = jnp.mean((codes - jax.lax.stop_gradient(z)) ** 2)
    used = jnp.bincount(tokens.ravel(), length=model.config.num_vq_embeddings) > 0
    metrics = {"l1": l1, "commit": commit, "codes_in_batch": used.sum().astype(jnp.float32)}
    return value + 0.25 * commit + codebook, metrics


@jax.jit
def _revive(table: jax.Array, features: jax.Array, key: jax.Array) -> jax.Array:
    """Moves the codes that nothing chooses to where the codebook errs most.

    A feature takes the place of such a code with a probability that grows with its squared distance
    to the nearest code (k-means++). If all were equally likely, most would be of the plain
    background, which would then take hundreds of codes and leave few for the drawing.

    Args:
        table: the codes [v, d].
        features: of a large batch [n, d].
        key: the randomness.

    Returns:
        The new codes [v, d].
    """
    distance = (features**2).sum(-1, keepdims=True) + (table**2).sum(-1) - 2 * features @ table.T
    is_dead = jnp.bincount(jnp.argmin(distance, -1), length=table.shape[0]) == 0
    error = jnp.maximum(distance.min(-1), 1e-9)
    chosen = features[jax.random.categorical(key, jnp.log(error), shape=(table.shape[0],))]
    return jnp.where(is_dead[:, None], chosen, table)


@nnx.jit
def _restored(model: vqgan.VQModel, images: np.ndarray) -> jax.Array:
    return model.decode(model.encode(base.to_floats(images)))


class Doubled(nnx.Module):
    """A tokenizer, and the frozen one of half its size whose tokens it is to share."""

    def __init__(self, tokenizer: vqgan.VQModel, like: vqgan.VQModel):
        self.tokenizer = tokenizer
        self.like = like


def _loss_of_doubled(
    model: Doubled, batch: jax.Array, keys: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`reconstruction_loss` from the other's tokens, and how far the features are from its own."""
    del keys
    images = base.to_floats(batch)
    tokenizer = model.tokenizer
    z = jax.lax.stop_gradient(model.like.features(doubling.halved(images)))
    tokens = tokenizer.quantize.nearest(z)
    restored = tokenizer.decode_features(tokenizer.quantize(tokens))
    value, l1 = base.reconstruction_loss(restored - images)
    own = tokenizer.features(images)
    apart = jnp.mean((own - z) ** 2) / jnp.var(z)
    same = jnp.mean(tokenizer.quantize.nearest(own) == tokens)
    return value + apart, {"l1": l1, "apart": apart, "same_tokens": same}


def task(settings: VqSettings, data: Corpus, workdir: Path) -> base.Task:
    """Trains all of it; from `settings.init`, a `vqvae` folder, its decoder alone.

    With `settings.like` all but the codebook, which is that one's.
    """
    del workdir
    if settings.like:
        if settings.init:
            raise UserError("config.init: not beside config.like, which the tokenizer begins as")
        return _doubled(settings, data)
    return _anew(settings, data)


def _doubled(settings: VqSettings, data: Corpus) -> base.Task[Doubled]:
    like = muse_files.VQVAE.load(Path(settings.like))
    config = vqgan.Config.emoji(width=settings.width, size=settings.size)
    doubling.check_half(settings.like, like.config, config)
    config = dataclasses.replace(
        config,
        num_vq_embeddings=like.config.num_vq_embeddings,
        vq_embed_dim=like.config.vq_embed_dim,
    )
    key = jax.random.key(settings.seed)
    model = vqgan.VQModel(config, rngs=nnx.Rngs(key))
    doubling.begin(model, like, key)
    held = data.held_out_images(32)
    without_codes = nnx.All(
        nnx.Param, nnx.PathContains("tokenizer"), nnx.Not(nnx.PathContains("quantize"))
    )
    return base.Task(
        model=Doubled(model, like),
        trainable=without_codes,
        loss=_loss_of_doubled,
        batches=base.image_batches(data, settings),
        sheet=lambda trained: base.reconstructions("vq", held, _restored(trained.tokenizer, held)),
        export=lambda trained, out: base.save_component(
            out / "vqvae", trained.tokenizer, vqgan.RULES, config.to_dict()
        ),
    )


def _anew(settings: VqSettings, data: Corpus) -> base.Task[vqgan.VQModel]:
    size = settings.batch_size
    held = data.held_out_images(32)
    if settings.init:
        model = muse_files.VQVAE.load(Path(settings.init))
    else:
        config = vqgan.Config.emoji(width=settings.width, size=settings.size)
        model = vqgan.VQModel(config, rngs=nnx.Rngs(settings.seed))
    encode = nnx.jit(lambda model, images: model.features(base.to_floats(images)))

    def revived(current: vqgan.VQModel, step: int) -> jax.Array:
        images, _ = base.examples(data, settings, step * size, 4 * size)
        features = encode(current, images).reshape(-1, model.config.vq_embed_dim)
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), step)
        return _revive(current.quantize.embedding[...], features, key)

    if not settings.init:
        model.quantize.embedding[...] = revived(model, 0)

    def after(step: int, state: dict, graphdef: nnx.GraphDef, frozen: dict) -> dict:
        is_late = step > settings.steps * 3 // 4
        if not (settings.init or step % settings.revive_every or is_late):
            current = nnx.merge(graphdef, state["params"], frozen)
            state["params"]["quantize"]["embedding"] = revived(current, step)
        return state

    def sheet(trained: vqgan.VQModel) -> np.ndarray:
        return base.reconstructions("vq", held, _restored(trained, held))

    def export(trained: vqgan.VQModel, out: Path) -> None:
        base.save_component(out / "vqvae", trained, vqgan.RULES, model.config.to_dict())

    decoder = nnx.Any(nnx.PathContains("decoder"), nnx.PathContains("post_quant_conv"))
    return base.Task(
        model=model,
        trainable=nnx.All(nnx.Param, decoder) if settings.init else nnx.Param,
        loss=_loss,
        batches=base.image_batches(data, settings),
        after=after,
        sheet=sheet,
        export=export,
    )
