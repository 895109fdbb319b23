"""Stable Diffusion XL's networks against the reference libraries: the U-Net, and both text
towers."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from flax import nnx
from reference_models import close, randomize, shapes

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.clip_config import PairConfig, TextConfig
from styledrop_jax.models.config_json import require_layers

UNET = {  # unet/config.json of the public base model
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
REFINER = UNET | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
}
_TOWER = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "vocab_size": 49408,
}
TOWERS = {  # config.json of text_encoder and text_encoder_2
    "first": _TOWER
    | {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "second": _TOWER
    | {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
}
VAE = {  # vae/config.json
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SMALL = unet.Config(
    sample_size=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=2,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=(2, 4),
    transformer_layers_per_block=(1, 3),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=6,
    projection_class_embeddings_input_dim=46,
)
SIZES = np.array([[1024, 1024, 0, 0, 1024, 1024], [700, 512, 8, 0, 640, 512]], np.float32)
BOS, EOS, PAD = 98, 99, 0
# Texts as the first tower reads them: some words, none, with the second's padding in them, too many
IDS = np.array(
    [
        [BOS, 5, 6, EOS, EOS, EOS, EOS, EOS],
        [BOS, EOS, EOS, EOS, EOS, EOS, EOS, EOS],
        [BOS, 7, PAD, PAD, EOS, EOS, EOS, EOS],
        [BOS, 1, 2, 3, 4, 5, 6, EOS],
    ]
)
SECOND = np.array(
    [
        [BOS, 5, 6, EOS, PAD, PAD, PAD, PAD],
        [BOS, EOS, PAD, PAD, PAD, PAD, PAD, PAD],
        [BOS, 7, PAD, PAD, EOS, PAD, PAD, PAD],
        [BOS, 1, 2, 3, 4, 5, 6, EOS],
    ]
)


def _abstract(build: Any) -> nnx.Module:
    return nnx.eval_shape(build)


def _load(build: Any, reference: torch.nn.Module, rules: Any) -> Any:
    tensors = {}
    for name, tensor in reference.state_dict().items():
        bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
        tensors[f"text_model.{name}" if bare else name] = tensor.numpy()
    return pretrained.load(build, tensors, rules, source="random")


def test_every_tensor_of_the_public_unet_has_a_place():
    config = unet.Config.from_dict(UNET)
    assert config == unet.Config.sdxl()
    assert unet.Config.from_dict(config.to_dict()) == config
    ours = pretrained.shapes(
        _abstract(lambda: unet.UNet(config, rngs=pretrained.ONE_KEY)), unet.RULES
    )
    theirs = shapes(lambda: UNet2DConditionModel.from_config(UNET))
    assert tree.differences(ours, theirs) == []
    assert sum(int(np.prod(shape)) for shape in ours.values()) == 2_567_463_684


@pytest.mark.parametrize("name", TOWERS)
def test_every_tensor_of_the_public_towers_has_a_place(name: str):
    config = TextConfig.from_dict(TOWERS[name])
    first = TextConfig.vit_l_14(projection=False)
    assert config == (first if name == "first" else TextConfig.open_clip_big_g())
    kind = getattr(transformers, TOWERS[name]["architectures"][0])
    theirs = {}
    for key, shape in shapes(lambda: kind(transformers.CLIPTextConfig(**TOWERS[name]))).items():
        theirs[key if key.startswith("text_") else f"text_model.{key}"] = shape
    ours = _abstract(lambda: clip.ClipText(config, rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(ours, clip.RULES) == theirs


def test_the_public_autoencoder_is_the_older_one_with_its_own_scale():
    config = vae.Config.from_dict(VAE)
    assert config == vae.Config.sdxl() and config.force_upcast
    ours = _abstract(lambda: vae.AutoencoderKL(config, rngs=pretrained.ONE_KEY))
    theirs = shapes(lambda: AutoencoderKL.from_config(VAE))
    assert tree.differences(pretrained.shapes(ours, vae.RULES), theirs) == []


def test_the_denoiser_is_the_reference():
    """With transformers of several layers, and the pooled text and sizes of two images."""
    reference = randomize(UNet2DConditionModel.from_config(SMALL.to_dict()))
    ours = _load(lambda: unet.UNet(SMALL, rngs=pretrained.ONE_KEY), reference, unet.RULES)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 8, 6, 4), np.float32)
    text = rng.standard_normal((2, 5, 12), np.float32)
    pooled = rng.standard_normal((2, 10), np.float32)
    times = np.array([981, 3])

    def theirs(sizes: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = reference(
                torch.from_numpy(latents).permute(0, 3, 1, 2),
                torch.from_numpy(times),
                torch.from_numpy(text),
                added_cond_kwargs={
                    "text_embeds": torch.from_numpy(pooled),
                    "time_ids": torch.from_numpy(sizes),
                },
            )
        return out.sample.permute(0, 2, 3, 1).numpy()

    added = unet.Added(jnp.asarray(pooled), jnp.asarray(SIZES))
    found = nnx.jit(lambda model: model(latents, times, text, added=added))(ours)
    expected = theirs(SIZES)
    close(found, expected)
    assert np.abs(theirs(SIZES[::-1].copy()) - expected).max() > 0.01, "the sizes show"


@pytest.fixture(scope="module")
def towers() -> dict[str, Any]:
    """Small ones of the reference, of random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    common = {"vocab_size": 100, "max_position_embeddings": 8, "num_hidden_layers": 3, **sizes}
    first = TOWERS["first"] | common
    second = TOWERS["second"] | common | {"hidden_size": 16, "projection_dim": 12}
    return {
        "first": randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**first)), 0.15),
        "second": randomize(
            transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**second)), 0.15
        ),
    }


def _pair(towers: dict[str, Any], *, zero_empty: bool) -> clip.TextPair:
    modules = []
    for name, reference in towers.items():
        values = reference.config.to_dict() | {"architectures": TOWERS[name]["architectures"]}
        config = TextConfig.from_dict(values)
        modules.append(
            _load(
                lambda: clip.ClipText(config, rngs=pretrained.ONE_KEY),  # noqa: B023
                reference,
                clip.RULES,
            )
        )
    config = PairConfig(end=EOS, first_padding=EOS, second_padding=PAD, zero_empty=zero_empty)
    return clip.TextPair(*modules, config)


def test_both_towers_are_the_reference_each_with_its_own_padding(towers):
    ids = jnp.asarray(IDS)
    with torch.no_grad():
        first = towers["first"](torch.from_numpy(IDS), output_hidden_states=True)
        second = towers["second"](torch.from_numpy(SECOND), output_hidden_states=True)
    states = np.concatenate([first.hidden_states[-2], second.hidden_states[-2]], axis=-1)
    found, pooled = _pair(towers, zero_empty=False)(ids)
    assert found.shape == (4, 8, 48) and pooled.shape == (4, 12)
    close(found, states)
    close(pooled, second.text_embeds)

    zeroed, none = _pair(towers, zero_empty=True).zeroed(ids[:, None], found, pooled)
    assert not zeroed[1].any() and not none[1].any()
    np.testing.assert_array_equal(np.delete(zeroed, 1, axis=0), np.delete(found, 1, axis=0))


def test_the_refiner_is_refused_by_name():
    with pytest.raises(UserError, match="2560, expected .* base model.*: this is SDXL's refiner"):
        unet.Config.from_dict(REFINER)


def test_more_layers_of_a_transformer_than_tensors_are_refused_before_they_are_built():
    deep = dataclasses.replace(SMALL, transformer_layers_per_block=(1, 2**19))
    with pytest.raises(UserError, match="transformer_layers_per_block"):
        require_layers(deep, 700, source="unet of mine")
