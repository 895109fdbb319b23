"""Our side of muse_vs_reference.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from muse_sides.job import GUIDANCE, LEARNING_RATE, RANK, Job
from styledrop_jax import draw, losses, optim, train, trainable, tree, tuning
from styledrop_jax.adapters import styledrop
from styledrop_jax.backbones import muse
from styledrop_jax.backbones.base import Settings

_ADAPTER = trainable.Plan(denoiser=styledrop.Config(bottleneck=RANK, shared=True))
_HYPER = {"text_dropout": 0.0, "remat": False}


def prepare(job: Job, task: str) -> Callable[[], int]:
    """Loads the model; each call of the result does one turn's work, to the end, and returns its units."""
    model = muse.load(str(job.folder), jnp.bfloat16 if job.device == "gpu" else jnp.float32)
    return (_sampling if task in ("sample", "style") else _training)(job, model, task)


def peak() -> float:
    """MiB that the allocator of the device had in use at most."""
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def check(job: Job) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32; writes the adapter that both use, `adapter.npz`."""
    jax.config.update("jax_default_matmul_precision", "highest")
    model, inputs = muse.load(str(job.folder)), np.load(job.work / "check.npz")
    tuned = trainable.attach(model, _ADAPTER, rngs=nnx.Rngs(0))
    graphdef, params, frozen = train.split(tuned.denoiser, _ADAPTER.filter())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype), params)
    np.savez(job.work / "adapter.npz", **tree.flatten(params))
    tokens, mask = inputs["tokens"], inputs["mask"]
    b, h, w = tokens.shape
    text = model.encode_text(job.prompts[:b])

    def objective(params):
        grid = jnp.where(mask, model.mask_id, tokens)
        denoiser = nnx.merge(graphdef, params, frozen)
        logits = denoiser(grid, text.states, text.pooled, jnp.tile(model.micro, (b, 1))).reshape(b, h * w, -1)
        loss, _ = losses.masked_token_loss(logits, tokens.reshape(b, -1), mask.reshape(b, -1))
        return loss.mean(), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    return {
        "logits": np.asarray(logits),
        "loss": np.asarray(loss),
        "gradient": np.concatenate([np.ravel(leaf) for leaf in tree.flatten(grads).values()]),
        "images": model.decode_tokens(tokens),
        "tokens": model.encode_images(job.images()[:b]),
    }


def _training(job: Job, model: muse.Muse, task: str) -> Callable[[], int]:
    """As `personalize` trains: images and prompts encoded once, several steps a dispatch, metrics after each."""
    plan = trainable.Plan(denoiser=trainable.Full()) if task == "full" else _ADAPTER
    tuned = trainable.attach(model, plan, rngs=nnx.Rngs(0))
    data, loss = tuning.prepare(tuned, plan, [tuning.Stream(job.images(), job.prompts)], _HYPER)
    graphdef, params, frozen = train.split(data, plan.filter())
    optimizer = optim.make(LEARNING_RATE)
    state = train.init_state(params, optimizer)
    step = train.make_train_step(loss, optimizer)
    rng, key = np.random.default_rng(0), jax.random.key(0)

    def run() -> int:
        nonlocal state
        for _ in range(job.train_steps // job.steps_per_call):
            rows = np.stack([rng.permutation(job.batch)[:, None] for _ in range(job.steps_per_call)])
            state, metrics = step(graphdef, state, frozen, rows, key)
            assert np.isfinite(jax.device_get(metrics)["loss"])
        jax.block_until_ready(state)
        return job.train_steps

    return run


def _sampling(job: Job, model: muse.Muse, task: str) -> Callable[[], int]:
    settings = Settings(steps=job.steps, temperature=2.0, lambda_b=GUIDANCE - 1)
    if task == "style":
        tuned = trainable.attach(model, _ADAPTER, rngs=nnx.Rngs(0))
        branches = draw.style_branches(draw.adapted(model, tuned, _ADAPTER), job.prompts, settings)
    else:
        branches = draw.base_branches(model, job.prompts, settings)

    def run() -> int:
        for i in range(job.batches):
            seeds = range(i * job.batch, (i + 1) * job.batch)
            for images in draw.draw(branches, seeds, settings=settings, batch_size=job.batch):
                assert np.isfinite(images).all()
        return job.batches * job.batch

    return run
