"""Our side of sd_vs_reference.py."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sides import jax_loops
from sides.job import RANK, Job
from styledrop_jax import trainable, tree
from styledrop_jax.adapters import lora
from styledrop_jax.io import hub
from styledrop_jax.models import unet
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, losses

_PLANS = {
    "full": trainable.Trainable(denoiser=trainable.Full()),
    "lora": trainable.Trainable(denoiser=lora.Config(rank=RANK, alpha=RANK)),
}
_HYPER = {"text_dropout": 0.0, "min_snr_gamma": 0.0, "noise_offset": 0.0, "remat": False}


def prepare(
    job: Job, task: str, *, guidance: float, captions: tuple[str, str]
) -> Callable[[], int]:
    """Loads the model; each call of the result does one turn's work, to the end, and returns its units."""
    model = load(str(job.folder), jnp.bfloat16 if job.device == "gpu" else jnp.float32)
    if task in _PLANS:
        both = np.split(job.images(), 2)
        sources = [
            objective.Stream(images, [text] * job.batch)
            for images, text in zip(both, captions, strict=True)
        ]
        return jax_loops.training(job, model, _PLANS[task], sources, _HYPER)
    settings = _settings(job, guidance)
    return jax_loops.sampling(job, guidance.base_branches(model, job.prompts, settings), settings)


def _settings(job: Job, guidance: float) -> SampleSettings:
    return SampleSettings(steps=job.steps, sampler="ddim", lambda_b=guidance - 1)


def check(job: Job, *, guidance: float, captions: tuple[str, str]) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32; writes `adapter.npz` and `first.npy`, which both use."""
    jax.config.update("jax_default_matmul_precision", "highest")
    model, inputs = load(str(job.folder)), np.load(job.work / "check.npz")
    plan, t, noise = _PLANS["lora"], inputs["timesteps"], inputs["noise"]
    k = len(t) // 2  # images of a stream
    denoiser = trainable.attach(model, plan, rngs=nnx.Rngs(0)).denoiser
    graphdef, params, frozen = loop.split(denoiser, plan.filter())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype), params)
    np.savez(job.work / "adapter.npz", **tree.flatten(params))
    latents = model.encode_images(
        np.concatenate([images[:k] for images in np.split(job.images(), 2)])
    ).mode()
    states = model.encode_text([caption for caption in captions for _ in range(k)]).states

    def objective(params):
        network = nnx.merge(graphdef, params, frozen)
        each, _ = losses.loss_at(network, model.schedule, latents, states, t, noise)
        return each.reshape(2, k).mean(1).sum(), network(noise, t, states)

    (loss, output), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(
        jnp.arange(k, dtype=jnp.uint32)
    )
    first = jax.vmap(lambda key: jax.random.normal(key, noise.shape[1:]))(keys)
    np.save(job.work / "first.npy", first)  # the noise that the images of these seeds start from
    settings = _settings(job, guidance)
    branches = guidance.base_branches(model, job.prompts[:k], settings)
    return {
        "output": np.asarray(output),
        "loss": np.asarray(loss),
        "gradient": np.concatenate([np.ravel(leaf) for leaf in tree.flatten(grads).values()]),
        "text": np.asarray(states),
        "latents": latents,
        "images": next(guidance.generate(branches, range(k), settings=settings, batch_size=k)),
    }


def forward_flops(folder: Path) -> float:
    """Floating-point operations of one forward of the U-Net on one latent of its size, by XLA's count."""
    config = unet.Config.from_dict(hub.read_config(folder / "unet"))
    length = hub.read_config(folder / "text_encoder")["max_position_embeddings"]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: unet.UNet(config, rngs=nnx.Rngs(0))))
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            (1, config.sample_size, config.sample_size, config.in_channels),
            (1,),
            (1, length, config.cross_attention_dim),
        )
    ]
    lowered = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs)).lower(
        nnx.as_pure(state), *shapes
    )
    return lowered.cost_analysis()["flops"]
