"""The autoencoder against diffusers' AutoencoderKL: names, shapes, values, tiles and export."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from flax import nnx
from reference_models import channels_first, channels_last, close, loaded_whole, randomize, shapes
from safetensors.numpy import load_file, save_file

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.models import vae
from styledrop_jax.models.vae import RULES, Config

PUBLIC = {  # vae/config.json of Stable Diffusion 1.5; 2.1's differs in sample_size, 768
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CONFIGS = {
    "attention": {"block_out_channels": (8, 16), "norm_num_groups": 4},
    "shifted, two layers": {
        "block_out_channels": (8, 12, 12),
        "layers_per_block": 2,
        "latent_channels": 3,
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
        "scaling_factor": 1.5,
        "shift_factor": 0.3,
    },
    "without quant_conv": {
        "block_out_channels": (16, 8),
        "latent_channels": 6,
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.5,
    },
}
TINY = Config(block_out_channels=(8, 8), norm_num_groups=2, mid_block_add_attention=False)


def _reference(name: str) -> AutoencoderKL:
    """With the last channel's variance beyond what the reference lets through."""
    blocks = len(CONFIGS[name]["block_out_channels"])
    model = AutoencoderKL(
        **CONFIGS[name],
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    randomize(model)
    with torch.no_grad():
        (model.quant_conv or model.encoder.conv_out).bias[-1] = 60
    return model


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((2, 16, 24, 3), np.float32)


def _build(config: Config, cls: type = vae.AutoencoderKL) -> vae.AutoencoderKL:
    return cls(config, rngs=pretrained.ONE_KEY)


def _noisy(config: Config) -> vae.AutoencoderKL:
    """With random weights, norms and biases included."""
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: _build(config))
    tensors = {}
    for name, shape in pretrained.shapes(abstract, RULES).items():
        tensors[name] = rng.normal("norm" in name and name.endswith("weight"), 0.2, shape)
    return pretrained.load(lambda: _build(config), tensors, RULES, source="random")


def _load(folder) -> vae.AutoencoderKL:
    config = Config.from_dict(hub.read_config(folder))
    tensors = pretrained.Tensors(pretrained.weight_files(folder, "diffusion_pytorch_model"), RULES)
    return pretrained.load(lambda: _build(config), tensors, RULES, source=str(folder))


@nnx.jit
def _run(model: vae.AutoencoderKL, images: jax.Array) -> tuple[jax.Array, ...]:
    posterior = model.encode(images)
    return *posterior, model.decode(posterior.mode())


@torch.no_grad()
def _run_reference(model: AutoencoderKL, images: np.ndarray) -> tuple[np.ndarray, ...]:
    """The reference's mean, log-variance and images, scaled as its pipelines scale them."""
    posterior = model.encode(channels_first(2 * images - 1)).latent_dist
    scale = model.config.scaling_factor
    mean = (posterior.mean - (model.config.shift_factor or 0)) * scale
    logvar = posterior.logvar + 2 * np.log(scale)
    decoded = model.decode(posterior.mode()).sample / 2 + 0.5
    return channels_last(mean), channels_last(logvar), channels_last(decoded)


@pytest.mark.parametrize("config", [Config.sd(), Config.emoji()])
def test_presets_have_the_reference_names_and_shapes(config):
    values = PUBLIC if config == Config.sd() else config.to_dict()
    theirs = shapes(lambda: AutoencoderKL.from_config(values))
    abstract = nnx.eval_shape(lambda: _build(config))
    assert pretrained.shapes(abstract, RULES) == theirs
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_read_as_the_public_configs_and_have_their_sizes():
    assert Config.from_dict(PUBLIC) == Config.sd()
    larger = dataclasses.replace(Config.sd(), sample_size=768)
    assert Config.from_dict(PUBLIC | {"sample_size": 768}) == larger
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for config, grid, millions in ((Config.sd(), 8, 83.65), (Config.emoji(), 16, 0.57)):
        abstract = nnx.eval_shape(lambda: _build(config))  # noqa: B023
        mean = nnx.eval_shape(lambda m, x: m.encode(x).mean, abstract, images)
        assert mean.shape == (1, grid, grid, 4)
        assert abs(tree.count(nnx.state(abstract, nnx.Param)) / 1e6 - millions) < 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_the_reference_and_returns_to_it(name, tmp_path):
    reference = _reference(name)
    images = _images()
    reference.save_pretrained(tmp_path / "in")
    model = _load(tmp_path / "in")
    theirs = _run_reference(reference, images)
    for ours, expected in zip(_run(model, jnp.asarray(images)), theirs, strict=True):
        close(ours, expected)
        assert expected.std() > 0.1, "a degenerate model would show nothing"

    hub.save_component(tmp_path / "out", model.config.to_dict(), pretrained.export(model, RULES))
    again, info = AutoencoderKL.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded_whole(info)
    for ours, expected in zip(_run_reference(again, images), theirs, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert _load(tmp_path / "out").config == model.config


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_old_attention_names_are_read(as_convolutions, tmp_path):
    _reference("attention").save_pretrained(tmp_path)
    before = _run(_load(tmp_path), jnp.asarray(_images()))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new_name, old_name in old.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        old_weight = re.fullmatch(r".+\.(?:query|key|value|proj_attn)\.weight", name)
        tensors[name] = tensor[:, :, None, None] if old_weight and as_convolutions else tensor
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, file)
    for ours, expected in zip(_run(_load(tmp_path), jnp.asarray(_images())), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_posterior_is_sampled_by_its_mean_and_variance():
    mean = jnp.array([-2.0, 0.0, 3.0])
    logvar = 2 * jnp.log(jnp.array([0.1, 1, 2]))
    grid = (1, 80, 80, 1)
    posterior = vae.Posterior(jnp.tile(mean, grid), jnp.tile(logvar, grid))
    latents = posterior.sample(jax.random.key(0))
    np.testing.assert_allclose(latents.mean((0, 1, 2)), mean, atol=0.1)
    np.testing.assert_allclose(latents.std((0, 1, 2)), [0.1, 1, 2], rtol=0.05)
    np.testing.assert_array_equal(posterior.mode(), posterior.mean)
    np.testing.assert_array_equal(latents, posterior.sample(jax.random.key(0)))


_tiled = nnx.jit(
    lambda model, z, tile, overlap: model.decode_tiled(z, tile=tile, overlap=overlap),
    static_argnums=(2, 3),
)


class _Nearest(vae.AutoencoderKL):
    """Decodes each latent by itself: whatever the tiles, nothing may change."""

    def decode(self, latents: jax.Array) -> jax.Array:
        return latents[..., :3].repeat(2, axis=1).repeat(2, axis=2)


class _Flat(vae.AutoencoderKL):
    """Decodes a tile to its own mean: where one fades into the next is all there is to see."""

    def decode(self, latents: jax.Array) -> jax.Array:
        b, h, w, _ = latents.shape
        return jnp.broadcast_to(latents.mean((1, 2, 3))[:, None, None, None], (b, 2 * h, 2 * w, 3))


@pytest.mark.parametrize(("tile", "overlap"), [(4, 1), (5, 0), (4, 3), (3, 1), (7, 2), (20, 5)])
def test_tiles_lie_in_their_places_and_add_up_to_one(tile, overlap):
    model = nnx.eval_shape(lambda: _build(TINY, _Nearest))
    latents = np.random.default_rng(1).normal(size=(2, 7, 10, 4)).astype(np.float32)
    tiled = jax.jit(lambda z: model.decode_tiled(z, tile=tile, overlap=overlap))(latents)
    np.testing.assert_allclose(tiled, model.decode(latents), atol=1e-5)


def test_tiles_fade_linearly():
    model = nnx.eval_shape(lambda: _build(TINY, _Flat))
    latents = np.broadcast_to(np.arange(6.0, dtype=np.float32)[:, None], (1, 4, 6, 4))
    image = jax.jit(lambda z: model.decode_tiled(z, tile=4, overlap=2))(latents)
    row = image[0, 0, :, 0]  # tiles of mean 1.5 and 3.5
    np.testing.assert_allclose(row[:4], 1.5, rtol=1e-6)
    np.testing.assert_allclose(np.diff(row[4:8]), 0.5, rtol=1e-5)
    np.testing.assert_allclose(row[8:], 3.5, rtol=1e-6)


def test_an_image_in_tiles_is_the_image():
    def seam(image: jax.Array) -> float:
        """How much the error, against the untiled image, changes at most between two columns."""
        return float(jnp.abs(jnp.diff(image - plain, axis=2)).mean((0, 1, 3)).max())

    latents = np.random.default_rng(2).normal(size=(1, 16, 32, 4)).astype(np.float32)
    latents = latents * TINY.scaling_factor
    model = _noisy(TINY)
    plain = nnx.jit(lambda m, z: m.decode(z))(model, latents)
    np.testing.assert_allclose(_tiled(model, latents, 32, 8), plain, atol=1e-6)
    tiled = _tiled(model, latents, 16, 8)
    cut = _tiled(model, latents, 16, 0)
    assert float(jnp.abs(tiled - plain).mean()) < 0.12 * float(plain.std())
    assert seam(tiled) < 0.25 * seam(cut)


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_impossible_tiles_are_refused(tile, overlap):
    model = nnx.eval_shape(lambda: _build(TINY))
    with pytest.raises(ValueError, match=f"overlap is {overlap}, expected 0 to"):
        model.decode_tiled(jnp.zeros((1, 8, 8, 4)), tile=tile, overlap=overlap)


@pytest.mark.parametrize("size", [(15, 16), (16, 18)])
def test_sides_must_be_divisible(size):
    model = nnx.eval_shape(lambda: _build(Config.emoji()))
    words = f"images of {size[0]}×{size[1]} pixels, expected sides divisible by 4"
    with pytest.raises(ValueError, match=words):
        model.encode(jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "vae/config.json: act_fn is 'gelu'"),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
            "down_block_types has 'AttnDownEncoderBlock2D'",
        ),
        (
            {"up_block_types": ["AttnUpDecoderBlock2D"] * 4},
            "up_block_types has 'AttnUpDecoderBlock2D'",
        ),
        ({"latents_mean": [0.1] * 4}, "latents_mean is set, only scaling_factor and shift_factor"),
    ],
)
def test_unsupported_configs_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Config.from_dict(PUBLIC | change)


def test_bfloat16_keeps_float32_parameters_latents_and_images():
    model = nnx.eval_shape(
        lambda: vae.AutoencoderKL(TINY, rngs=pretrained.ONE_KEY, dtype=jnp.bfloat16)
    )
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)

    def dtype_of(function):
        return nnx.eval_shape(function, model, images).dtype

    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
        assert leaf.dtype == jnp.float32
    assert dtype_of(lambda m, x: m.encoder(x)) == jnp.bfloat16
    assert dtype_of(lambda m, x: m.encode(x).logvar) == jnp.float32
    assert dtype_of(lambda m, x: m.decode(m.encode(x).mean)) == jnp.float32
