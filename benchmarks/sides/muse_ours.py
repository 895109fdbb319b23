"""Our side of muse_vs_reference.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sides import jax_loops
from sides.job import RANK, Job
from styledrop_jax import guidance, trainable
from styledrop_jax.adapters import full, styledrop
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.muse import Muse
from styledrop_jax.stages import objective
from styledrop_jax.training import losses

_ADAPTER = Trainable(denoiser=styledrop.Config(bottleneck=RANK, shared=True))
_TRAINED = {"adapter": _ADAPTER, "full": Trainable(denoiser=full.Config())}


def prepare(job: Job, task: str, *, guidance_scale: float) -> Callable[[], int]:
    """Loads the model.

    Returns:
        what does one turn's work, to the end, and returns its units.
    """
    model = load(str(job.folder), jnp.dtype(job.dtype))
    if task in _TRAINED:
        batch = objective.Batch(images=job.images(), prompts=job.prompts)
        return jax_loops.training(job, model, _TRAINED[task], [batch])
    settings = SampleSettings(
        batch_size=job.batch, steps=job.steps, temperature=2.0, lambda_b=guidance_scale - 1
    )
    if task == "style":
        attached = trainable.attach(model, _ADAPTER, rngs=nnx.Rngs(0))
        style = guidance.tuned(model, attached, _ADAPTER)
        branches = guidance.style_branches(style, job.prompts, settings)
    else:
        branches = guidance.classifier_free(guidance.bare(model), job.prompts, settings)
    return jax_loops.sampling(job, branches, settings)


def check(job: Job) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32; writes `adapter.npz`, which both use."""
    jax.config.update("jax_default_matmul_precision", "highest")
    model = load(str(job.folder))
    assert isinstance(model, Muse)
    inputs = np.load(job.work / "check.npz")
    tokens = inputs["tokens"]
    mask = inputs["mask"]
    b, h, w = tokens.shape
    text = model.encode_text(job.prompts[:b])
    graphdef, params, frozen = jax_loops.adapted(job, model, _ADAPTER)

    def loss_of(params):
        grid = jnp.where(mask, model.mask_id, tokens)
        denoiser = nnx.merge(graphdef, params, frozen)
        logits = denoiser(grid, text.states, text.pooled, jnp.tile(model.micro, (b, 1)))
        logits = logits.reshape(b, h * w, -1)
        loss, _ = losses.masked_token_loss(logits, tokens.reshape(b, -1), mask.reshape(b, -1))
        return loss.mean(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    return {
        "logits": np.asarray(logits),
        "loss": np.asarray(loss),
        "gradient": jax_loops.flat(gradient),
        "images": model.decode_tokens(tokens),
        "tokens": model.encode_images(job.images()[:b]),
    }
