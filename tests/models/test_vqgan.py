"""The VQGAN tokenizer against diffusers' VQModel: names, shapes, values, configs and export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import VQModel
from flax import nnx
from reference_models import channels_first, channels_last, close, loaded_whole, randomize, shapes
from safetensors.numpy import load_file, save_file

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.models import vqgan
from styledrop_jax.models.vqgan import RULES, Config
from styledrop_jax.pipelines.muse_files import VQVAE

PUBLIC = {  # vqvae/config.json of amused/amused-256 and -512
    "_class_name": "VQModel",
    "_diffusers_version": "0.25.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 64,
    "layers_per_block": 2,
    "lookup_from_codebook": True,
    "mid_block_add_attention": False,
    "norm_num_groups": 32,
    "norm_type": "group",
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "vq_embed_dim": 64,
}
SIZES = {  # height and width of the images
    "attention, wide image": (16, 24),
    "two layers, narrow codes": (16, 8),
    "one block": (6, 10),
}
CONFIGS = {
    "attention, wide image": {
        "block_out_channels": (8, 16),
        "latent_channels": 6,
        "norm_num_groups": 4,
    },
    "two layers, narrow codes": {
        "block_out_channels": (8, 12, 12),
        "layers_per_block": 2,
        "latent_channels": 8,
        "vq_embed_dim": 5,
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    },
    "one block": {
        "block_out_channels": (16,),
        "latent_channels": 3,
        "vq_embed_dim": 7,
        "norm_num_groups": 8,
    },
}


def _reference(name: str) -> VQModel:
    config = {"num_vq_embeddings": 40} | CONFIGS[name]
    blocks = len(config["block_out_channels"])
    model = VQModel(
        **config,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    randomize(model)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    return model


def _images(name: str) -> np.ndarray:
    return np.random.default_rng(0).random((2, *SIZES[name], 3), np.float32)


@nnx.jit
def _run(model: vqgan.VQModel, images: jax.Array) -> tuple[jax.Array, ...]:
    features = model.features(images)
    tokens = model.quantize.nearest(features)
    return (
        features,
        tokens,
        model.decode_features(model.quantize(tokens)),
        model.decode(tokens),
        model.encode(images),
    )


@torch.no_grad()
def _run_reference(model: VQModel, images: np.ndarray) -> tuple[np.ndarray, ...]:
    features = model.encode(channels_first(images)).latents
    shape = channels_last(features).shape
    tokens = model.quantize(features)[2][2].reshape(shape[:3])
    codes = model.quantize.get_codebook_entry(tokens.reshape(-1), shape)
    decoded = model.decoder(model.post_quant_conv(codes))
    if model.config.lookup_from_codebook:  # as aMUSEd's pipeline calls it
        sample = model.decode(tokens, force_not_quantize=True, shape=shape).sample
        assert torch.equal(sample, decoded)
    return channels_last(features), tokens.numpy(), channels_last(decoded)


@pytest.mark.parametrize("null_means_latent_channels", [False, True])
def test_amused_has_the_public_names_and_shapes(null_means_latent_channels):
    public = PUBLIC | ({"vq_embed_dim": None} if null_means_latent_channels else {})
    theirs = shapes(lambda: VQModel.from_config(public))
    assert Config.from_dict(public) == Config.amused()
    abstract = nnx.eval_shape(lambda: vqgan.VQModel(Config.amused(), rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(abstract, RULES) == theirs
    assert Config.amused().downsampling == 16


def test_the_shipped_one_has_the_reference_names_and_shapes():
    config = Config.emoji(width=16, size=128)
    theirs = shapes(lambda: VQModel.from_config(config.to_dict()))
    abstract = nnx.eval_shape(lambda: vqgan.VQModel(config, rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(abstract, RULES) == theirs
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_the_reference_and_returns_to_it(name, tmp_path):
    reference = _reference(name)
    images = _images(name)
    reference.save_pretrained(tmp_path / "in")
    model = VQVAE.load(tmp_path / "in")
    features, tokens, decoded = _run_reference(reference, images)
    our_features, our_tokens, our_decoded, pixels, encoded = _run(model, jnp.asarray(images))
    close(our_features, features)
    np.testing.assert_array_equal(our_tokens, tokens)
    np.testing.assert_array_equal(encoded, tokens)
    close(our_decoded, decoded)
    close(pixels, decoded.clip(0, 1))
    degenerate = len(np.unique(tokens)) < 5 or decoded.std() < 0.1
    assert not degenerate, "such a model would show nothing"

    hub.save_component(tmp_path / "out", model.config.to_dict(), pretrained.export(model, RULES))
    again, info = VQModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded_whole(info)
    theirs = (features, tokens, decoded)
    for ours, expected in zip(_run_reference(again, images), theirs, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert VQVAE.load(tmp_path / "out").config == model.config


def test_blocks_agree(tmp_path):
    reference = _reference("attention, wide image")
    reference.save_pretrained(tmp_path)
    model = VQVAE.load(tmp_path)
    run = nnx.jit(lambda block, x: block(x))
    rng = np.random.default_rng(1)
    for path, channels in [
        ("encoder.down_blocks.0", 8),
        ("encoder.down_blocks.1", 8),
        ("encoder.mid_block", 16),
        ("decoder.mid_block", 16),
        ("decoder.up_blocks.0", 16),
        ("decoder.up_blocks.1", 16),
    ]:
        x = rng.normal(size=(1, 5, 6, channels)).astype(np.float32)
        ours = model
        for part in path.split("."):
            ours = ours[int(part)] if part.isdigit() else getattr(ours, part)
        theirs = reference.get_submodule(path)
        with torch.no_grad():
            close(run(ours, x), channels_last(theirs(channels_first(x))))


def test_old_attention_names_are_read(tmp_path):
    images = _images("attention, wide image")
    _reference("attention, wide image").save_pretrained(tmp_path)
    before = _run(VQVAE.load(tmp_path), jnp.asarray(images))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new_name, old_name in old.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        tensors[name] = tensor
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, file)
    after = _run(VQVAE.load(tmp_path), jnp.asarray(images))
    for ours, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "spatial"}, "norm_type is 'spatial'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        (
            {"down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"]},
            "AttnDownEncoderBlock2D",
        ),
        (
            {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4},
            "AttnUpDecoderBlock2D",
        ),
    ],
)
def test_unsupported_configs_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Config.from_dict(PUBLIC | change)


@pytest.mark.parametrize("force_upcast", [False, True])
def test_a_model_that_asks_for_float32_computes_in_it(force_upcast, tmp_path):
    config = dataclasses.replace(Config.emoji(), force_upcast=force_upcast)
    abstract = nnx.eval_shape(lambda: vqgan.VQModel(config, rngs=pretrained.ONE_KEY))
    tensors = {}
    for name, shape in pretrained.shapes(abstract, RULES).items():
        tensors[name] = np.ones(shape, "f2")
    hub.save_component(tmp_path, config.to_dict(), tensors)
    model = VQVAE.load(tmp_path, jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, images)
    assert features.dtype == (jnp.float32 if force_upcast else jnp.bfloat16)
    assert model.encoder.conv_in.kernel[...].dtype == jnp.float32
    assert nnx.eval_shape(lambda m, x: m.decode(m.encode(x)), model, images).dtype == jnp.float32
