"""Custom Diffusion (arXiv 2212.04488): the key and value matrices of cross-attention train.

What trains is the difference to the base's matrices, at full rank and zero at first. The method's
new word is a token of `textual_inversion` in the text tower.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.adapters import textual_inversion
from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.adapters.slots import LayerAdapter, fill
from styledrop_jax.models.layers import Linear

# In the U-ViT's blocks of convolutions both attentions look at the text.
_TARGETS = r".+\.(?:attn2|attention_blocks\.\d+\.attn1)\.to_[kv]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """Nothing to choose: the paper trains all keys and values of cross-attention, at full rank."""

    kind: ClassVar[str] = "custom_diffusion"

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(textual_inversion.Settings):
    """Its fields of `config.round_N.adapter`: those of its new word."""


class Adapter(LayerAdapter):
    """y + x Δ for keys or values y of text features x [b, t, c].

    Δ is zero at first. The first token, which starts every text alike, does not train Δ.
    """

    def __init__(self, layer: Linear):
        self.delta = AdapterParam(jnp.zeros(layer.kernel.shape))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        change = x.astype(y.dtype) @ self.delta[...].astype(y.dtype)
        # As in the authors' code, which the paper does not mention.
        first = jax.lax.stop_gradient(change[:, :1])
        return y + jnp.concatenate([first, change[:, 1:]], axis=1)

    def change(self) -> jax.Array:
        return self.delta[...].astype(jnp.float32)


def attach(module: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets adapters into the keys and values of every cross-attention, and clears all other slots.

    Touches no weight.

    Args:
        module: a U-Net or a U-ViT.
        config: nothing to choose.
        rngs: not used: every difference starts at zero.

    Raises:
        UserError: the module has no cross-attention.
    """
    fill(module, _TARGETS, Adapter)


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    words = textual_inversion.new_words(settings, identifiers, kind=Config.kind)
    return Trainable(denoiser=Config(), words=words)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
