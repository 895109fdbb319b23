"""A Stable Diffusion of the reference library by the names of the latent-diffusion code, as single
files have them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

_Replacement = str | Callable[[re.Match[str]], str]
_RESNET = {
    r"\bnorm1\.": "in_layers.0.",
    r"\bconv1\.": "in_layers.2.",
    r"\btime_emb_proj\.": "emb_layers.1.",
    r"\bnorm2\.": "out_layers.0.",
    r"\bconv2\.": "out_layers.3.",
    r"\bconv_shortcut\.": "skip_connection.",
}
_UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
}
_CLIP = {
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^final_layer_norm": "ln_final",
    r"^encoder\.layers\.": "transformer.resblocks.",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn": "attn",
}


def ldm_tensors(version: str, modules: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a single file of the modules `unet`, `vae` and `text_encoder` holds.

    Args:
        version: "1.5", "2.1", "tiny 1.x" or "tiny 2.x".
        modules: of the reference libraries.
    """
    unet = modules["unet"].state_dict()
    vae = modules["vae"].state_dict()
    text = modules["text_encoder"].state_dict()
    if version.removeprefix("tiny ").startswith("2"):
        tower = _open_clip(text)
    else:
        prefix = "cond_stage_model.transformer.text_model."
        tower = {prefix + name: tensor for name, tensor in text.items()}
        tower[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    rest = {
        "betas": torch.zeros(9),
        "model_ema.diffusion_modelout0weight": torch.zeros(2),
        "model_ema.decay": torch.zeros(()),
    }
    layers = modules["unet"].config.layers_per_block
    blocks = len(modules["vae"].config.block_out_channels)
    return _ldm_unet(unet, layers) | _ldm_vae(vae, blocks) | tower | rest


def _renamed(name: str, pairs: Mapping[str, _Replacement]) -> str:
    for old, new in pairs.items():
        name = re.sub(old, new, name)
    return name


def _ldm_unet(tensors: Mapping[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The U-Net, whose blocks are numbered through."""

    def number(side: str, offset: int, place: str):
        return lambda m: f"{side}_blocks.{int(m[1]) * (layers + 1) + int(m[2]) + offset}.{place}."

    def downsampler(m: re.Match[str]) -> str:
        return f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op."

    def upsampler(m: re.Match[str]) -> str:
        attends = any(name.startswith(f"up_blocks.{m[1]}.attentions.") for name in tensors)
        return f"output_blocks.{int(m[1]) * (layers + 1) + layers}.{2 if attends else 1}.conv."

    pairs = _UNET | {
        r"^down_blocks\.(\d)\.resnets\.(\d)\.": number("input", 1, "0"),
        r"^down_blocks\.(\d)\.attentions\.(\d)\.": number("input", 1, "1"),
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.": downsampler,
        r"^up_blocks\.(\d)\.resnets\.(\d)\.": number("output", 0, "0"),
        r"^up_blocks\.(\d)\.attentions\.(\d)\.": number("output", 0, "1"),
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.": upsampler,
    }
    found = {}
    for name, tensor in tensors.items():
        layer = _renamed(name, _RESNET) if ".resnets." in name else name
        found[f"model.diffusion_model.{_renamed(layer, pairs)}"] = tensor
    return found


def _ldm_vae(tensors: Mapping[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """The autoencoder, whose attention is made of convolutions."""
    pairs: dict[str, _Replacement] = {
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
    found = {}
    for name, tensor in tensors.items():
        is_attention = re.match(r".*attentions.*to_.*weight", name)
        stored = tensor[:, :, None, None] if is_attention else tensor
        found[f"first_stage_model.{_renamed(name, pairs)}"] = stored
    return found


def _open_clip(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text tower as OpenCLIP has it: fused projections, one layer more, a projection and a
    logit scale."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.+self_attn\.)q_proj\.(weight|bias)", name):
            thirds = [tensors[f"{match[1]}{part}_proj.{match[2]}"] for part in "qkv"]
            found[_renamed(f"{match[1]}in_proj_{match[2]}", _CLIP)] = torch.cat(thirds)
        elif not re.search(r"[kv]_proj", name):
            found[_renamed(name, _CLIP)] = tensor
    for name in [name for name in found if ".22." in name]:
        found[name.replace(".22.", ".23.")] = found[name] + 1
    width = found["positional_embedding"].shape[1]
    found["text_projection"] = torch.zeros(width, width)
    found["logit_scale"] = torch.zeros(())
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in found.items()}
