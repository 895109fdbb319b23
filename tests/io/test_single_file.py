"""Single-file checkpoints against diffusers' own converters: names, shapes and values."""

import re

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
from flax import nnx
from safetensors.torch import save_file

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
CONFIGS = {  # of the UNet, the autoencoder and the text tower; only the tiny ones have values
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


def _sub(name: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        name = re.sub(old, new, name)
    return name


def _ldm_unet(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The UNet by the names of the latent-diffusion code, whose blocks are numbered through."""

    def number(side: str, offset: int, place: str):
        return lambda m: f"{side}_blocks.{int(m[1]) * (layers + 1) + int(m[2]) + offset}.{place}."

    def upsampler(m: re.Match) -> str:
        place = (
            2 if any(name.startswith(f"up_blocks.{m[1]}.attentions.") for name in tensors) else 1
        )
        return f"output_blocks.{int(m[1]) * (layers + 1) + layers}.{place}.conv."

    pairs = {
        r"^time_embedding\.linear_1": "time_embed.0",
        r"^time_embedding\.linear_2": "time_embed.2",
        r"^conv_in": "input_blocks.0.0",
        r"^conv_norm_out": "out.0",
        r"^conv_out": "out.2",
        r"^mid_block\.resnets\.0": "middle_block.0",
        r"^mid_block\.attentions\.0": "middle_block.1",
        r"^mid_block\.resnets\.1": "middle_block.2",
        r"^down_blocks\.(\d)\.resnets\.(\d)\.": number("input", 1, "0"),
        r"^down_blocks\.(\d)\.attentions\.(\d)\.": number("input", 1, "1"),
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.": lambda m: (
            f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op."
        ),
        r"^up_blocks\.(\d)\.resnets\.(\d)\.": number("output", 0, "0"),
        r"^up_blocks\.(\d)\.attentions\.(\d)\.": number("output", 0, "1"),
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.": upsampler,
    }
    resnet = {
        r"\bnorm1\.": "in_layers.0.",
        r"\bconv1\.": "in_layers.2.",
        r"\btime_emb_proj\.": "emb_layers.1.",
        r"\bnorm2\.": "out_layers.0.",
        r"\bconv2\.": "out_layers.3.",
        r"\bconv_shortcut\.": "skip_connection.",
    }
    return {
        f"model.diffusion_model.{_sub(_sub(name, resnet) if '.resnets.' in name else name, pairs)}": tensor
        for name, tensor in tensors.items()
    }


def _ldm_vae(tensors: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    pairs = {
        r"conv_norm_out": "norm_out",
        r"conv_shortcut": "nin_shortcut",
        r"down_blocks\.(\d)\.resnets": r"down.\1.block",
        r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
        r"up_blocks\.(\d)\.resnets": lambda m: f"up.{blocks - 1 - int(m[1])}.block",
        r"up_blocks\.(\d)\.upsamplers\.0": lambda m: f"up.{blocks - 1 - int(m[1])}.upsample",
        r"mid_block\.resnets\.(\d)": lambda m: f"mid.block_{int(m[1]) + 1}",
        r"mid_block\.attentions\.0": "mid.attn_1",
        r"group_norm": "norm",
        r"to_([qkv])\.": r"\1.",
        r"to_out\.0": "proj_out",
    }
    attention = re.compile(r".*attentions.*to_.*weight")
    return {
        f"first_stage_model.{_sub(name, pairs)}": tensor[:, :, None, None]
        if attention.match(name)
        else tensor
        for name, tensor in tensors.items()
    }


def _open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text tower as OpenCLIP has it: fused projections, one layer more, a projection and a logit scale."""
    pairs = {
        r"^embeddings\.position_embedding\.weight": "positional_embedding",
        r"^embeddings\.token_embedding": "token_embedding",
        r"^final_layer_norm": "ln_final",
        r"^encoder\.layers\.": "transformer.resblocks.",
        r"layer_norm(\d)": r"ln_\1",
        r"mlp\.fc1": "mlp.c_fc",
        r"mlp\.fc2": "mlp.c_proj",
        r"self_attn": "attn",
    }
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.+self_attn\.)q_proj\.(weight|bias)", name):
            thirds = [tensors[f"{match[1]}{part}_proj.{match[2]}"] for part in "qkv"]
            found[_sub(f"{match[1]}in_proj_{match[2]}", pairs)] = torch.cat(thirds)
        elif not re.search(r"[kv]_proj", name):
            found[_sub(name, pairs)] = tensor
    last = {
        name.replace(".22.", ".23."): tensor + 1 for name, tensor in found.items() if ".22." in name
    }
    width = found["positional_embedding"].shape[1]
    found |= last | {"text_projection": torch.zeros(width, width), "logit_scale": torch.zeros(())}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in found.items()}


def _checkpoint(version: str, modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    unet, vae, text = (modules[part].state_dict() for part in ("unet", "vae", "text_encoder"))
    if version.startswith(("2", "tiny 2")):
        tower = _open_clip(text)
    else:
        tower = {
            f"cond_stage_model.transformer.text_model.{name}": tensor
            for name, tensor in text.items()
        }
        tower["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[
            None
        ]
    rest = {
        "betas": torch.zeros(9),
        "model_ema.diffusion_modelout0weight": torch.zeros(2),
        "model_ema.decay": torch.zeros(()),
    }
    layers, blocks = (
        modules["unet"].config.layers_per_block,
        len(modules["vae"].config.block_out_channels),
    )
    return _ldm_unet(unet, layers) | _ldm_vae(vae, blocks) | tower | rest


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
    checkpoint = _checkpoint(version, modules)
    theirs = _converted(version, modules, checkpoint)
    ours = split(list(checkpoint), source="file")
    for part, module in modules.items():
        prefix = "text_model." if part == "text_encoder" else ""
        assert {f"{prefix}{name}" for name in module.state_dict()} == set(theirs[part])
        assert set(ours[part]) == set(theirs[part])
        for name, (stored, third) in ours[part].items():
            tensor = checkpoint[stored] if third is None else checkpoint[stored].chunk(3)[third]
            expected = theirs[part][name]
            assert tensor.shape == expected.shape or tensor.shape == (*expected.shape, 1, 1)
            assert tensor.is_meta or torch.equal(tensor.reshape(expected.shape), expected)


@pytest.mark.parametrize("version", ["tiny 1.x", "tiny 2.x"])
def test_components_are_loaded_from_one_file(version, tmp_path):
    modules = _modules(version)
    checkpoint = _checkpoint(version, modules)
    save_file(
        {name: tensor.clone() for name, tensor in checkpoint.items()},
        tmp_path / "tuned.safetensors",
    )
    found = pretrained.Tensors.of_single_file(tmp_path / "tuned.safetensors")
    text_config = clip.TextConfig(**CONFIGS[version][2], projection=False)
    vae_config = vae.Config.from_dict(dict(modules["vae"].config))
    for part, build, rules, prefix in (
        ("vae", lambda: vae.AutoencoderKL(vae_config, rngs=nnx.Rngs(0)), vae.RULES, ""),
        (
            "text_encoder",
            lambda: clip.ClipText(text_config, rngs=nnx.Rngs(0)),
            clip.RULES,
            "text_model.",
        ),
    ):
        ours = pretrained.export(pretrained.load(build, found[part], rules, source="file"), rules)
        theirs = {
            f"{prefix}{name}": tensor.numpy() for name, tensor in modules[part].state_dict().items()
        }
        assert set(ours) == set(theirs)
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(ours[name], tensor)
    for name, tensor in modules["unet"].state_dict().items():
        np.testing.assert_array_equal(found["unet"][name], tensor.numpy())


def test_names_are_those_of_the_released_files():
    modules = _modules("1.5")
    names = set(_checkpoint("1.5", modules))
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
    checkpoint = _checkpoint("tiny 1.x", _modules("tiny 1.x"))
    bare = [name.replace(".transformer.text_model.", ".transformer.") for name in checkpoint]
    usual, found = split(list(checkpoint), source="file"), split(bare, source="file")
    assert set(found["text_encoder"]) == set(usual["text_encoder"])


def test_an_unknown_name_is_kept_for_the_loader_to_report():
    names = [
        *_checkpoint("tiny 1.x", _modules("tiny 1.x")),
        "model.diffusion_model.label_emb.0.0.weight",
    ]
    assert "label_emb.0.0.weight" in split(names, source="file")["unet"]


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
        (["down_blocks.0.resnets.0.conv1.weight"], r"\(the UNet of a diffusers folder\)"),
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
    whole = list(_checkpoint("tiny 1.x", _modules("tiny 1.x")))
    with pytest.raises(UserError, match=r"conditioner\.embedders\.0\.x \(Stable Diffusion XL\)"):
        split([*whole, "conditioner.embedders.0.x"], source="file")
