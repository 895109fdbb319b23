"""The shipped Stable Diffusion: the reference library samples the same, and what it is asked
for."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from flax import nnx

from styledrop_jax import guidance
from styledrop_jax.io import hub, image_files
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pipelines import load
from styledrop_jax.pipelines.base import Group, SampleSettings
from styledrop_jax.pipelines.stable_diffusion import TextStates


@pytest.fixture(scope="module")
def model():
    return load.load("emoji128")


def test_the_reference_library_samples_the_same(model):
    pipeline = StableDiffusionPipeline.from_pretrained(
        hub.SHIPPED / "emoji128",
        torch_dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    # the reference rounds its own schedule, which should end in no signal, to one that has a little
    pipeline.scheduler.alphas_cumprod = torch.from_numpy(np.array(model.schedule.alphas_cumprod))
    prompts = ["a cat", "a red apple in pencil sketch style"]
    steps = 4
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16), np.float32)
    theirs = pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=torch.from_numpy(latents),
        output_type="np",
    ).images
    graphdef, frozen = nnx.split(model.denoiser)
    text = TextStates(jnp.stack([model.encode_text(each).states for each in (prompts, ["", ""])]))
    group = Group(graphdef, {}, nnx.as_pure(frozen), text, jnp.asarray([[3.0, -2.0]] * steps))
    ours = model.sample(
        [group], [0, 1], sampler="ddim", steps=steps, latents=latents.transpose(0, 2, 3, 1)
    )
    np.testing.assert_allclose(model.decode_latents(ours), theirs, atol=2e-3)


def test_it_samples_what_it_is_asked_for(model):
    settings = SampleSettings(steps=20, lambda_b=2.0)
    prompts = ["a rocket", "a house", "a tree", "an apple"]
    branches = guidance.classifier_free(guidance.bare(model), prompts, settings)
    images = np.concatenate(list(guidance.generate(branches, range(4), settings=settings)))
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    nearest = (scorer.image_features(images) @ scorer.text_features(prompts).T).argmax(axis=1)
    assert (nearest == np.arange(4)).sum() >= 3


def test_it_holds_edges_that_64_pixels_do_not(model):
    """What it restores of a drawing is nearer to it than that same image at half the size."""
    paths = [
        hub.SHIPPED / "references" / f"{name}.png" for name in ("crown-gold", "house-papercut")
    ]
    given = np.stack([image_files.to_square(image_files.read_image(path), 128) for path in paths])
    images = given / 255
    latents = np.asarray(model.encode_images(given).mode())
    restored = model.decode_latents(latents, 2)
    assert restored.shape == (2, 128, 128, 3)
    small = restored.reshape(2, 64, 2, 64, 2, 3).mean((2, 4))
    doubled = small.repeat(2, axis=1).repeat(2, axis=2)
    error = np.abs(restored - images).mean((1, 2, 3))
    assert (error < 0.95 * np.abs(doubled - images).mean((1, 2, 3))).all()
