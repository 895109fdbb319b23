"""Our side of sd_vs_reference.py."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sides import jax_loops
from sides.job import RANK, Job
from styledrop_jax import guidance
from styledrop_jax.adapters import full, lora
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.io import hub
from styledrop_jax.models import unet
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.stages import objective
from styledrop_jax.training import losses

_TRAINED = {
    "full": Trainable(denoiser=full.Config()),
    "lora": Trainable(denoiser=lora.Config(rank=RANK, alpha=RANK)),
}


def prepare(
    job: Job, task: str, *, guidance_scale: float, captions: tuple[str, str]
) -> Callable[[], int]:
    """Loads the model.

    Returns:
        what does one turn's work, to the end, and returns its units.
    """
    model = load(str(job.folder), jnp.dtype(job.dtype))
    if task in _TRAINED:
        batches = []
        for images, caption in zip(np.split(job.images(), 2), captions, strict=True):
            batches.append(objective.Batch(images=images, prompts=[caption] * job.batch))
        return jax_loops.training(job, model, _TRAINED[task], batches)
    settings, branches = _guided(model, job.prompts, job.steps, guidance_scale)
    return jax_loops.sampling(job, branches, settings)


def _guided(
    model: Pipeline, prompts: tuple[str, ...], steps: int, guidance_scale: float
) -> tuple[SampleSettings, list[guidance.Branch]]:
    """How to sample a batch of `prompts`, as the reference's pipeline does."""
    settings = SampleSettings(
        batch_size=len(prompts), steps=steps, sampler="ddim", lambda_b=guidance_scale - 1
    )
    return settings, guidance.classifier_free(guidance.bare(model), prompts, settings)


def check(job: Job, *, guidance_scale: float, captions: tuple[str, str]) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32.

    Writes `adapter.npz` and `first.npy`, which both use.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
    model = load(str(job.folder))
    assert isinstance(model, StableDiffusion)
    inputs = np.load(job.work / "check.npz")
    t = inputs["timesteps"]
    noise = inputs["noise"]
    k = len(t) // 2  # images of a stream
    subject, of_class = np.split(job.images(), 2)
    latents = model.encode_images(np.concatenate([subject[:k], of_class[:k]])).mode()
    states = model.encode_text(np.repeat(captions, k).tolist()).states
    graphdef, params, frozen = jax_loops.adapted(job, model, _TRAINED["lora"])

    def loss_of(params):
        network = nnx.merge(graphdef, params, frozen)
        each, _ = losses.loss_at(network, model.schedule, latents, states, t, noise)
        return each.reshape(2, k).mean(1).sum(), network(noise, t, states)

    (loss, output), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    seeds = range(k)
    np.save(job.work / "first.npy", _first_noise(seeds, noise.shape[1:]))
    settings, branches = _guided(model, job.prompts[:k], job.steps, guidance_scale)
    return {
        "output": np.asarray(output),
        "loss": np.asarray(loss),
        "gradient": jax_loops.flat(gradient),
        "text": np.asarray(states),
        "latents": np.asarray(latents),
        "images": next(guidance.generate(branches, seeds, settings=settings)),
    }


def _first_noise(seeds: range, shape: tuple[int, int, int]) -> np.ndarray:
    """The noise that the images of these seeds start from, [k, h, w, c]."""
    first = []
    for seed in seeds:
        key, _ = jax.random.split(jax.random.key(seed))
        first.append(jax.random.normal(key, shape))
    return np.stack(first)


def forward_flops(folder: Path) -> float:
    """Floating-point operations of the U-Net on one latent of its size, by XLA's count."""
    config = unet.Config.from_dict(hub.read_config(folder / "unet"))
    length = hub.read_config(folder / "text_encoder")["max_position_embeddings"]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: unet.UNet(config, rngs=nnx.Rngs(0))))
    side = config.sample_size
    latents = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((1,), jnp.float32)
    states = jax.ShapeDtypeStruct((1, length, config.cross_attention_dim), jnp.float32)

    def forward(state, *inputs):
        return nnx.merge(graphdef, state)(*inputs)

    lowered = jax.jit(forward).lower(nnx.as_pure(state), latents, timesteps, states)
    cost = lowered.cost_analysis()
    assert cost is not None
    return cost["flops"]
