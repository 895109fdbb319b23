"""Bad inputs of `bad_inputs.py` that are put into a base model: `config.vae` and
`config.base_loras`.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import Case
from bad_inputs_values import VALUES, paths, put
from safetensors.numpy import load_file, save

from styledrop_jax import base_model, spec
from styledrop_jax.io import hub
from styledrop_jax.models import unet


def of_bases(folder: Path) -> Iterator[Case]:
    """An autoencoder's file and a LoRA's, damaged, or in each other's place."""
    place = folder / "bases"
    place.mkdir()
    good = of_other_tools()
    damaged = {"vae": "vae", "base_loras": "LoRA"}
    number = 0
    for field, whole in damaged.items():
        others = {what: save(tensors) for what, tensors in good.items() if what != whole}
        for what, content in [*others.items(), *_damaged(good[whole])]:
            number += 1
            path = place / f"{number}.safetensors"
            path.write_bytes(content)
            call = partial(_load_base, {field: str(path)})
            yield Case("bases", f"{field}: {what}", (path.name,), call, also=f"config.{field}")


def _load_base(settings: dict[str, Any]) -> None:
    told = spec.from_config({**spec.complete({}), **settings})
    base_model.load("emoji128", vae=told.vae, loras=told.loras)


def of_other_tools() -> dict[str, dict[str, np.ndarray]]:
    """{what it is: its tensors}"""
    original = hub.SHIPPED / "emoji128"
    codec = load_file(original / "vae" / "diffusion_pytorch_model.safetensors")
    layer = "mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = unet.Config.emoji().block_out_channels[-1]
    row = np.ones((2, width), np.float32)
    found = {"vae": codec, "no tensors": {}}
    found["a wider vae"] = {name: np.repeat(tensor, 2, 0) for name, tensor in codec.items()}
    found["half a vae"] = dict(list(codec.items())[::2])
    found["LoRA"] = _lora(f"lora_unet_{layer}", row, row.T)
    found["a LoRA of a wider model"] = _lora(
        f"lora_unet_{layer}", np.repeat(row, 2, 1), np.repeat(row.T, 2, 0)
    )
    found["a LoRA of XL"] = _lora("lora_te2_text_model_encoder_layers_31_mlp_fc1", row, row.T)
    found["half a LoRA"] = {f"lora_unet_{layer}.lora_down.weight": row}
    found["a LoRA of two ranks"] = _lora(f"lora_unet_{layer}", row, np.repeat(row.T, 2, 1))
    found["a LoRA of peft, alone"] = {f"base_model.model.{layer}.lora_A.weight": row}
    found["a LoKr of no product"] = {f"lora_unet_{layer}.lokr_w1": row}
    found["an embedding"] = {"emb_params": row}
    found["a U-Net"] = load_file(original / "unet" / "diffusion_pytorch_model.safetensors")
    found["a text tower"] = load_file(original / "text_encoder" / "model.safetensors")
    return found


def _lora(layer: str, down: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    up = np.ascontiguousarray(up)
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}


def _damaged(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """What a file of tensors is like when it is damaged: what it is, and its bytes."""
    whole = save(dict(tensors))
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        yield f"cut to {length} bytes", whole[:length]
    first, second = list(tensors)[:2]
    yield "swapped", save({**tensors, first: tensors[second], second: tensors[first]})
    for what, value in (("NaN", np.nan), ("infinity", np.inf)):
        yield what, save({**tensors, first: np.full_like(tensors[first], value)})
    yield "whole numbers", save({**tensors, first: tensors[first].astype(np.int32)})
    yield "one more tensor", save({**tensors, "a.weight": np.ones(2, np.float32)})
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    for keys in paths({first: header[first]}):
        for what, value in VALUES.items():
            changed = json.loads(json.dumps(header))
            put(changed, keys, value)
            text = json.dumps(changed).encode()
            bytes_of = len(text).to_bytes(8, "little") + text + whole[8 + size :]
            yield f"header {' '.join(map(str, keys))}: {what}", bytes_of
