"""Custom Diffusion (arXiv 2212.04488): the key and value matrices of cross-attention train, whole, and little else.

What trains is the difference to the base's matrices, zero at first. The method's new word is a token of
`textual_inversion` in the text tower.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.adapters import textual_inversion
from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.adapters.lora import fill, slots
from styledrop_jax.models.layers import Linear
from styledrop_jax.models.rules import Rules

# In the U-ViT's blocks of convolutions both attentions look at the text.
_TARGETS = r".+\.(?:attn2|attention_blocks\.\d+\.attn1)\.to_[kv]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """There is nothing to choose: the paper trains all keys and values of cross-attention, at full rank."""

    kind: ClassVar[str] = "custom_diffusion"

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(textual_inversion.Settings):
    """Its fields of `config.round_N.adapter`: those of its new word."""


class Adapter(nnx.Module):
    """y + x Δ, Δ zero at first. The first token, which starts every text alike, does not train Δ."""

    def __init__(self, layer: Linear):
        self.delta = AdapterParam(jnp.zeros(layer.kernel.shape))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """x: text features [b, t, c]. y: their keys or values [b, t, d]. Returns new ones, computed in y's dtype."""
        change = x.astype(y.dtype) @ self.delta[...].astype(y.dtype)
        # as in the authors' code, which the paper does not mention
        return y + jnp.concatenate([jax.lax.stop_gradient(change[:, :1]), change[:, 1:]], axis=1)


def attach(module: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets adapters into the keys and values of every cross-attention, in place of any in any layer; touches no weight.

    Args:
        module: a U-Net or a U-ViT.
        config: nothing to choose.
        rngs: not drawn from: every difference starts at zero.

    Raises:
        UserError: the module has no cross-attention.
    """
    fill(module, _TARGETS, Adapter)


def export_diffusers(module: nnx.Module, rules: Rules) -> dict[str, np.ndarray]:
    """The tensors of `pytorch_custom_diffusion_weights.safetensors`: the whole matrices, base and difference.

    Attentions that keep the base's matrices are in it with an empty tensor: diffusers counts all of a model's, and
    takes an empty one to mean just that.

    Args:
        module: with the trained adapters in it.
        rules: the model's naming.
    """
    tensors = {}
    for path, layer in slots(module).items():
        name, _ = rules.name_of(f"{path}.kernel")
        if not (match := re.fullmatch(r"(.+)\.to_([kv])\.weight", name)):
            continue
        if isinstance(layer.adapter, Adapter):
            weight = np.asarray(layer.kernel[...] + layer.adapter.delta[...], np.float32)
            tensors[f"{match[1]}.processor.to_{match[2]}_custom_diffusion.weight"] = (
                np.ascontiguousarray(weight.T)
            )
        else:
            tensors[f"{match[1]}.processor"] = np.zeros(0, np.float32)
    return tensors


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    words = textual_inversion.new_words(settings, identifiers, kind=Config.kind)
    return Trainable(denoiser=Config(), words=words)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
