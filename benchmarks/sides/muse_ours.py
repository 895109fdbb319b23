"""Our side of muse_vs_reference.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sides import jax_loops
from sides.job import RANK, Job
from styledrop_jax import trainable, tree
from styledrop_jax.adapters import styledrop
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, losses

_ADAPTER = trainable.Trainable(
    denoiser=styledrop.Config(bottleneck=RANK, shared=True)
)  # round 1 of 2306.00983


def prepare(job: Job, task: str, *, guidance: float) -> Callable[[], int]:
    """Loads the model; each call of the result does one turn's work, to the end, and returns its units."""
    model = load(str(job.folder), jnp.bfloat16 if job.device == "gpu" else jnp.float32)
    if task in ("adapter", "full"):
        plan = trainable.Trainable(denoiser=trainable.Full()) if task == "full" else _ADAPTER
        sources, hyper = (
            [objective.Stream(job.images(), job.prompts)],
            {"text_dropout": 0.0, "remat": False},
        )
        return jax_loops.training(job, model, plan, sources, hyper)
    settings = SampleSettings(steps=job.steps, temperature=2.0, lambda_b=guidance - 1)
    if task == "style":
        tuned = trainable.attach(model, _ADAPTER, rngs=nnx.Rngs(0))
        branches = guidance.style_branches(
            guidance.adapted(model, tuned, _ADAPTER), job.prompts, settings
        )
    else:
        branches = guidance.base_branches(model, job.prompts, settings)
    return jax_loops.sampling(job, branches, settings)


def check(job: Job) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32; writes the adapter that both use, `adapter.npz`."""
    jax.config.update("jax_default_matmul_precision", "highest")
    model, inputs = load(str(job.folder)), np.load(job.work / "check.npz")
    tuned = trainable.attach(model, _ADAPTER, rngs=nnx.Rngs(0))
    graphdef, params, frozen = loop.split(tuned.denoiser, _ADAPTER.filter())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype), params)
    np.savez(job.work / "adapter.npz", **tree.flatten(params))
    tokens, mask = inputs["tokens"], inputs["mask"]
    b, h, w = tokens.shape
    text = model.encode_text(job.prompts[:b])

    def objective(params):
        grid = jnp.where(mask, model.mask_id, tokens)
        denoiser = nnx.merge(graphdef, params, frozen)
        logits = denoiser(grid, text.states, text.pooled, jnp.tile(model.micro, (b, 1))).reshape(
            b, h * w, -1
        )
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
