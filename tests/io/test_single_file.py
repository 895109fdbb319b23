"""Single-file checkpoints against diffusers' own converters: names, shapes and values."""

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from single_files import ldm_tensors

from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.io.single_file import split
from styledrop_jax.models import clip, vae

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
TINY_VAE = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
TEXT_2 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
TINY_TEXT = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
TINY_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
DEEP = {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
CONFIGS = {  # of the U-Net, the autoencoder and the text tower; only the tiny ones have values
    "1.5": ({"cross_attention_dim": 768, "attention_head_dim": 8}, VAE, TEXT),
    "2.1": (DEEP, VAE, TEXT_2),
    "tiny 1.x": (
        TINY_UNET | {"layers_per_block": 1},
        TINY_VAE,
        TINY_TEXT | {"num_hidden_layers": 2},
    ),
    "tiny 2.x": (
        TINY_UNET | {"layers_per_block": 3, "use_linear_projection": True},
        TINY_VAE | {"layers_per_block": 2},
        TINY_TEXT | {"num_hidden_layers": 23},
    ),
}


def _modules(version: str) -> dict[str, torch.nn.Module]:
    unet, vae, text = CONFIGS[version]
    torch.manual_seed(0)
    with torch.device("cpu" if "tiny" in version else "meta"):
        return {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        }


def _converted(
    version: str, modules: dict, checkpoint: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """What the reference makes of the same file."""
    if version.startswith(("2", "tiny 2")):
        text = convert_open_clip_checkpoint(modules["text_encoder"], checkpoint)
    else:
        text = convert_ldm_clip_checkpoint(checkpoint)
        text.pop("text_model.embeddings.position_ids")
    return {
        "unet": convert_ldm_unet_checkpoint(dict(checkpoint), dict(modules["unet"].config)),
        "vae": convert_ldm_vae_checkpoint(dict(checkpoint), dict(modules["vae"].config)),
        "text_encoder": text,
    }


@pytest.mark.parametrize("version", CONFIGS)
def test_agrees_with_the_reference_converters(version):
    modules = _modules(version)
    checkpoint = ldm_tensors(version, modules)
    theirs = _converted(version, modules, checkpoint)
    ours = split(list(checkpoint), source="file")
    for part, module in modules.items():
        prefix = "text_model." if part == "text_encoder" else ""
        assert {f"{prefix}{name}" for name in module.state_dict()} == set(theirs[part])
        assert set(ours[part]) == set(theirs[part])
        for name, (stored, third, _) in ours[part].items():
            tensor = checkpoint[stored] if third is None else checkpoint[stored].chunk(3)[third]
            expected = theirs[part][name]
            assert tensor.shape == expected.shape or tensor.shape == (*expected.shape, 1, 1)
            assert tensor.is_meta or torch.equal(tensor.reshape(expected.shape), expected)


@pytest.mark.parametrize("version", ["tiny 1.x", "tiny 2.x"])
def test_components_are_loaded_from_one_file(version, tmp_path):
    modules = _modules(version)
    checkpoint = ldm_tensors(version, modules)
    save_file(
        {name: tensor.clone() for name, tensor in checkpoint.items()},
        tmp_path / "tuned.safetensors",
    )
    found = pretrained.Tensors.of_single_file(tmp_path / "tuned.safetensors")
    text_config = clip.TextConfig(**CONFIGS[version][2], projection=False)
    vae_config = vae.Config.from_dict(dict(modules["vae"].config))
    for part, build, rules, prefix in (
        ("vae", lambda: vae.AutoencoderKL(vae_config, rngs=pretrained.ONE_KEY), vae.RULES, ""),
        (
            "text_encoder",
            lambda: clip.ClipText(text_config, rngs=pretrained.ONE_KEY),
            clip.RULES,
            "text_model.",
        ),
    ):
        ours = pretrained.export(pretrained.load(build, found[part], rules, source="file"), rules)
        theirs = modules[part].state_dict()
        assert set(ours) == {prefix + name for name in theirs}
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(ours[prefix + name], tensor.numpy())
    for name, tensor in modules["unet"].state_dict().items():
        np.testing.assert_array_equal(found["unet"][name], tensor.numpy())


def test_names_are_those_of_the_released_files():
    modules = _modules("1.5")
    names = set(ldm_tensors("1.5", modules))
    assert {
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
    } <= names
    sources = split(sorted(names), source="file")
    assert [len(part) for part in sources.values()] == [686, 248, 196]


def test_a_tower_saved_without_its_prefix_is_read():
    checkpoint = ldm_tensors("tiny 1.x", _modules("tiny 1.x"))
    bare = [name.replace(".transformer.text_model.", ".transformer.") for name in checkpoint]
    usual = split(list(checkpoint), source="file")
    found = split(bare, source="file")
    assert set(found["text_encoder"]) == set(usual["text_encoder"])


def test_a_2_x_by_the_names_of_xl_is_read():
    usual = ldm_tensors("tiny 2.x", _modules("tiny 2.x"))
    expected = split(list(usual), source="file")
    other = {}
    for name in usual:
        other[name] = name.replace("cond_stage_model.", "conditioner.embedders.0.")
    found = split(list(other.values()), source="file")
    for part, sources in expected.items():
        assert set(found[part]) == set(sources)
        for name, source in sources.items():
            assert found[part][name] == source._replace(name=other[source.name])


def test_what_tools_leave_beside_the_weights_is_no_part_of_the_model():
    usual = list(ldm_tensors("tiny 1.x", _modules("tiny 1.x")))
    strays = [
        "global_step",
        "v_pred",
        "model_ema.num_updates",
        "first_stage_model.loss.logvar",
        "first_stage_model.model_ema.decay",
        "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_projection.weight",
        "embedding_manager.embedder.transformer.text_model.final_layer_norm.weight",
    ]
    assert split([*usual, *strays], source="file") == split(usual, source="file")


def test_an_unknown_name_is_kept_for_the_loader_to_report():
    names = [
        *ldm_tensors("tiny 1.x", _modules("tiny 1.x")),
        "model.diffusion_model.other_emb.0.0.weight",
    ]
    assert "other_emb.0.0.weight" in split(names, source="file")["unet"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "found 0 tensors; expected a whole Stable Diffusion"),
        (
            ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"],
            r"found 1 tensors, such as lora_unet.*\(a LoRA\)",
        ),
        (["unet.down_blocks.0.attn1.to_q.lora_A.weight"], r"\(a LoRA\)"),
        (
            ["encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"],
            r"\(an autoencoder alone\)",
        ),
        (["depth_model.model.pretrained.cls_token"], r"\(Stable Diffusion 2's depth model\)"),
        (["down_blocks.0.resnets.0.conv1.weight"], r"\(the U-Net of a diffusers folder\)"),
        (
            ["model.diffusion_model.joint_blocks.0.x", "first_stage_model.x.y"],
            r"\(Stable Diffusion 3 or Flux\)",
        ),
        (["model.diffusion_model.out.0.bias", "first_stage_model.x.y"], r"cond_stage_model\.\*"),
        (["bert.encoder.layer.0.weight"], "such as bert.encoder.layer.0.weight; expected"),
    ],
)
def test_other_files_are_refused(names, words):
    with pytest.raises(UserError, match=rf"^some\.safetensors: .*{words}"):
        split(names, source="some.safetensors")


def test_a_larger_model_is_refused():
    whole = list(ldm_tensors("tiny 1.x", _modules("tiny 1.x")))
    with pytest.raises(UserError, match=r"conditioner\.embedders\.0\.x \(Stable Diffusion XL\)"):
        split([*whole, "conditioner.embedders.0.x"], source="file")
