"""The U-Net against diffusers' UNet2DConditionModel: names, shapes, values, control and export."""

import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.models.unet import RULES, Config, UNet

SD15 = {  # unet/config.json of Stable Diffusion 1.5
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD21 = SD15 | {  # of Stable Diffusion 2.1, 768 pixels
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SMALL = Config(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=4,
)
CONFIGS = {
    "convolutional projections": SMALL,
    "linear, a count of heads each, odd sizes": dataclasses.replace(
        SMALL,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 12, 16),
        attention_head_dim=(1, 3, 8),
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "two layers, attention below, other times": dataclasses.replace(
        SMALL,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-3,
        center_input_sample=True,
    ),
    "one resolution, more channels in than out": dataclasses.replace(
        SMALL,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        norm_num_groups=2,
        in_channels=9,
    ),
}
SIMPLE, LINEAR, *MASKED = CONFIGS  # the last two run under a mask
# Height and width of the latents.
SIZES = dict(zip(CONFIGS, [(8, 6), (9, 14), (7, 6), (3, 5)], strict=True))
MASK = np.arange(6) < np.array([[6], [3]])  # of two texts of 6 tokens, the second has 3


@functools.cache
def _reference(name: str) -> UNet2DConditionModel:
    model = UNet2DConditionModel.from_config(CONFIGS[name].to_dict())
    return reference_models.randomize(model)


@functools.cache
def _ours(name: str, dtype=jnp.float32) -> UNet:
    def build() -> UNet:
        return UNet(CONFIGS[name], rngs=pretrained.ONE_KEY, dtype=dtype)

    tensors = {path: tensor.numpy() for path, tensor in _reference(name).state_dict().items()}
    return pretrained.load(build, tensors, RULES, source="random")


def _inputs(name: str) -> tuple[np.ndarray, ...]:
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, *SIZES[name], config.in_channels), np.float32)
    timesteps = np.array([999, 1]) if name == SIMPLE else np.array([980.5, 7.25], np.float32)
    text = rng.standard_normal((2, 6, config.cross_attention_dim), np.float32)
    return latents, timesteps, text


@torch.no_grad()
def _run_reference(
    model: UNet2DConditionModel, inputs: tuple[np.ndarray, ...], mask=None
) -> np.ndarray:
    latents, timesteps, text = map(torch.from_numpy, inputs)
    mask = None if mask is None else torch.from_numpy(mask)
    out = model(latents.permute(0, 3, 1, 2), timesteps, text, encoder_attention_mask=mask).sample
    return out.permute(0, 2, 3, 1).numpy()


@nnx.jit
def _run_ours(model: UNet, inputs: tuple[jax.Array, ...], mask=None) -> jax.Array:
    return model(*inputs, text_mask=mask)


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return pretrained.shapes(nnx.eval_shape(lambda: UNet(config, rngs=pretrained.ONE_KEY)), RULES)


def _reference_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    return reference_models.shapes(lambda: UNet2DConditionModel.from_config(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_match_the_reference(name: str):
    reference = _reference(name)
    inputs = _inputs(name)
    mask = MASK if name in MASKED else None
    expected = _run_reference(reference, inputs, mask)
    found = _run_ours(_ours(name), inputs, mask)
    error = np.abs(found - expected).max()
    print(f"\nmax abs error, {name}: {error:.1e} of {np.abs(expected).max():.1f}")
    assert found.shape == (2, *SIZES[name], 4) and found.dtype == jnp.float32
    assert expected.std() > 0.1, "a degenerate model would show nothing"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    if name in MASKED:
        unmasked = _run_reference(reference, inputs)
        np.testing.assert_allclose(unmasked[0], expected[0], atol=1e-5)
        assert np.abs(unmasked - expected)[1].max() > 0.03, "the mask must show"


def test_a_control_sees_every_cross_attention_and_can_replace_its_weights():
    """Against the reference with some of its attention scores rewritten in place, under a mask."""

    def edit(weights, place: str):
        """Looks at the text's tokens in reverse on the way up."""
        return weights[..., ::-1] if place.startswith("up_blocks") else weights

    reference = copy.deepcopy(_reference(SIMPLE))
    inputs = _inputs(SIMPLE)
    expected_maps = {}

    def rewrite(place: str, scores):
        def rewritten(*args):
            probabilities = scores(*args).numpy()
            expected_maps[place] = probabilities.reshape(2, -1, *probabilities.shape[1:])
            return torch.from_numpy(edit(probabilities, place).copy())

        return rewritten

    @nnx.jit
    def run(model, inputs):
        maps = {}

        def control(weights, place):
            maps[place] = weights
            return edit(weights, place)

        return model(*inputs, text_mask=MASK, control=control), maps

    plain = _run_reference(reference, inputs, MASK)
    reference.set_attn_processor(AttnProcessor())
    for place, module in reference.named_modules():
        if place.endswith("attn2"):
            module.get_attention_scores = rewrite(place, module.get_attention_scores)
    expected = _run_reference(reference, inputs, MASK)
    found, maps = run(_ours(SIMPLE), inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(expected - plain).max() > 0.03, "the edit must show"
    assert set(maps) == set(expected_maps) and len(maps) == 4
    for place, weights in maps.items():
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(weights, expected_maps[place], atol=1e-4, err_msg=place)
    assert maps["down_blocks.0.attentions.0.transformer_blocks.0.attn2"].shape == (2, 4, 8 * 6, 6)
    assert maps["mid_block.attentions.0.transformer_blocks.0.attn2"].shape == (2, 4, 4 * 3, 6)


def test_export_reloads_in_the_reference(tmp_path):
    for name in (SIMPLE, LINEAR):
        config = CONFIGS[name]
        hub.save_component(tmp_path, config.to_dict(), pretrained.export(_ours(name), RULES))
        reloaded, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
        assert reference_models.loaded_whole(info)
        inputs = _inputs(name)
        expected = _run_reference(_reference(name), inputs)
        np.testing.assert_array_equal(_run_reference(reloaded, inputs), expected)
        assert Config.from_dict(dict(reloaded.config)) == config


@pytest.mark.parametrize(
    ("public", "preset"), [(SD15, Config.sd15()), (SD21, Config.sd21())], ids=["1.5", "2.1"]
)
def test_every_tensor_of_the_public_checkpoints_has_a_place(public: dict, preset: Config):
    assert Config.from_dict(public) == preset
    assert tree.differences(_shapes(preset), _reference_shapes(public)) == []


def test_the_shipped_preset_is_one_the_reference_builds():
    config = Config.emoji()
    shapes = _shapes(config)
    assert tree.differences(shapes, _reference_shapes(config.to_dict())) == []
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"\nparameters: {count}")
    assert 2e6 < count < 3e6


def test_every_linear_layer_and_convolution_has_an_adapter_slot():
    for name in (SIMPLE, LINEAR):
        model = nnx.eval_shape(lambda: UNet(CONFIGS[name], rngs=pretrained.ONE_KEY))  # noqa: B023
        kernels = set()
        for path in tree.flatten(nnx.state(model, nnx.Param)):
            if path.endswith(".kernel"):
                kernels.add(path)
        slots = set()
        for path, module in nnx.iter_modules(model):
            if hasattr(module, "adapter"):
                slots.add(f"{tree.path_name(path)}.kernel")
        assert slots == kernels


def test_bfloat16_compute_stays_close_and_returns_float32():
    inputs = _inputs(SIMPLE)
    found = _run_ours(_ours(SIMPLE, jnp.bfloat16), inputs)
    expected = _run_reference(_reference(SIMPLE), inputs)
    assert found.dtype == jnp.float32
    error = float(jnp.abs(found - expected).mean()) / float(np.abs(expected).mean())
    print(f"\nmean error in bfloat16, relative: {error:.3f}")
    assert error < 0.04


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu'"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection', expected None"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}, "down_block_types"),
        (
            {"up_block_types": ["UpBlock2D"] * 3},
            "up_block_types .* expected 4 of UpBlock2D and CrossAttnUpBlock2D",
        ),
        ({"layers_per_block": [2, 2, 2, 2]}, "layers_per_block"),
        ({"block_out_channels": []}, "block_out_channels"),
        (
            {"block_out_channels": [320, 640, 1280, 1290]},
            "block_out_channels .* multiples of norm_num_groups 32",
        ),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({"attention_head_dim": 7}, "attention_head_dim is 7"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
    ],
)
def test_unsupported_configs_name_the_field(change: dict, words: str):
    with pytest.raises(UserError, match=f"unet config: {words}") as error:
        Config.from_dict(SD15 | change)
    assert "\n" not in str(error.value)
