"""Stable Diffusion 1.x, 2.x and XL as one file in the naming of the latent-diffusion code.

The inverse of `io.single_file`, which reads such files.
"""

import re
from collections.abc import Mapping

import numpy as np

from styledrop_jax.interchange import merged
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

Renames = tuple[tuple[str, str], ...]

_UNET_ENDS: Renames = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
)
_UNET_RESNET: Renames = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_VAE: Renames = (
    (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"\bmid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"\bmid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\bconv_norm_out\.", "norm_out."),
)
_OPEN_CLIP: Renames = (
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)


def version(pipeline: StableDiffusion) -> int | str:
    """1, 2 or "xl": 2.x has OpenCLIP's tower of 23 layers, 1.x has at most 12, XL two towers."""
    if isinstance(pipeline.text, clip.TextPair):
        return stable_diffusion_files.XL
    return 2 if pipeline.text.config.num_hidden_layers > 12 else 1


def tensors(pipeline: StableDiffusion, *, dtype: str) -> dict[str, np.ndarray]:
    """The whole file's tensors.

    The numbers of such a file do not tell what it predicts. Two empty tensors do, for tools that
    look for them: `v_pred`, and `ztsnr` for a schedule that ends in pure noise.

    Args:
        pipeline: without adapters.
        dtype: of the weights, "float32" or "float16".
    """
    found = {}
    denoiser = merged.tensors(pipeline.denoiser, unet.RULES, dtype=dtype)
    for name, tensor in denoiser.items():
        found[f"model.diffusion_model.{unet_name(name, pipeline.denoiser.config)}"] = tensor
    codec = merged.tensors(pipeline.autoencoder, vae.RULES, dtype=dtype)
    blocks = len(pipeline.autoencoder.config.block_out_channels)
    for name, tensor in codec.items():
        if re.search(r"\battentions\..+\.to_.+\.weight$", name):
            tensor = tensor[:, :, None, None]  # a 1×1 convolution there
        found[f"first_stage_model.{vae_name(name, blocks=blocks)}"] = tensor
    for path in clip.towers(pipeline.text):
        text = merged.text_tensors(pipeline, path, dtype=dtype)
        prefix = {"first": "conditioner.embedders.0", "second": "conditioner.embedders.1"}.get(
            path, "cond_stage_model"
        )
        if path == "second" or version(pipeline) == 2:
            for name, tensor in _open_clip(text).items():
                found[f"{prefix}.model.{name}"] = tensor
        else:
            for name, tensor in text.items():
                found[f"{prefix}.transformer.{name}"] = tensor
    if pipeline.schedule.prediction_type == "v_prediction":
        found["v_pred"] = np.zeros(0, np.dtype(dtype))
    if pipeline.schedule.rescale_betas_zero_snr:
        found["ztsnr"] = np.zeros(0, np.dtype(dtype))
    return found


def unet_name(name: str, config: unet.Config) -> str:
    """The U-Net's tensor in the latent-diffusion naming, where blocks are counted through."""
    if ".resnets." in name:
        name = _renamed(name, _UNET_RESNET)
    renamed = _renamed(name, _UNET_ENDS)
    if renamed != name:
        return renamed
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    side, block, kind, index, rest = match.groups()
    period = config.layers_per_block + 1
    first = int(block) * period
    place = 1 if kind == "attentions" else 0
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + period}.0.{rest.replace('conv', 'op', 1)}"
        # The convolution of the latents comes before the first block.
        return f"input_blocks.{first + 1 + int(index)}.{place}.{rest}"
    if kind == "upsamplers":
        attends = config.up_block_types[int(block)] == "CrossAttnUpBlock2D"
        return f"output_blocks.{first + period - 1}.{2 if attends else 1}.{rest}"
    return f"output_blocks.{first + int(index)}.{place}.{rest}"


def vae_name(name: str, *, blocks: int) -> str:
    """The autoencoder's tensor; the decoder's `blocks` are counted from the image inward there."""
    match = re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", name)
    if match:
        block = blocks - 1 - int(match[1])
        place = f"block.{match[3]}" if match[2] == "resnets" else "upsample"
        name = f"decoder.up.{block}.{place}.{match[4]}"
    return _renamed(name, _VAE)


def _open_clip(text: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A text tower as OpenCLIP has it: the projections of query, key and value are one tensor, and
    that of the pooled features is [in, out]."""
    found = {}
    for name, tensor in _fused(text).items():
        if name == "text_projection.weight":
            found["text_projection"] = np.ascontiguousarray(tensor.T)
        else:
            found[_renamed(name, _OPEN_CLIP)] = tensor
    return found


def _fused(text: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The text tower with its projections of query, key and value in one tensor."""
    found = {}
    for name, tensor in text.items():
        match = re.fullmatch(r"(.+\.)([qkv])_proj\.(weight|bias)", name)
        if match is None:
            found[name] = tensor
        elif match[2] == "q":
            thirds = [text[f"{match[1]}{part}_proj.{match[3]}"] for part in "qkv"]
            found[f"{match[1]}in_proj_{match[3]}"] = np.concatenate(thirds)
    return found


def _renamed(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
