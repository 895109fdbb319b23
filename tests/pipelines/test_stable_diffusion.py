"""Stable Diffusion: the reference library's features, samples and loss, number for number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.training_utils import compute_snr
from flax import nnx
from jax.tree_util import Partial
from references import LENGTH

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.models import reading, unet
from styledrop_jax.pipelines.base import Group
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion, TextStates
from styledrop_jax.training.losses import denoising_loss, loss_at

STEPS = 8
SCALE = 5.0
SIZE = (8, 12)  # height and width of images
SHAPE = (2, 4, 6, 4)  # of the latents of two of them
PROMPTS = ["a cat", "a red house"]
NEGATIVE = "a dog"


@pytest.fixture
def model(models) -> StableDiffusion:
    return models["epsilon"]


def _torch(x) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def _normal(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _close(ours, theirs, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=tolerance, rtol=tolerance)


def _split(model: StableDiffusion, *filters) -> tuple:
    graphdef, *states = nnx.split(model.denoiser, *filters, ...)
    return graphdef, *map(nnx.as_pure, states)


def _group(model: StableDiffusion, prompts: list[list[str]], weights) -> Group:
    """Branches of the bare model, one for each list of prompts."""
    text = TextStates(jnp.stack([model.encode_text(each).states for each in prompts]))
    graphdef, frozen = _split(model)
    return Group(graphdef, {}, frozen, text, jnp.asarray(weights, jnp.float32))


def _guided(model: StableDiffusion, scale: float = SCALE) -> Group:
    return _group(model, [PROMPTS, [NEGATIVE] * 2], [[scale, 1 - scale]] * STEPS)


def _sample(model: StableDiffusion, group: Group, seeds=(0, 1), **kwargs) -> np.ndarray:
    return model.sample([group], seeds, **({"sampler": "ddim", "steps": STEPS} | kwargs))


@torch.no_grad()
def _reference_text(parts, prompts: list[str]) -> torch.Tensor:
    padding = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    return parts["text_encoder"](
        parts["tokenizer"](prompts, return_tensors="pt", **padding).input_ids
    )[0]


@torch.no_grad()
def _reference_sample(
    parts, folder, latents: np.ndarray, *, start: int = 0, rescale: float = 0.0
) -> np.ndarray:
    """Classifier-free guidance with a negative prompt; from step `start` of latents at its
    level."""
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    x = _torch(latents)
    text = _reference_text(parts, PROMPTS)
    negative = _reference_text(parts, [NEGATIVE] * 2)
    for t in scheduler.timesteps[start:]:
        cond = parts["unet"](x, t, text).sample
        uncond = parts["unet"](x, t, negative).sample
        output = rescale_noise_cfg(uncond + SCALE * (cond - uncond), cond, rescale)
        x = scheduler.step(output, t, x).prev_sample
    return _numpy(x)


def _traces(monkeypatch) -> list:
    """Grows whenever a program with the U-Net in it is made."""
    traces = []
    call = unet.UNet.__call__

    def counted(*args, **kwargs):
        traces.append(1)
        return call(*args, **kwargs)

    monkeypatch.setattr(unet.UNet, "__call__", counted)
    return traces


def test_prompts_are_the_references_each_encoded_once(model, parts, monkeypatch):
    asked = []
    original = reading.tokenize
    monkeypatch.setattr(reading, "tokenize", lambda *args: asked.append(args[1]) or original(*args))
    prompts = ["a dog", "", "a red house", "a dog", "猫の絵", ""]
    states = model.encode_text(prompts).states
    assert asked == [["a dog", "", "a red house", "猫の絵"]]
    expected = _reference_text(parts, prompts)
    _close(states, expected)


def test_images_of_any_shape_are_encoded_and_decoded_as_the_reference_does(model, parts):
    images = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)
    scale = model.autoencoder.config.scaling_factor
    found = model.encode_images(images)
    with torch.no_grad():
        expected = parts["vae"].encode(_torch(images.astype(np.float32) / 127.5 - 1)).latent_dist
        picture = parts["vae"].decode(expected.mean).sample
    assert isinstance(found.mean, np.ndarray) and found.mean.shape == (5, 4, 6, 4)
    _close(found.mean, _numpy(expected.mean * scale))
    _close(np.exp(found.logvar / 2), _numpy(expected.std * scale))
    _close(model.encode_images(images[4:].astype(np.float32) / 255).mean, found.mean[4:])

    pictures = model.decode_latents(found.mean)
    expected = _numpy((picture / 2 + 0.5).clamp(0, 1))
    assert pictures.shape == images.shape and pictures.dtype == np.float32 and expected.std() > 0.05
    _close(pictures, expected)


@pytest.mark.parametrize(("prediction", "rescale"), [("epsilon", 0.0), ("v_prediction", 0.7)])
def test_a_guided_sample_is_the_reference(prediction, rescale, models, folders, parts):
    model = models[prediction]
    noise = _normal(0)
    found = _sample(model, _guided(model), latents=noise, guidance_rescale=rescale)
    expected = _reference_sample(parts, folders[prediction], noise, rescale=rescale)
    assert found.dtype == np.float32 and expected.std() > 0.3
    _close(found, expected, 1e-3)
    assert np.abs(found[0] - found[1]).max() > 0.1


def _first_noise(model: StableDiffusion, seeds) -> np.ndarray:
    """What one step makes of the noise when the denoiser's output counts for nothing, undone."""
    group = _group(model, [[""] * len(seeds)], [[0.0]])
    out = _sample(model, group, seeds, steps=1, size=SIZE)
    after, before = model.schedule.alphas_cumprod[:2]
    return out * np.sqrt(before / after)


def test_image_to_image_is_the_reference_from_the_seeds_own_noise(
    model, parts, folders, monkeypatch
):
    noise = _first_noise(model, (7, 8))
    own = _normal(1)
    assert abs(noise.std() - 1) < 0.15 and np.abs(noise[0] - noise[1]).max() > 0.5
    group = _guided(model)
    traces = _traces(monkeypatch)
    half = _sample(model, group, (7, 8), latents=own, strength=0.5)
    made = len(traces)
    none = _sample(model, group, (7, 8), latents=own, strength=0.0)
    full = _sample(model, group, (7, 8), latents=own, strength=1.0)
    assert len(traces) == made > 0, "one program for every strength"
    np.testing.assert_array_equal(none, own)
    scheduler = DDIMScheduler.from_pretrained(folders["epsilon"] / "scheduler")
    for found, start, t in ((half, 4, [376]), (full, 0, [876])):
        noised = _numpy(scheduler.add_noise(_torch(own), _torch(noise), torch.tensor(t)))
        _close(found, _reference_sample(parts, folders["epsilon"], noised, start=start), 1e-3)


def test_an_image_depends_on_its_own_seed_prompt_and_inputs_alone(model):
    """With noise at every step and a region that is kept."""
    shape = (4, *SHAPE[1:])
    weights = [[3.0, -2.0]] * 3
    seeds = [5, 6, 5, 5]
    prompts = ["a cat", "a cat", "a red house", "a cat"]
    negatives = ["a dog", "", "", "a dog"]
    known = _normal(2, shape)
    mask = np.arange(6)[:, None] < np.array([3, 3, 3, 6])[:, None, None, None]
    mask = np.broadcast_to(mask, (*shape[:3], 1))

    def sampled(rows):
        group = _group(model, [[prompts[i] for i in rows], [negatives[i] for i in rows]], weights)
        kwargs = {
            "sampler": "ddpm",
            "steps": 3,
            "size": SIZE,
            "known": known[rows],
            "mask": mask[rows],
        }
        return _sample(model, group, [seeds[i] for i in rows], **kwargs)

    together = sampled([0, 1, 2, 3])
    for row in (0, 2):
        np.testing.assert_allclose(sampled([row])[0], together[row], atol=1e-4)
    for other in (1, 2, 3):
        assert np.abs(together[other] - together[0])[:, :3].max() > 0.1
    np.testing.assert_array_equal(together[:3, :, 3:], known[:3, :, 3:])
    assert np.abs(together - known)[:, :, :3].min() > 0


def test_branches_are_added_by_their_weights_of_each_step_whatever_carries_them(model):
    """In two groups, with other weights of the last layer in one branch, whose output they
    double."""
    graphdef, own, frozen = _split(model, nnx.PathContains("conv_out"))
    states = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), own)
    text = model.encode_text(PROMPTS).states
    negative = model.encode_text([NEGATIVE] * 2).states
    a, b, c = np.array([[1.5, 0.5], [-0.4, -0.2], [0.1, 0.6]], np.float32)  # of both steps
    groups = [
        Group(
            graphdef,
            states,
            frozen,
            TextStates(jnp.stack([text, negative])),
            jnp.stack([a, b], axis=1),
        ),
        Group(graphdef, own, frozen, TextStates(text[None]), jnp.asarray(c)[:, None], shared=True),
    ]
    kwargs = {"sampler": "dpm_solver", "steps": 2, "size": SIZE}
    found = model.sample(groups, (0, 1), **kwargs)
    expected = _sample(
        model, _group(model, [PROMPTS, [NEGATIVE] * 2], np.stack([a + c, 2 * b], axis=1)), **kwargs
    )
    _close(found, expected)


def _look_at_the_first_token(where, weights, place, step, branch):
    """In one branch, from one step on."""
    assert place.endswith(".attn2") and weights.shape[-1] == LENGTH
    chosen_branch, first_step = where
    first = jnp.zeros_like(weights).at[..., 0].set(1)
    return jnp.where((branch == chosen_branch) & (step >= first_step), first, weights)


def test_attention_is_edited_in_the_branch_and_step_of_choice(model, parts, folders, monkeypatch):
    traces = _traces(monkeypatch)

    def sampled(
        branch: int, step: int, scale: float = 1.0
    ) -> np.ndarray:  # at 1 the second branch counts for nothing
        control = Partial(_look_at_the_first_token, (jnp.array(branch), jnp.array(step)))
        return _sample(model, _guided(model, scale), latents=_normal(0), control=control)

    always = sampled(0, 0)
    made = len(traces)
    late = sampled(0, 4)
    never = sampled(0, STEPS)
    other = sampled(1, 0)
    guided = sampled(0, STEPS, SCALE)
    assert len(traces) == made > 0, "one program for every choice"
    for x, y in ((always, late), (late, never), (always, never)):
        assert np.abs(x - y).max() > 1e-2
    np.testing.assert_array_equal(other, never)
    _close(guided, _reference_sample(parts, folders["epsilon"], _normal(0)), 1e-3)


@pytest.mark.parametrize(
    ("error", "kwargs", "words"),
    [
        (
            UserError,
            {"size": (8, 9)},
            "size: found 8 high and 9 wide, expected pixels divisible by 2",
        ),
        (UserError, {"latents": _normal(0), "strength": 1.5}, "strength: found 1.5"),
        (UserError, {"sampler": "dim"}, "sampler: found 'dim'"),
        (ValueError, {"strength": 0.5}, "strength needs latents"),
        (ValueError, {"steps": 5}, "expected 5"),
    ],
)
def test_bad_settings_are_named(error, kwargs, words, model):
    with pytest.raises(error, match=words):
        _sample(model, _guided(model), **kwargs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_reference(prediction, models, folders, parts):
    model = models[prediction]
    t = np.array([0, 400, 999])
    latents = _normal(0, (3, *SHAPE[1:]))
    noise = _normal(1, (3, *SHAPE[1:]))
    scheduler = DDIMScheduler.from_pretrained(folders[prediction] / "scheduler")
    prompts = [*PROMPTS, ""]
    given = _torch(latents), _torch(noise), torch.from_numpy(t)
    target = given[1] if prediction == "epsilon" else scheduler.get_velocity(*given)
    with torch.no_grad():
        output = parts["unet"](
            scheduler.add_noise(*given), given[2], _reference_text(parts, prompts)
        ).sample
    error, snr = ((output - target) ** 2).mean(dim=(1, 2, 3)), compute_snr(scheduler, given[2])
    weight = torch.minimum(snr, torch.tensor(5.0)) / (snr if prediction == "epsilon" else snr + 1)

    @nnx.jit
    def losses(denoiser, *inputs):
        plain = loss_at(denoiser, model.schedule, *inputs, min_snr_gamma=None)
        return plain, loss_at(denoiser, model.schedule, *inputs, min_snr_gamma=5.0)

    (plain, _), (weighted, metrics) = losses(
        model.denoiser, latents, model.encode_text(prompts).states, t, noise
    )
    assert plain.shape == (3,) and plain.dtype == jnp.float32
    np.testing.assert_allclose(plain, error, rtol=1e-4)
    np.testing.assert_allclose(weighted, error * weight, rtol=1e-4)
    np.testing.assert_allclose(metrics["error"], plain, rtol=1e-6)


def test_gradients_reach_all_of_the_unet_its_text_and_nothing_else(model):
    graphdef, params = nnx.split(
        nnx.Dict(denoiser=model.denoiser, autoencoder=model.autoencoder, text=model.text)
    )
    images = np.random.default_rng(0).random((2, *SIZE, 3), np.float32)
    given = (model.schedule, model.encode_images(images).mean)
    states = model.encode_text(PROMPTS).states
    keys = jax.random.split(jax.random.key(0))

    def objective(params, states):
        return denoising_loss(
            nnx.merge(graphdef, params).denoiser, *given, states, keys, min_snr_gamma=5.0
        )[0].mean()

    grads, of_text = jax.device_get(
        jax.jit(jax.grad(objective, argnums=(0, 1)))(nnx.as_pure(params), states)
    )
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    reached = {name for name, grad in tree.flatten(grads).items() if grad.any()}
    assert reached == {name for name in tree.flatten(grads) if name.startswith("denoiser.")}
    assert of_text.any(axis=(1, 2)).all(), "what textual inversion trains through"
