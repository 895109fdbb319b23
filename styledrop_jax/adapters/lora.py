"""LoRA (arXiv 2106.09685): low-rank additions to linear layers and convolutions.

out = y + α/r · (x A) B for a layer that maps x to y (Eq. 3). For a convolution A is a convolution
of r channels with the layer's own kernel size and stride, and B a 1×1 convolution after it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable, fresh
from styledrop_jax.adapters.slots import (
    TARGETS,
    LayerAdapter,
    Projection,
    check_targets,
    fill,
)
from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.layers import Conv, Linear
from styledrop_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """The adapter's size.

    Attributes:
        rank: r.
        alpha: α; the product is scaled by α/r, so that one learning rate suits other ranks too.
        targets: "attention" adapts the query, key, value and output projections of every attention,
            "all" every linear layer and convolution that has a slot. Three convolutions of the
            U-ViT have none: the depthwise ones, the downsampling and the upsampling.
    """

    kind: ClassVar[str] = "lora"
    rank: int = 4
    alpha: float = 4.0
    targets: str = "attention"

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank > 0):
            raise UserError(
                f"lora rank: found {shown(self.rank)}, expected a positive whole number"
            )
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha < math.inf):
            raise UserError(f"lora alpha: found {shown(self.alpha)}, expected a positive number")
        check_targets(self.targets, kind=self.kind)

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    rank: int = setting(4, "width inside an adapter", low=1, high=4096)
    alpha: float = setting(4.0, "strength of the product is alpha / rank", low=0, above=True)
    targets: str = setting("attention", "which layers", choices=("attention", "all"))
    text_encoder: bool = setting(False, "the text tower trains too")


class Adapter(LayerAdapter):
    """y + α/r · (x A) B.

    B starts at zero, A as a normal of standard deviation 1/r, as in diffusers' trainers.
    """

    def __init__(self, layer: Linear | Conv, config: Config, *, rngs: nnx.Rngs):
        *inner, c_out = layer.kernel.shape
        normal = nnx.initializers.normal(1 / config.rank)
        down = fresh((*inner, config.rank), rngs, normal)
        self.down = AdapterParam(down)  # [c, r] or [k, k, c, r]
        self.up = AdapterParam(fresh((config.rank, c_out), rngs))
        self.scale = config.alpha / config.rank
        self.projection = Projection(layer)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        down = self.down[...].astype(y.dtype)
        up = self.up[...].astype(y.dtype)
        return y + self.scale * (self.projection(x.astype(y.dtype), down) @ up)

    def change(self) -> jax.Array:
        product = jnp.matmul(self.down[...], self.up[...], precision=jax.lax.Precision.HIGHEST)
        return self.scale * product.astype(jnp.float32)


def attach(module: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets fresh adapters into the layers of `config.targets`, in place of any in any layer.

    Touches no weight.

    Args:
        module: a U-ViT, a U-Net, a CLIP tower, or anything made of `models.layers`.
        config: the adapter's size.
        rngs: the `params` stream initialises the weights.

    Raises:
        UserError: the module has no such layers.
    """
    fill(module, TARGETS[config.targets], lambda layer: Adapter(layer, config, rngs=rngs))


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    config = Config(rank=settings.rank, alpha=settings.alpha, targets=settings.targets)
    return Trainable(denoiser=config, text=config if settings.text_encoder else None)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
