"""The names of the latent-diffusion code: back and forth at the released sizes, and 2.x opened."""

import dataclasses

import numpy as np
import pytest
import tiny
import worlds
from diffusers import StableDiffusionPipeline
from flax import nnx
from safetensors.numpy import load_file

from styledrop_jax.adapters import lora
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.interchange import merged, single_file
from styledrop_jax.interchange.export import EXPORTS, Trained
from styledrop_jax.io import pretrained
from styledrop_jax.io.single_file import split
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.filterwarnings("ignore")


def _names(config, module, rules):
    return list(
        pretrained.shapes(nnx.eval_shape(lambda: module(config, rngs=pretrained.ONE_KEY)), rules)
    )


def _same_names(back, there):
    assert set(back) == set(there.values())
    for name, source in back.items():
        assert there[source.name] == name


@pytest.mark.parametrize("config", [unet.Config.sd15(), unet.Config.sdxl(), unet.Config.emoji()])
def test_the_u_nets_names_go_back_and_forth(config):
    names = _names(config, unet.UNet, unet.RULES)
    there = {}
    for name in names:
        there[f"model.diffusion_model.{single_file.unet_name(name, config)}"] = name
    assert len(there) == len(names)
    others = ["first_stage_model.decoder.conv_in.bias", "cond_stage_model.transformer.x.y"]
    _same_names(split([*there, *others], source="file")["unet"], there)


@pytest.mark.parametrize("config", [vae.Config.sd(), vae.Config.emoji()])
def test_the_autoencoders_names_go_back_and_forth(config):
    names = _names(config, vae.AutoencoderKL, vae.RULES)
    blocks = len(config.block_out_channels)
    there = {}
    for name in names:
        there[f"first_stage_model.{single_file.vae_name(name, blocks=blocks)}"] = name
    assert len(there) == len(names)
    others = ["model.diffusion_model.out.0.bias", "cond_stage_model.transformer.x.y"]
    _same_names(split([*there, *others], source="file")["vae"], there)


def test_names_are_those_of_the_released_files():
    config = unet.Config.sd15()
    for name, expected in {
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": (
            "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.2.upsamplers.0.conv.weight": "output_blocks.8.2.conv.weight",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    }.items():
        assert single_file.unet_name(name, config) == expected
    for name, expected in {
        "add_embedding.linear_2.bias": "label_emb.0.2.bias",
        "down_blocks.2.attentions.0.transformer_blocks.9.ff.net.2.weight": (
            "input_blocks.7.1.transformer_blocks.9.ff.net.2.weight"
        ),
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
    }.items():
        assert single_file.unet_name(name, unet.Config.sdxl()) == expected
    for name, expected in {
        "decoder.up_blocks.3.resnets.0.conv_shortcut.weight": (
            "decoder.up.0.block.0.nin_shortcut.weight"
        ),
        "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
    }.items():
        assert single_file.vae_name(name, blocks=4) == expected


def _second_version():
    """The tiny pipeline with a longer tower, linear projections and OpenCLIP's activation."""
    base = worlds.base()
    text_config = dataclasses.replace(
        base.text.config, num_hidden_layers=13, hidden_act="gelu", projection=False
    )
    unet_config = dataclasses.replace(base.denoiser.config, use_linear_projection=True)
    parts = {}
    for name, module, config, rules in (
        ("text", clip.ClipText, text_config, clip.RULES),
        ("denoiser", unet.UNet, unet_config, unet.RULES),
    ):
        build = lambda: module(config, rngs=pretrained.ONE_KEY)  # noqa: B023, E731
        shapes = pretrained.shapes(nnx.eval_shape(build), rules)
        weights = tiny._weights(shapes, 5)
        parts[name] = pretrained.load(build, weights, rules, source="random")
    return dataclasses.replace(base, **parts)


def test_a_second_version_is_the_same_model(tmp_path, monkeypatch):
    base = _second_version()
    config = lora.Config(rank=2, alpha=4.0)
    what = Trainable(denoiser=config, text=config)
    model = worlds.with_state(base, what)
    exported = Trained(base=base, model=model, what=what, base_name="tiny", info={})
    (path,) = EXPORTS["single_file"](exported, tmp_path)

    merged.save(tmp_path / "config", base, dtype="float32")
    pipeline = StableDiffusionPipeline.from_single_file(
        str(path), config=str(tmp_path / "config"), local_files_only=True, safety_checker=None
    )
    np.testing.assert_allclose(worlds.theirs(pipeline), worlds.sampled(model), atol=1e-4)

    names = set(load_file(path))
    stem = "cond_stage_model.model.transformer.resblocks"
    assert f"{stem}.12.attn.in_proj_weight" in names
    configs = {"unet": base.denoiser.config, "vae": base.autoencoder.config}
    configs["text_encoder"] = base.text.config
    monkeypatch.setitem(stable_diffusion_files.PRESETS, 2, configs)
    merged.save(path.with_suffix(""), base, dtype="float32")  # its tokenizer and its schedule
    again = load(str(path))
    assert isinstance(again, StableDiffusion) and again.schedule == base.schedule
    expected = single_file.tensors(merged.merged(model, what), dtype="float32")
    found = single_file.tensors(again, dtype="float32")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
