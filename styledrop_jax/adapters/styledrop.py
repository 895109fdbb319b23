"""The StyleDrop adapter (2306.00983 Fig. S1): two bottlenecks in each transformer layer.

Two generators hold the weights of all of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from flax import nnx

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable, fresh
from styledrop_jax.errors import UserError, shown
from styledrop_jax.settings import setting

BLOCKS = ("all", "decoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """The adapter's size.

    Attributes:
        bottleneck: H, the width inside. The paper: 4 in round 1, 32 in round 2 and for
            super-resolution.
        shared: one pair of matrices for all layers, shifted by each layer's own vectors, in place
            of a pair for each layer. The paper: shared in round 1, not in round 2.
        blocks: "all" transformer layers, as in the paper, or those of the "decoder": a U-Net's up
            blocks, the later half of a U-ViT. They learn less of what a picture shows: of SDXL,
            the layout is in down blocks, the style in up blocks (InstantStyle 2404.02733).
    """

    kind: ClassVar[str] = "styledrop"
    bottleneck: int = 4
    shared: bool = True
    blocks: str = "all"

    def __post_init__(self) -> None:
        if self.blocks not in BLOCKS:
            raise UserError(
                f"styledrop blocks: found {shown(self.blocks)}, expected one of {', '.join(BLOCKS)}"
            )

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    rank: int = setting(4, "width inside an adapter", low=1, high=4096)
    shared: bool = setting(True, "one generator for all layers, with a small offset per layer")
    blocks: str = setting(
        "all",
        "which transformer layers: all, or the decoder's, which learn less of what a picture shows",
        choices=BLOCKS,
    )


class Generator(nnx.Module):
    """The weights of one adapter in each of L layers: wd [d, H] and wu [H, d] of layer l.

    Shared: wd = down[0] + down_shift[l] on every row, wu = up[0] + up_shift[l] on every row.
    Unshared: wd = down[l], wu = up[l]. Everything up starts at zero, so that the adapter starts as
    an identity. Everything down starts as a normal of standard deviation 0.02, truncated at twice
    that; the paper does not state it for `down_shift`.
    """

    def __init__(self, config: Config, *, layers: int, width: int, rngs: nnx.Rngs):
        h = config.bottleneck
        tables = 1 if config.shared else layers
        normal = nnx.initializers.truncated_normal(stddev=0.02)
        self.down = AdapterParam(fresh((tables, width, h), rngs, normal))  # [1 or L, d, H]
        self.up = AdapterParam(fresh((tables, h, width), rngs))  # [1 or L, H, d]
        self.shared = config.shared
        if config.shared:
            self.down_shift = AdapterParam(fresh((layers, h), rngs, normal))
            self.up_shift = AdapterParam(fresh((layers, width), rngs))

    def __call__(self, layer: int) -> tuple[jax.Array, jax.Array]:
        """wd [d, H] and wu [H, d] of `layer`."""
        if self.shared:
            return self.down[0] + self.down_shift[layer], self.up[0] + self.up_shift[layer]
        return self.down[layer], self.up[layer]


class Adapter(nnx.Module):
    """out = emb + gelu(emb wd) wu, with a generator's weights for one layer."""

    def __init__(self, generator: Generator, layer: int):
        self.generator = generator
        self.layer = layer

    def __call__(self, emb: jax.Array) -> jax.Array:
        """emb [..., d] → [..., d], computed in emb's dtype."""
        wd, wu = self.generator(self.layer)
        # The tanh form: the paper's listing is JAX, where gelu means that one.
        inner = jax.nn.gelu(emb @ wd.astype(emb.dtype), approximate=True)
        return emb + inner @ wu.astype(emb.dtype)


def attach(denoiser: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets fresh adapters in the transformer layers of `config.blocks`, in place of any that were
    in any layer.

    They come after the cross-attention (`attn_adapter`) and after the MLP (`mlp_adapter`), before
    their skip connections. The layers share one generator for each of the two places; a U-Net has
    layers of several widths, and those of one width share theirs. The state names the weights of
    each generator under its first layer. Touches no other weight.

    Args:
        denoiser: has modules with the two slots and their `width`: a U-ViT or a U-Net.
        config: the adapter's size.
        rngs: the `params` stream initialises the weights.

    Raises:
        UserError: the denoiser has no such layers.
    """
    by_width: dict[int, list[Any]] = {}
    for layer in _layers(denoiser):
        layer.attn_adapter = nnx.data(None)
        layer.mlp_adapter = nnx.data(None)
    for layer in _decoder(denoiser) if config.blocks == "decoder" else _layers(denoiser):
        by_width.setdefault(layer.width, []).append(layer)
    if not by_width:
        raise UserError(
            f"styledrop adapter: {type(denoiser).__name__} has no transformer layers to put it into"
        )
    for width, layers in sorted(by_width.items()):
        attention = Generator(config, layers=len(layers), width=width, rngs=rngs)
        mlp = Generator(config, layers=len(layers), width=width, rngs=rngs)
        for index, layer in enumerate(layers):
            layer.attn_adapter = Adapter(attention, index)
            layer.mlp_adapter = Adapter(mlp, index)


def _layers(module: nnx.Module) -> list[Any]:
    """The transformer layers of `module`."""
    return [part for _, part in nnx.iter_modules(module) if hasattr(part, "mlp_adapter")]


def _decoder(denoiser: Any) -> list[Any]:
    """The transformer layers of a denoiser's decoder."""
    if hasattr(denoiser, "up_blocks"):
        return _layers(denoiser.up_blocks)
    layers = denoiser.transformer_layers
    return list(layers)[len(layers) // 2 :]


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    config = Config(bottleneck=settings.rank, shared=settings.shared, blocks=settings.blocks)
    return Trainable(denoiser=config)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
