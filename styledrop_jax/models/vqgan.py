"""The VQGAN tokenizer of aMUSEd and Muse: diffusers' `VQModel`, channels last.

Images in [0, 1], unnormalised, become a grid of codebook indices and back (Esser et al., arXiv
2012.09841, §3.1). The encoder and the decoder also serve Stable Diffusion's autoencoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.attention import attention
from styledrop_jax.models.config_json import known_fields, require, require_fields
from styledrop_jax.models.grid import doubled
from styledrop_jax.models.layers import Conv, GroupNorm, Linear
from styledrop_jax.models.rules import COMMON, Rule, Rules

_SOURCE = "vqvae/config.json"
_DOWN_BLOCK = "DownEncoderBlock2D"
_UP_BLOCK = "UpDecoderBlock2D"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of an encoder and a decoder, by the names of the reference's `config.json`.

    Attributes:
        block_out_channels: from the highest resolution to the lowest.
        latent_channels: of the features between encoder and decoder.
        force_upcast: the weights want float32, whatever the other models compute in.
        sample_size: pixels along one side of the images it was trained on.
    """

    block_out_channels: tuple[int, ...]
    latent_channels: int
    layers_per_block: int = 1
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    mid_block_add_attention: bool = True
    force_upcast: bool = False
    sample_size: int = 32

    def __post_init__(self) -> None:
        groups = self.norm_num_groups
        fits = all(channels % groups == 0 for channels in self.block_out_channels)
        expected = f"multiples of norm_num_groups {groups}"
        require(fits, "autoencoder config", self, "block_out_channels", expected)

    @property
    def downsampling(self) -> int:
        """Pixels per token or latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that the reference library loads, but for its `_class_name`."""
        blocks = len(self.block_out_channels)
        return dataclasses.asdict(self) | {
            "act_fn": "silu",
            "down_block_types": [_DOWN_BLOCK] * blocks,
            "up_block_types": [_UP_BLOCK] * blocks,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CodecConfig):
    """The tokenizer's config, by the names of the reference's `config.json`.

    Attributes:
        num_vq_embeddings: codes.
        vq_embed_dim: numbers in a code.
        lookup_from_codebook: tells the reference that its decoder is given tokens.
    """

    num_vq_embeddings: int
    vq_embed_dim: int
    lookup_from_codebook: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the reference's `vqvae/config.json`.

        Null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: a setting this implementation does not have.
        """
        check_blocks(values, source=_SOURCE)
        known = known_fields(cls, values, source=_SOURCE)
        known.setdefault("vq_embed_dim", known.get("latent_channels", 3))
        require_fields(cls, known, source=_SOURCE)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that the reference library loads."""
        return {"_class_name": "VQModel", **super().to_dict()}

    @classmethod
    def amused(cls) -> Self:
        """The tokenizer of amused-256 and amused-512: 16 pixels a token, 8192 codes."""
        return cls(
            block_out_channels=(128, 256, 256, 512, 768),
            latent_channels=64,
            num_vq_embeddings=8192,
            vq_embed_dim=64,
            layers_per_block=2,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
            force_upcast=True,
        )

    @classmethod
    def emoji(cls, *, width: int = 8, size: int = 64) -> Self:
        """The shipped tokenizer, for images of 64 or 128 pixels: 16×16 tokens of 512 codes.

        Args:
            width: channels at 64 pixels, and at 128; a multiple of 4.
            size: pixels along one side.
        """
        larger = (width,) if size == 128 else ()
        return cls(
            block_out_channels=(*larger, width, 2 * width, 8 * width),
            latent_channels=32,
            num_vq_embeddings=512,
            vq_embed_dim=32,
            norm_num_groups=4,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
            sample_size=size,
        )


def check_blocks(values: Mapping[str, Any], *, source: str) -> None:
    """Refuses a config, read from the file `source`, that asks for blocks other than those here.

    Raises:
        UserError: names the first setting that is not supported.
    """
    for name, supported in (("act_fn", "silu"), ("norm_type", "group")):
        if values.get(name, supported) != supported:
            found = shown(values[name])
            raise UserError(f"{source}: {name} is {found}, only {supported!r} is supported")
    for name, supported in (("down_block_types", _DOWN_BLOCK), ("up_block_types", _UP_BLOCK)):
        for found in _listed(values.get(name)):
            if found != supported:
                raise UserError(
                    f"{source}: {name} has {shown(found)}, only {supported!r} is supported"
                )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class _Resnet(nnx.Module):
    def __init__(self, c_in: int, c_out: int, groups: int, **kwargs):
        self.norm1 = GroupNorm(c_in, num_groups=groups, epsilon=1e-6, **kwargs)
        self.conv1 = Conv(c_in, c_out, 3, **kwargs)
        self.norm2 = GroupNorm(c_out, num_groups=groups, epsilon=1e-6, **kwargs)
        self.conv2 = Conv(c_out, c_out, 3, **kwargs)
        self.conv_shortcut = Linear(c_in, c_out, **kwargs) if c_in != c_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nnx.Module):
    def __init__(self, c: int, groups: int, **kwargs):
        self.group_norm = GroupNorm(c, num_groups=groups, epsilon=1e-6, **kwargs)
        self.to_q = Linear(c, c, **kwargs)
        self.to_k = Linear(c, c, **kwargs)
        self.to_v = Linear(c, c, **kwargs)
        self.to_out = nnx.List([Linear(c, c, **kwargs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        n = self.group_norm(x).reshape(b, h * w, c)
        out = attention(self.to_q(n), self.to_k(n), self.to_v(n), heads=1)
        return x + self.to_out[0](out).reshape(b, h, w, c)


class _Middle(nnx.Module):
    def __init__(self, c: int, groups: int, add_attention: bool, **kwargs):
        first = _Resnet(c, c, groups, **kwargs)
        self.resnets = nnx.List([first, _Resnet(c, c, groups, **kwargs)])
        self.attentions = nnx.List([_Attention(c, groups, **kwargs)] if add_attention else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.resnets[0](x)
        for block in self.attentions:
            x = block(x)
        return self.resnets[1](x)


class _Resample(nnx.Module):
    """Halves the grid by a strided convolution, padded at the right and below, or doubles it.

    Doubling is by nearest neighbour and a convolution.
    """

    def __init__(self, c: int, *, down: bool, **kwargs):
        self.down = down
        padding = ((0, 1), (0, 1)) if down else 1
        self.conv = Conv(c, c, 3, stride=2 if down else 1, padding=padding, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x if self.down else doubled(x))


class _Block(nnx.Module):
    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, *, resample: str, **kwargs):
        self.resnets = nnx.List([])
        for i in range(layers):
            self.resnets.append(_Resnet(c_in if i == 0 else c_out, c_out, groups, **kwargs))
        if resample == "down":
            self.downsamplers = nnx.List([_Resample(c_out, down=True, **kwargs)])
        if resample == "up":
            self.upsamplers = nnx.List([_Resample(c_out, down=False, **kwargs)])
        self.resample = resample

    def __call__(self, x: jax.Array) -> jax.Array:
        for resnet in self.resnets:
            x = resnet(x)
        if self.resample == "down":
            x = self.downsamplers[0](x)
        if self.resample == "up":
            x = self.upsamplers[0](x)
        return x


def _blocks(
    channels: tuple[int, ...], layers: int, groups: int, *, resample: str, **kwargs
) -> nnx.List:
    """One block for each resolution; all but the last resample."""
    blocks = nnx.List([])
    for i, c in enumerate(channels):
        c_in = channels[max(i - 1, 0)]
        what = resample if i < len(channels) - 1 else ""
        blocks.append(_Block(c_in, c, layers, groups, resample=what, **kwargs))
    return blocks


class Encoder(nnx.Module):
    """Images [b, h, w, 3] → features [b, h/f, w/f, latent]."""

    def __init__(self, config: CodecConfig, **kwargs):
        channels = config.block_out_channels
        groups = config.norm_num_groups
        layers = config.layers_per_block
        self.conv_in = Conv(config.in_channels, channels[0], 3, **kwargs)
        self.down_blocks = _blocks(channels, layers, groups, resample="down", **kwargs)
        self.mid_block = _Middle(channels[-1], groups, config.mid_block_add_attention, **kwargs)
        self.conv_norm_out = GroupNorm(channels[-1], num_groups=groups, epsilon=1e-6, **kwargs)
        self.conv_out = Conv(channels[-1], config.latent_channels, 3, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Features [b, h, w, latent] → images [b, h·f, w·f, 3]."""

    def __init__(self, config: CodecConfig, **kwargs):
        channels = config.block_out_channels[::-1]
        groups = config.norm_num_groups
        layers = config.layers_per_block + 1
        self.conv_in = Conv(config.latent_channels, channels[0], 3, **kwargs)
        self.mid_block = _Middle(channels[0], groups, config.mid_block_add_attention, **kwargs)
        self.up_blocks = _blocks(channels, layers, groups, resample="up", **kwargs)
        self.conv_norm_out = GroupNorm(channels[-1], num_groups=groups, epsilon=1e-6, **kwargs)
        self.conv_out = Conv(channels[-1], config.out_channels, 3, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Codebook(nnx.Module):
    """The nearest-neighbour quantiser: `embedding` is [codes, dim]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        n = config.num_vq_embeddings
        shape = (n, config.vq_embed_dim)
        codes = jax.random.uniform(rngs.params(), shape, minval=-1 / n, maxval=1 / n)
        self.embedding = nnx.Param(codes)

    def nearest(self, z: jax.Array) -> jax.Array:
        """Features [..., d] → indices [...] of the closest code in Euclidean distance."""
        table = self.embedding[...].astype(jnp.float32)
        z = z.astype(jnp.float32)
        # Accelerators would multiply in fewer bits, and near the border between two codes choose
        # the other one.
        products = jnp.matmul(z, table.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin((table**2).sum(-1) - 2 * products, axis=-1).astype(jnp.int32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Indices [...] → codes [..., d]."""
        return self.embedding[...][tokens]


class VQModel(nnx.Module):
    """Encoder, codebook, decoder."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        kwargs = {"rngs": rngs, "dtype": dtype}
        self.config = config
        self.encoder = Encoder(config, **kwargs)
        self.quant_conv = Linear(config.latent_channels, config.vq_embed_dim, **kwargs)
        self.quantize = Codebook(config, rngs=rngs)
        self.post_quant_conv = Linear(config.vq_embed_dim, config.latent_channels, **kwargs)
        self.decoder = Decoder(config, **kwargs)

    def features(self, images: jax.Array) -> jax.Array:
        """Images [b, h, w, 3] in [0, 1] → unquantised features [b, h/f, w/f, d]."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [b, h, w, 3] in [0, 1] → tokens [b, h/f, w/f] int32.

        The sides are divisible by f = `config.downsampling`.
        """
        return self.quantize.nearest(self.features(images))

    def decode_features(self, z: jax.Array) -> jax.Array:
        """Codes [b, h, w, d] → images [b, h·f, w·f, 3], not clipped."""
        return self.decoder(self.post_quant_conv(z))

    def decode(self, tokens: jax.Array) -> jax.Array:
        """Tokens [b, h, w] → images [b, h·f, w·f, 3] in [0, 1]."""
        return jnp.clip(self.decode_features(self.quantize(tokens)).astype(jnp.float32), 0, 1)


RULES = Rules(
    rules=(
        Rule(r"quantize\.embedding", "quantize.embedding.weight"),
        Rule(r"(.*(?:quant_conv|conv_shortcut))\.kernel", r"\1.weight", "1x1"),
        Rule(r"(.*conv\w*)\.kernel", r"\1.weight", "conv"),
        *COMMON,
    ),
    renames=(
        (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
        (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
        (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
        (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
    ),
)
