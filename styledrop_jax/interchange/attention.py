"""The file of Custom Diffusion that diffusers reads: whole matrices of the cross-attention."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.adapters import custom_diffusion
from styledrop_jax.adapters.slots import slots
from styledrop_jax.models.rules import Rules


def tensors(module: nnx.Module, rules: Rules) -> dict[str, np.ndarray]:
    """The tensors of `pytorch_custom_diffusion_weights.safetensors`: base plus difference.

    An attention that keeps the base's matrices is in it with an empty tensor. diffusers counts all
    attentions of a model, and takes an empty tensor to mean just that.

    Args:
        module: a denoiser with the trained adapters in it.
        rules: the model's naming.
    """
    found = {}
    for path, layer in slots(module).items():
        name, _ = rules.name_of(f"{path}.kernel")
        match = re.fullmatch(r"(.+)\.to_([kv])\.weight", name)
        if match is None:
            continue
        adapter: Any = layer.adapter
        if isinstance(adapter, custom_diffusion.Adapter):
            weight = layer.kernel[...].astype(jnp.float32) + adapter.change()
            key = f"{match[1]}.processor.to_{match[2]}_custom_diffusion.weight"
            found[key] = np.ascontiguousarray(np.asarray(weight).T)
        else:
            found[f"{match[1]}.processor"] = np.zeros(0, np.float32)
    return found
