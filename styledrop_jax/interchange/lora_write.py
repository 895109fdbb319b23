"""LoRA files as diffusers, peft and kohya's scripts have them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from styledrop_jax.adapters import lora
from styledrop_jax.adapters.slots import slots
from styledrop_jax.interchange import single_file
from styledrop_jax.models import unet
from styledrop_jax.models.rules import Layout
from styledrop_jax.pipelines.components import Component

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the peft config of each component in a safetensors file, as JSON."""

_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
_KOHYA_XL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


class Halves(NamedTuple):
    """A and B of one layer, float32, as files have them.

    Attributes:
        down: A, [r, c] of a linear layer, [r, c, k, k] of a convolution.
        up: B, [c_out, r] of a linear layer, [c_out, r, 1, 1] of a convolution.
    """

    down: np.ndarray
    up: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The LoRA of one component.

    Attributes:
        prefix: its folder in a pipeline: "unet", "transformer", "text_encoder" or
            "text_encoder_2".
        config: the adapter's size.
        halves: {name of a layer in the reference library: its A and B}.
    """

    prefix: str
    config: lora.Config
    halves: Mapping[str, Halves]


def part(module: nnx.Module, config: lora.Config, component: Component[Any]) -> Part:
    """The LoRA that `module` carries.

    Args:
        module: with the adapters in it.
        config: what they were attached with.
        component: which one it is.
    """
    found = {}
    for path, layer in slots(module).items():
        adapter: Any = layer.adapter
        if isinstance(adapter, lora.Adapter):
            name, layout = component.rules.name_of(f"{path}.kernel")
            halves = Halves(_half(adapter.down[...], layout), _half(adapter.up[...], layout))
            found[name.removesuffix(".weight")] = halves
    return Part(prefix=component.folder, config=config, halves=found)


def _half(weight: jax.Array, layout: Layout) -> np.ndarray:
    array = np.asarray(weight, np.float32)
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    else:
        array = array.T
        if layout != "linear":  # a convolution there
            array = array[:, :, None, None]
    return np.ascontiguousarray(array)


def diffusers(parts: Sequence[Part]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """One file for diffusers, of the right strength whether or not its reader uses the metadata.

    α/r is in B, and the metadata say that α is r: both readings multiply by one.

    Returns:
        The tensors and the metadata of the safetensors file.
    """
    tensors = {}
    fields = {}
    for each in parts:
        scale = np.float32(each.config.alpha / each.config.rank)
        for name, halves in each.halves.items():
            tensors[f"{each.prefix}.{name}.lora_A.weight"] = halves.down
            tensors[f"{each.prefix}.{name}.lora_B.weight"] = halves.up * scale
        fields[f"{each.prefix}.r"] = each.config.rank
        fields[f"{each.prefix}.lora_alpha"] = each.config.rank
        fields[f"{each.prefix}.target_modules"] = _targets(each)
    return tensors, {METADATA: json.dumps(fields)}


def _targets(each: Part) -> list[str]:
    """The layers' names as peft compares them, from their ends.

    transformers 5 has no part `text_model` in a bare text tower, older versions do.
    """
    return sorted(name.removeprefix("text_model.") for name in each.halves)


def peft(each: Part, *, flat_text: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A peft adapter: the tensors of `adapter_model.safetensors`, and `adapter_config.json`.

    Args:
        each: the component.
        flat_text: the component is a text tower whose module has no part `text_model`, which is
            `CLIPTextModel` since transformers 5.
    """
    tensors = {}
    for name, halves in each.halves.items():
        name = name.removeprefix("text_model.") if flat_text else name
        tensors[f"base_model.model.{name}.lora_A.weight"] = halves.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = halves.up
    config = {
        "peft_type": "LORA",
        "r": each.config.rank,
        "lora_alpha": each.config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": _targets(each),
    }
    return tensors, config


def kohya(parts: Sequence[Part], *, xl: unet.Config | None = None) -> dict[str, np.ndarray]:
    """The tensors of kohya's naming, which most other tools read: A, B and α as they were trained.

    `lora_unet_` or `lora_te_`, then the layer's path in the reference library with "_" for ".". Of
    XL `lora_te1_` and `lora_te2_`, and the U-Net's path is that of the latent-diffusion code.

    Args:
        parts: of each component that has a LoRA.
        xl: the config of an XL's U-Net; None of other models.
    """
    prefixes = _KOHYA if xl is None else _KOHYA_XL
    tensors = {}
    for each in parts:
        for name, halves in each.halves.items():
            if xl is not None and each.prefix == "unet":
                name = single_file.unet_name(f"{name}.weight", xl).removesuffix(".weight")
            layer = f"{prefixes[each.prefix]}_{name.replace('.', '_')}"
            tensors[f"{layer}.lora_down.weight"] = halves.down
            tensors[f"{layer}.lora_up.weight"] = halves.up
            tensors[f"{layer}.alpha"] = np.array(each.config.alpha, np.float32)
    return tensors


def kohya_metadata(parts: Sequence[Part]) -> dict[str, str]:
    """What kohya's scripts say of the network in the file's metadata, the first part's size."""
    config = parts[0].config
    found = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
    }
    for halves in parts[0].halves.values():
        if halves.down.shape[2:] > (1, 1):  # kohya's network needs to be told of convolutions
            size = {"conv_dim": str(config.rank), "conv_alpha": str(config.alpha)}
            found["ss_network_args"] = json.dumps(size)
            break
    return found
