"""Inpainting models: the reference's inpainting pipeline number for number, and all the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from flax import nnx

from styledrop_jax import guidance
from styledrop_jax.interchange import merged
from styledrop_jax.pipelines import inpainting, load
from styledrop_jax.pipelines.base import Edit, Group, SampleSettings, TrainSettings
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.spec import from_config
from styledrop_jax.style import Style

SIZE = (16, 24)  # height and width
STEPS = 6
SCALE = 3.0
MASK = np.zeros(SIZE, bool)
MASK[4:12, 8:20] = True


@pytest.fixture(scope="module")
def inpaint_parts(parts):
    config = dict(parts["unet"].config) | {"in_channels": 9}
    del config["_use_default_values"]  # of which the number of channels was one
    torch.manual_seed(1)
    return parts | {"unet": references.noisy(UNet2DConditionModel.from_config(config))}


@pytest.fixture(scope="module")
def folder(inpaint_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpainting")
    references.save(inpaint_parts, folder, "epsilon")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> StableDiffusion:
    loaded = load.load(str(folder))
    assert isinstance(loaded, StableDiffusion) and loaded.inpaints
    return loaded


def _group(model: StableDiffusion) -> Group:
    text = jax.tree.map(lambda x: x[:, None], model.encode_text(["a cat", "a dog"]))
    graphdef, frozen = nnx.split(model.denoiser, ...)
    weights = jnp.tile(jnp.array([SCALE, 1 - SCALE]), (STEPS, 1))
    return Group(graphdef, {}, nnx.as_pure(frozen), text, weights)


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def _noise() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 8, 12, 4), np.float32)


@functools.cache
def _reference(folder, whole: bool) -> np.ndarray:
    """Latents of the reference's pipeline, of a mask or of all."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        folder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    mask = np.ones_like(MASK) if whole else MASK
    image = _picture().transpose(2, 0, 1)[None] / np.float32(255)
    out = pipeline(
        "a cat",
        negative_prompt="a dog",
        image=torch.tensor(image),
        mask_image=torch.tensor(mask[None, None].astype(np.float32)),
        height=SIZE[0],
        width=SIZE[1],
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=torch.tensor(_noise().transpose(0, 3, 1, 2)),
        output_type="latent",
    )
    return out.images.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def reference(folder, inpaint_parts):
    """`_reference` with the most likely latents of a picture, as ours are."""
    merged.save(folder / "whole", load.load(str(folder)), dtype="float32")
    patch = pytest.MonkeyPatch()
    patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    yield lambda whole: _reference(folder / "whole", whole)
    patch.undo()


def test_what_is_masked_is_generated_as_the_reference_does(model, reference):
    around = model.encode_images(inpainting.hidden(_picture(), MASK)[None]).mode()
    mask = MASK.reshape(8, 2, 12, 2).any(axis=(1, 3))[None, ..., None]
    seen = inpainting.part(mask, around)
    found = model.sample(
        [_group(model)], [0], sampler="ddim", steps=STEPS, latents=_noise(), seen=seen
    )
    np.testing.assert_allclose(found, reference(whole=False), atol=1e-4, rtol=1e-4)


def test_without_an_image_all_is_masked(model, reference):
    found = model.sample([_group(model)], [0], sampler="ddim", steps=STEPS, latents=_noise())
    np.testing.assert_allclose(found, reference(whole=True), atol=1e-4, rtol=1e-4)


def test_an_edit_looks_at_what_is_around_its_region(model):
    settings = SampleSettings(steps=STEPS)

    def edited(picture: np.ndarray) -> np.ndarray:
        around = model.encode_images(inpainting.hidden(picture, MASK)[None])
        edit = Edit(model.encode_images(_picture()[None]), MASK, 1.0, around)
        return model.generate([_group(model)], [0], settings=settings, edit=edit)[0]

    inside = _picture()
    inside[MASK] = 0
    other = np.where(MASK[..., None], _picture(), 255 - _picture())
    np.testing.assert_array_equal(edited(_picture()), edited(inside))
    assert np.abs(edited(_picture()) - edited(other)).max() > 1e-3


def test_it_learns_from_pictures_with_all_masked(model):
    picture = _picture()[None]
    targets = jax.tree.map(jnp.asarray, model.encode_images(picture))
    text = model.encode_text(["a cat"])
    keys = jax.random.split(jax.random.key(0), 1)
    settings = TrainSettings()
    graphdef, state = nnx.split(model.denoiser)

    @jax.jit
    def loss(state):
        denoiser = nnx.merge(graphdef, state)
        return model.loss(settings)(denoiser, targets, text, keys)[0]

    assert np.isfinite(loss(state)).all()


def test_shapes_are_enough_to_plan_it(folder):
    planned = load.shapes(str(folder), jnp.dtype("float32"), weights=jnp.dtype("float32"))
    group = _group(load.load(str(folder)))
    assert "sampling" in planned.programs([group], 1, SampleSettings(steps=STEPS))


def test_the_library_edits_with_it(model, tmp_path):
    style = Style(
        run=tmp_path,
        number=0,
        spec=from_config({}),
        tuned=guidance.bare(model),
        descriptor="",
        content="",
        prompts=(),
        sampling=SampleSettings(steps=2, batch_size=1),
        adapter=None,
    )
    mask = MASK.astype(np.uint8) * 255
    (edited,) = style.edit(_picture(), "a cat", mask=mask, num=1)
    found = np.asarray(edited)
    np.testing.assert_array_equal(found[~MASK], _picture()[~MASK])
    assert (found[MASK] != _picture()[MASK]).any()
