"""SVDiff (arXiv 2303.11305): shifts of the singular values of the frozen weights.

W = U diag(σ) Vᵀ becomes U diag(relu(σ + δ)) Vᵀ (Eq. 2 and 3), and only δ trains. The layer's own
product stays: its output moves by ((x V) ∘ (relu(σ + δ) − σ)) Uᵀ, so that δ = 0 moves nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.adapters.decomposed import decomposed
from styledrop_jax.adapters.slots import (
    TARGETS,
    LayerAdapter,
    Projection,
    check_targets,
    fill,
)
from styledrop_jax.models.layers import Conv, Linear
from styledrop_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """Which weights shift.

    Attributes:
        targets: "all" linear layers and convolutions that have a slot, as in the paper, or those of
            "attention" alone, which take less memory: U and V of a square weight are as large as
            two of it.
    """

    kind: ClassVar[str] = "svdiff"
    exact: ClassVar[bool] = True
    targets: str = "all"

    def __post_init__(self) -> None:
        check_targets(self.targets, kind=self.kind)

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    targets: str = setting("all", "which layers", choices=("attention", "all"))
    text_encoder: bool = setting(False, "the text tower trains too")


class Adapter(LayerAdapter):
    """y + ((x V) ∘ (relu(σ + δ) − σ)) Uᵀ.

    A convolution's kernel counts as the matrix of its [k·k·c_in, c_out]: V is then a convolution of
    r filters, U a 1×1 one. The factors are frozen variables, not parameters: the base's weights
    determine them.
    """

    def __init__(self, layer: Linear | Conv):
        *inner, c_out = layer.kernel.shape
        matrix = layer.kernel[...].astype(jnp.float32).reshape(-1, c_out)
        v, sigma, ut = decomposed(matrix)
        self.v = nnx.Variable(v.reshape(*inner, -1))  # [c, r] or [k, k, c, r]
        self.sigma = nnx.Variable(sigma)  # [r], r the smaller side of the matrix
        self.ut = nnx.Variable(ut)  # [r, c_out]
        self.delta = AdapterParam(jnp.zeros_like(sigma))
        self.projection = Projection(layer)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        inner = self.projection(x.astype(y.dtype), self.v[...].astype(y.dtype))
        return y + (inner * self.shift().astype(y.dtype)) @ self.ut[...].astype(y.dtype)

    def change(self) -> jax.Array:
        left = self.v[...] * self.shift()
        return jnp.matmul(left, self.ut[...], precision=jax.lax.Precision.HIGHEST)

    def shift(self) -> jax.Array:
        """relu(σ + δ) − σ, float32 [r]."""
        sigma = self.sigma[...]
        return jax.nn.relu(sigma + self.delta[...]) - sigma


def attach(module: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets adapters into the layers of `config.targets`, in place of any in any layer.

    Touches no weight. It decomposes every such weight, unless the user's cache has that already, so
    the module must hold the base's weights by now.

    Args:
        module: a U-ViT, a U-Net, a CLIP tower, or anything made of `models.layers`.
        config: which layers.
        rngs: not used: every shift starts at zero.

    Raises:
        UserError: the module has no such layers.
    """
    fill(module, TARGETS[config.targets], Adapter)


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    config = Config(targets=settings.targets)
    return Trainable(denoiser=config, text=config if settings.text_encoder else None)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
