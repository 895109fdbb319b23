"""Stable Diffusion 1.x, 2.x and XL in a single file: where in it each parameter of the diffusers
layout lies.

Fine-tunes are mostly shared as one file in the naming of the latent-diffusion code. Only names are
looked at here, so that a reader can fetch what it needs, when it needs it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from styledrop_jax.errors import UserError

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
_XL = "conditioner.embedders."
_PREFIXES_XL = _PREFIXES | {"text_encoder": f"{_XL}0.", "text_encoder_2": f"{_XL}1."}
IGNORED = (
    r"[^.]+|(?:denoiser|edm_vpred|model_ema|embedding_manager)\..+"
    r"|first_stage_model\.(?:loss|model_ema)\..+"
    r"|(?:cond_stage_model|conditioner)\..*(?:position_ids|logit_scale|attn_mask)"
    r"|(?:cond_stage_model|conditioner\.embedders\.0)\.(?:model\.|transformer\.)?"
    r"text_projection(?:\.weight)?"
    r"|(?:cond_stage_model|conditioner\.embedders\.0)\.model\.transformer\.resblocks\.23\..+"
)
"""Regex of tensors that are no parameters of the components.

They are the noise schedule and marks (the names without a dot, and CosXL's), the moving average of
the weights, what trained embeddings beside them, buffers, the projection of a first text tower,
which serves contrastive training, and OpenCLIP's last layer: Stable Diffusion 2.x conditions on the
one before it.
"""
_OPEN_CLIP_ALONE = f"{_XL}0.model."  # of the refiner, and of a 2.x by the names of XL's code
_POOLED = "model.diffusion_model.label_emb."  # which no 1.x or 2.x has
_OTHERS = {
    r"conditioner\.": "Stable Diffusion XL",
    r"(?:model\.diffusion_model\.)?(?:joint|double)_blocks\.": "Stable Diffusion 3 or Flux",
    r"lora_|.+[._]lora[._]|.+\.lora_": "a LoRA",
    r"control_model\.": "a ControlNet",
    r"depth_model\.": "Stable Diffusion 2's depth model",
    r"(?:down_blocks|mid_block|up_blocks)\.": "the U-Net of a diffusers folder",
    r"(?:encoder|decoder|quant_conv)\.": "an autoencoder alone",
}
"""What else a file may be: regex of the start of a name in it → what to call it."""


class Source(NamedTuple):
    """Where a parameter lies in the file, in the shape it is stored in.

    Attributes:
        name: the stored tensor.
        third: which third of its rows: 0 the query, 1 the key, 2 the value of a fused projection;
            None for all rows.
        transposed: whether it is stored as [in, out].
    """

    name: str
    third: int | None = None
    transposed: bool = False


def split(names: Sequence[str], *, source: str) -> dict[str, dict[str, Source]]:
    """Sorts the tensors of a single-file checkpoint by component, under their diffusers and
    transformers names.

    Shapes are those of the file: the attention of the autoencoder keeps its 1×1 convolutions,
    [out, in, 1, 1]. A name that is not understood inside a component is kept, to be reported by
    whoever loads that component.

    Args:
        names: of all tensors in the file.
        source: the file, for errors.

    Returns:
        {"unet" | "vae" | "text_encoder": {name in that component: where it lies}}, and of XL
        "text_encoder_2".

    Raises:
        UserError: a component is missing or there is more than those: not such a checkpoint. Says
            what was found.
    """
    known = _prefixes(names, source)
    inner: dict[str, list[str]] = {part: [] for part in known}
    strangers = []
    for name in names:
        if re.fullmatch(IGNORED, name):
            continue
        for part, prefix in known.items():
            if name.startswith(prefix):
                inner[part].append(name.removeprefix(prefix))
                break
        else:
            strangers.append(name)
    if strangers or not all(inner.values()):
        example = min(strangers or names, default="")
        found = f"{len(names)} tensors" + (f", such as {example}" if example else "")
        prefixes = "*, ".join(known.values())
        version = "XL" if known is _PREFIXES_XL else "1.x or 2.x"
        raise UserError(
            f"{source}: found {found}{_known(names)}; expected a whole Stable Diffusion {version} "
            f"checkpoint: {prefixes}*"
        )
    renames = {"unet": _unet, "vae": _vae}
    components = {}
    for part, prefix in known.items():
        components[part] = {}
        for name, place in renames.get(part, _text)(inner[part]).items():
            components[part][name] = place._replace(name=prefix + place.name)
    return components


def _prefixes(names: Sequence[str], source: str) -> dict[str, str]:
    """{component: what its names begin with} in a file of these names."""
    if any(name.startswith(_PREFIXES_XL["text_encoder_2"]) for name in names):
        return _PREFIXES_XL
    if not any(name.startswith(_OPEN_CLIP_ALONE) for name in names):
        return _PREFIXES
    if any(name.startswith(_POOLED) for name in names):
        raise UserError(f"{source}: found SDXL's refiner, expected SDXL's base model")
    return _PREFIXES | {"text_encoder": _PREFIXES_XL["text_encoder"]}


def _known(names: Sequence[str]) -> str:
    """What a file of these names is, in brackets, if it is one of the others."""
    for start, words in _OTHERS.items():
        if any(re.match(start, name) for name in names):
            return f" ({words})"
    return ""


def _numbers(names: Iterable[str], pattern: str) -> list[int]:
    """What the group of `pattern` matches at the start of the names that it matches."""
    found = []
    for name in names:
        if match := re.match(pattern, name):
            found.append(int(match[1]))
    return found


_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _unet(names: list[str]) -> dict[str, Source]:
    """Input and output blocks are counted through; the first that halves the resolution says how
    many make a block."""
    period = min(_numbers(names, r"input_blocks\.(\d+)\.0\.op\."), default=len(names))
    sources = {}
    for stored in names:
        module, _, tensor = stored.rpartition(".")
        sources[f"{_unet_module(module, period)}.{tensor}"] = Source(stored)
    return sources


def _unet_module(module: str, period: int) -> str:
    """The name of one module of the U-Net, of which `period` make a block."""
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", module):
        return f"mid_block.{_UNET_MIDDLE[match[1]]}.{_UNET_RESNET.get(match[2], match[2])}"
    match = re.fullmatch(r"(in|out)put_blocks\.(\d+)\.(\d)\.(.+)", module)
    if module in _UNET_ENDS or not match:
        return _UNET_ENDS.get(module, module)
    side, index, place, layer = match.groups()
    is_input = side == "in"
    # The convolution of the image comes before the first input block.
    block, position = divmod(int(index) - is_input, period)
    prefix = f"{'down' if is_input else 'up'}_blocks.{block}"
    if layer in ("op", "conv"):
        return f"{prefix}.{'down' if layer == 'op' else 'up'}samplers.0.conv"
    if place == "0":
        return f"{prefix}.resnets.{position}.{_UNET_RESNET.get(layer, layer)}"
    return f"{prefix}.attentions.{position}.{layer}"


_VAE = (
    (r"\b(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"\b(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\bnorm_out\.", "conv_norm_out."),
)


def _vae(names: list[str]) -> dict[str, Source]:
    """The decoder's blocks are counted from the image inward, in diffusers from the latents
    outward."""
    last = max(_numbers(names, r"decoder\.up\.(\d+)\."), default=0)

    def reversed_block(match: re.Match[str]) -> str:
        return f"up_blocks.{last - int(match[1])}"

    sources = {}
    for stored in names:
        name = stored
        for pattern, replacement in _VAE:
            name = re.sub(pattern, replacement, name)
        sources[re.sub(r"\bup_blocks\.(\d+)", reversed_block, name)] = Source(stored)
    return sources


_OPEN_CLIP = (
    (r"model\.transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"model\.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"model\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"model\.ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)


def _text(names: list[str]) -> dict[str, Source]:
    """`transformer.` is CLIP's own tower, with or without `text_model.`; `model.` is OpenCLIP's."""
    sources = {}
    for stored in names:
        name = re.sub(r"^transformer\.(?:text_model\.)?", "text_model.", stored)
        if stored.startswith("model."):
            for pattern, replacement in _OPEN_CLIP:
                name = re.sub(pattern, replacement, name)
        if stored == "model.text_projection":
            sources["text_projection.weight"] = Source(stored, transposed=True)
            continue
        match = re.fullmatch(r"(.+\.)in_proj_(weight|bias)", name)
        if not match:
            sources[name] = Source(stored)
            continue
        for third, part in enumerate("qkv"):
            sources[f"{match[1]}{part}_proj.{match[2]}"] = Source(stored, third)
    return sources
