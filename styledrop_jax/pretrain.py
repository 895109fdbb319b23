"""Trains the shipped base models from the corpus: the tokenizer, CLIP, then Muse on top of both.

One command each, resumable, and the result is a folder in the diffusers layout that the rest of the package loads like
any other checkpoint.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax import draw, hub, log, optim, pretrained, train
from styledrop_jax.backbones import muse
from styledrop_jax.data import corpus, folders, streams
from styledrop_jax.metrics import clip_scores
from styledrop_jax.models import clip, uvit, vqgan
from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer, tokenize, train_tokenizer
from styledrop_jax.run import Run, guard, write_json

_SCHEDULER = {"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}
_PARTS = {
    "transformer": ("diffusers", "UVit2DModel"),
    "vqvae": ("diffusers", "VQModel"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "AmusedScheduler"),
}
_PROMPTS = (
    "a cat",
    "a house",
    "a red apple",
    "a car in pencil sketch style",
    "a tree in flat design neon light style",
    "a dog on a blue background",
    "a small fish at the top left",
    "a rocket in glossy 3d style",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What `pretrain` needs to know of one model.

    Attributes:
        model: freshly initialised, or with frozen parts filled in.
        trainable: what the optimiser changes.
        loss: see `train.Loss`.
        batches: see `train.fit`.
        after: see `train.fit`.
        picture: draws a grid [h, w, 3] uint8 of what the trained model does.
        export: writes the trained model below a folder.
    """

    model: nnx.Module
    loss: train.Loss
    batches: Callable[[int, int], Any]
    picture: Callable[[nnx.Module], np.ndarray]
    export: Callable[[nnx.Module, Path], None]
    trainable: nnx.filterlib.Filter = nnx.Param
    after: Callable | None = None


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.task` and leaves `<workdir>/export`, a folder of safetensors, and pictures on the way.

    Raises:
        UserError: the corpus or a model that this one builds on is missing.
    """
    tasks = {"vq": _vq, "clip": _clip, "muse": _muse}
    products = {"float32": None, "bfloat16": "BF16_BF16_F32"}[config.precision]
    with (
        jax.default_matmul_precision(products),
        Run.open(workdir, config.to_dict()) as run,
        log.Logger(workdir) as logger,
    ):
        data = corpus.load(Path(config.corpus))
        task = tasks[config.task](config, data, Path(workdir))
        graphdef, _, frozen = train.split(task.model, task.trainable)

        def after(step: int, state: dict, *args) -> dict:
            state = task.after(step, state, *args) if task.after else state
            if step % config.checkpoint_every == 0 or step == config.steps:
                model = nnx.merge(graphdef, jax.tree.map(jnp.array, state["params"]), frozen)
                picture = task.picture(model)
                folders.write_png(run.path("pictures", f"{step:07d}.png"), picture)
                logger.image(config.task, step, picture)
                task.export(model, run.path("export"))
            return state

        train.fit(
            task.model,
            task.trainable,
            task.loss,
            optim.make(
                config.learning_rate,
                steps=config.steps,
                warmup=config.warmup,
                schedule="cosine",
                muon=config.optimizer == "muon",
                weight_decay=config.weight_decay,
                clip_norm=1.0,
                b2=config.b2,
            ),
            task.batches,
            steps=config.steps,
            key=jax.random.key(config.seed),
            folder=run.path("checkpoints"),
            logger=logger,
            stage=config.task,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
            after=after,
        )
        log.say(f"{config.task}: exported to {run.path('export')}")


def _examples(data: corpus.Corpus, config: ConfigDict, start: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Examples [start, start + count) of the training stream: uint8 images [n, 64, 64, 3] and captions."""
    pairs = [
        data.example(i, split="train", vocabulary=config.vocabulary, seed=config.seed)
        for i in range(start, start + count)
    ]
    return np.stack([image for image, _, _ in pairs]), [caption for _, caption, _ in pairs]


def _unit(images: jax.Array) -> jax.Array:
    """uint8 → float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


# ---------------------------------------------------------------- tokenizer


def _vq_loss(model: vqgan.VQModel, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
    """L1 + L2 + gradient difference of the picture, and both codebook terms (VQ-VAE, 1711.00937, Eq. 3)."""
    del key
    images = _unit(batch)
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


def _vq(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    del workdir
    size = config.batch_size

    def batches(start: int, count: int) -> jax.Array:
        images, _ = _examples(data, config, start * size, count * size)
        return jnp.asarray(images).reshape(count, size, *images.shape[1:])

    held = data.held_out_images(32)
    model_config = vqgan.Config.emoji64()
    if config.init:
        model = muse.load_codec(Path(config.init))
        model_config = model.config
    else:
        model = vqgan.VQModel(model_config, rngs=nnx.Rngs(config.seed))
    encode = nnx.jit(lambda m, images: m.features(_unit(images)))

    def spread(params_model: vqgan.VQModel, step: int) -> jax.Array:
        images, _ = _examples(data, config, step * size, 4 * size)
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
        out = trained.decode(trained.encode(_unit(held)))
        log.say(f"vq: mean absolute error on held-out concepts {float(jnp.abs(out - _unit(held)).mean()):.4f}")
        pairs = np.stack([np.asarray(_unit(held)), np.asarray(out)], 1).reshape(-1, *held.shape[1:])
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


# ---------------------------------------------------------------- CLIP


def _clip_loss(model: clip.Clip, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """The symmetric contrastive loss (Radford et al., 2103.00020, Fig. 3) of a batch of pictures and captions."""
    del key
    logits = model(batch["ids"], _unit(batch["images"]))  # [b, b]
    labels = jnp.arange(logits.shape[0])
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    return (rows + columns).mean() / 2, {"accuracy": (logits.argmax(-1) == labels).mean()}


def _clip(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    size = config.batch_size
    folder = workdir / "tokenizer"
    if config.init:
        start = clip_scores.ClipScorer.load(Path(config.init))
        model, tokenizer = start.model, start.tokenizer
    else:
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(train_tokenizer(data.captions(), config.vocab_size, config.max_length), folder)
        tokenizer = load_tokenizer(folder)
        model = clip.Clip(clip.ClipConfig.emoji64(vocab_size=len(tokenizer)), rngs=nnx.Rngs(config.seed))

    def batches(start: int, count: int) -> dict[str, jax.Array]:
        images, captions = _examples(data, config, start * size, count * size)
        ids = tokenize(tokenizer, captions, config.max_length)
        return {
            "images": jnp.asarray(images).reshape(count, size, *images.shape[1:]),
            "ids": jnp.asarray(ids).reshape(count, size, -1),
        }

    def picture(trained: clip.Clip) -> np.ndarray:
        images, captions = data.held_out_pairs(200)
        ids = tokenize(tokenizer, captions, config.max_length)
        logits = nnx.jit(lambda model, ids, x: model(ids, x))(trained, ids, _unit(images))
        best = np.argsort(-np.asarray(logits), axis=1)
        hits = best == np.arange(len(captions))[:, None]
        log.say(
            f"clip: image→text recall@1 {hits[:, :1].any(1).mean():.1%}, @5 {hits[:, :5].any(1).mean():.1%} "
            f"among {len(captions)} held-out pairs"
        )
        shown = [captions[row[0]] for row in best[:32]]
        return folders.grid([np.asarray(_unit(x)) for x in images[:32]], columns=8, captions=shown)

    def export(trained: clip.Clip, out: Path) -> None:
        tensors = pretrained.export(trained, clip.RULES, dtype=np.float16)
        hub.save_component(out / "clip", model.config.to_dict(), tensors)
        save_tokenizer(tokenizer, out / "clip")

    seen = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("text")))
    trainable = seen if config.init else nnx.Param
    return Task(model=model, loss=_clip_loss, batches=batches, picture=picture, export=export, trainable=trainable)


# ---------------------------------------------------------------- Muse


def _pack(
    config: ConfigDict, data: corpus.Corpus, codec: vqgan.VQModel, ids_of: Callable, path: Path
) -> dict[str, np.ndarray]:
    """The training stream as tokens [n, h, w] uint16 and caption ids [n, t] uint16: computed once, kept in `path`."""
    if not path.exists():
        encode = nnx.jit(lambda m, images: m.encode(_unit(images)))
        tokens, ids, chunk = [], [], 200
        with log.progress("muse: encoding the corpus", config.pack) as advance:
            for start in range(0, config.pack, chunk):
                images, captions = _examples(data, config, start, chunk)
                tokens.append(np.asarray(encode(codec, images), np.uint16))
                ids.append(ids_of(captions).astype(np.uint16))
                advance(chunk)
        temporary = path.with_suffix(".tmp.npz")
        with guard(temporary):
            np.savez(temporary, tokens=np.concatenate(tokens), ids=np.concatenate(ids))
            temporary.replace(path)
    with np.load(path) as found:
        return {name: found[name] for name in ("tokens", "ids")}


class _Conditioned(nnx.Module):
    """The denoiser with the frozen text tower and the ids of the empty prompt beside it."""

    def __init__(self, denoiser: uvit.UVit, text: clip.ClipText, empty: np.ndarray):
        self.denoiser = denoiser
        self.text = text
        self.empty = nnx.Variable(jnp.asarray(empty))


def _muse_loss(dropout: float, micro: jax.Array) -> train.Loss:
    def loss(model: _Conditioned, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        drop_key, mask_key = jax.random.split(key)
        drop = jax.random.bernoulli(drop_key, dropout, (len(batch["ids"]), 1))
        out = model.text(jnp.where(drop, model.empty[...], batch["ids"].astype(jnp.int32)))
        text = jax.lax.stop_gradient(muse.Text(out.hidden_states[-2], out.embeds))
        tokens = batch["tokens"].astype(jnp.int32)
        value, metrics = muse.token_loss(model.denoiser, tokens, text, micro, mask_key)
        return value.mean(), {"accuracy": metrics["accuracy"].mean()}

    return loss


def _muse(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> Task:
    folder = Path(config.clip)
    codec = muse.load_codec(Path(config.codec))
    whole = clip_scores.ClipScorer.load(folder)
    text, tokenizer = whole.model.text, whole.tokenizer
    if config.init:
        denoiser = muse.load_denoiser(Path(config.init))
    else:
        denoiser = uvit.UVit(uvit.Config.emoji64(), rngs=nnx.Rngs(config.seed))
    model = muse.Muse(
        name="pretraining",
        base_hash="",
        codec=codec,
        text=text,
        tokenizer=tokenizer,
        denoiser=denoiser,
    )

    def ids_of(captions: list[str]) -> np.ndarray:
        return tokenize(tokenizer, captions, text.config.max_position_embeddings)

    packed = _pack(config, data, codec, ids_of, workdir / "pack.npz")

    def batches(start: int, count: int) -> dict[str, jax.Array]:
        rows = np.stack(
            [
                streams.indices(step, batch_size=config.batch_size, count=config.pack, seed=config.seed)
                for step in range(start, start + count)
            ]
        )
        return {name: jnp.asarray(values[rows]) for name, values in packed.items()}

    def picture(trained: _Conditioned) -> np.ndarray:
        prompts = [prompt for prompt in _PROMPTS for _ in range(4)]
        current = dataclasses.replace(model, denoiser=trained.denoiser)
        settings = draw.Settings(temperature=2.0, lambda_b=1.0)
        branches = draw.base_branches(current, prompts, settings)
        chunks = draw.draw(branches, range(len(prompts)), settings=settings, batch_size=16)
        return folders.grid(list(np.concatenate(list(chunks))), columns=8, captions=prompts, scale=2)

    def export(trained: _Conditioned, out: Path) -> None:
        out = out / "muse"
        transformer = pretrained.export(trained.denoiser, uvit.RULES, dtype=np.float16)
        hub.save_component(out / "transformer", denoiser.config.to_dict(), transformer)
        hub.save_component(
            out / "vqvae", codec.config.to_dict(), pretrained.export(codec, vqgan.RULES, dtype=np.float16)
        )
        tower = dataclasses.replace(text.config, projection=True)
        hub.save_component(out / "text_encoder", tower.to_dict(), pretrained.export(text, clip.RULES, dtype=np.float16))
        save_tokenizer(tokenizer, out / "tokenizer")
        scheduler = _SCHEDULER | {"mask_token_id": denoiser.config.mask_token_id}
        write_json(out / "scheduler" / "scheduler_config.json", scheduler)
        hub.save_index(out, "AmusedPipeline", _PARTS)
        known = data.vocabulary(config.vocabulary)
        names = {name for concept, kept in zip(data.names, known, strict=True) if kept for name in concept}
        write_json(out.parent / "vocabulary.json", sorted(names))

    return Task(
        model=_Conditioned(model.denoiser, text, ids_of([""])[0]),
        trainable=nnx.All(nnx.Param, nnx.PathContains("denoiser")),
        loss=_muse_loss(config.text_dropout, model.micro),
        batches=batches,
        picture=picture,
        export=export,
    )
