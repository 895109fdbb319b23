"""The masked-token transformer of aMUSEd: a U-ViT over a grid of image tokens, conditioned on text.

The architecture is `UVit2DModel` of the diffusers library (aMUSEd, arXiv 2401.01808, after Muse, arXiv 2301.00704, and
the U-ViT of simple diffusion, arXiv 2301.11093), tensor for tensor. There is no position embedding: tokens learn where
they are from the zero padding of the depthwise convolutions, `num_res_blocks` steps in from the border.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.models.layers import Embed, LayerNorm, Linear, RMSNorm, attention
from styledrop_jax.models.rules import COMMON, Rule, Rules

_BLOCK_NORM_EPS = 1e-6  # the reference fixes it for the norms of its attention blocks, whatever `layer_norm_eps` is
_GRN_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of the reference's config.json under the reference's names; the defaults are aMUSEd-256's.

    Attributes:
        hidden_size: width of the transformer layers.
        use_bias: whether linear layers, convolutions and layer norms carry a bias.
        cond_embed_dim: width of the pooled text embedding.
        micro_cond_encode_dim: width of the sinusoid of one micro-condition.
        micro_cond_embed_dim: all sinusoids together: `micro_cond_encode_dim` × the number of micro-conditions.
        encoder_hidden_size: width of the text features.
        vocab_size: rows of the token embedding: codebook entries, padding, and the mask token last.
        codebook_size: number of logits; the mask token is never predicted.
        in_channels: width of the token embedding and of the output layer's input.
        block_out_channels: width of the convolutional blocks around the transformer.
        num_res_blocks: residual and attention blocks on each side of the transformer.
        downsample: halve the token grid before the transformer. `upsample`: double it after. Both or neither.
        block_num_heads: heads of the attention blocks.
        num_hidden_layers, num_attention_heads, intermediate_size: of the transformer; the last is the gated MLP's width.
        layer_norm_eps: epsilon of every norm but those of the attention blocks.
        ln_elementwise_affine: whether those norms have a learned scale.
        sample_size: side of the token grid the model was trained at; the module takes any grid.
    """

    hidden_size: int = 1024
    use_bias: bool = False
    cond_embed_dim: int = 768
    micro_cond_encode_dim: int = 256
    micro_cond_embed_dim: int = 1280
    encoder_hidden_size: int = 768
    vocab_size: int = 8256
    codebook_size: int = 8192
    in_channels: int = 768
    block_out_channels: int = 768
    num_res_blocks: int = 3
    downsample: bool = False
    upsample: bool = False
    block_num_heads: int = 12
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    intermediate_size: int = 2816
    layer_norm_eps: float = 1e-6
    ln_elementwise_affine: bool = True
    sample_size: int = 16

    def __post_init__(self) -> None:
        for width, heads in (("hidden_size", "num_attention_heads"), ("block_out_channels", "block_num_heads")):
            self._require_multiple(width, heads)
        self._require_multiple("micro_cond_embed_dim", "micro_cond_encode_dim")
        if self.micro_cond_encode_dim % 2:
            raise UserError(f"transformer config: micro_cond_encode_dim is {self.micro_cond_encode_dim}, expected even")
        if self.downsample != self.upsample:
            raise UserError(
                f"transformer config: downsample is {self.downsample} and upsample {self.upsample}, expected equal"
            )
        if self.vocab_size <= self.codebook_size:
            raise UserError(
                f"transformer config: vocab_size is {self.vocab_size}, expected more than "
                f"codebook_size {self.codebook_size}, for the mask token"
            )

    def _require_multiple(self, name: str, of: str) -> None:
        if getattr(self, name) % getattr(self, of):
            raise UserError(
                f"transformer config: {name} is {getattr(self, name)}, expected a multiple of {of} {getattr(self, of)}"
            )

    @property
    def mask_token_id(self) -> int:
        """The token that stands for "not decided yet": the last row of the embedding."""
        return self.vocab_size - 1

    @property
    def num_micro_conditions(self) -> int:
        """Numbers in the micro-conditioning; 5 for aMUSEd: original width, height, crop top, left, aesthetic score."""
        return self.micro_cond_embed_dim // self.micro_cond_encode_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's config.json; keys it does not know are ignored.

        Raises:
            UserError: the file is of another class, asks for dropout, or its sizes do not fit together.
        """
        if (name := config.get("_class_name", "UVit2DModel")) != "UVit2DModel":
            raise UserError(f"transformer config: _class_name is {name!r}, expected 'UVit2DModel'")
        for key in ("hidden_dropout", "attention_dropout"):
            if config.get(key):
                raise UserError(f"transformer config: {key} is {config[key]}, expected 0: dropout is not supported")
        # the reference's default sample_size, unlike the others, is that of no released model
        known = {"sample_size": 64} | dict(config)
        return cls(**{field.name: known[field.name] for field in dataclasses.fields(cls) if field.name in known})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that the reference library loads."""
        return {"_class_name": "UVit2DModel", **dataclasses.asdict(self)}

    @classmethod
    def amused_256(cls) -> Self:
        """`amused/amused-256`: 16×16 tokens, 603M parameters."""
        return cls()

    @classmethod
    def amused_512(cls) -> Self:
        """`amused/amused-512`: 32×32 tokens, 16×16 inside, 608M parameters."""
        return cls(downsample=True, upsample=True, sample_size=32)

    @classmethod
    def emoji64(cls) -> Self:
        """The shipped model of 64-pixel images: 16×16 tokens of a 1,024-entry codebook, 8×8 inside."""
        return cls(
            hidden_size=192,
            cond_embed_dim=192,
            micro_cond_encode_dim=16,
            micro_cond_embed_dim=80,
            encoder_hidden_size=192,
            vocab_size=1040,
            codebook_size=1024,
            in_channels=128,
            block_out_channels=128,
            num_res_blocks=3,
            downsample=True,
            upsample=True,
            block_num_heads=4,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=512,
        )


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU. `jax.nn.gelu` goes through erfc, which takes several times longer on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def sinusoids(values: jax.Array, dim: int) -> jax.Array:
    """Cosines, then sines, of `values` at `dim / 2` frequencies falling from 1 to 1/10,000.

    Args:
        values: [...] in any unit.
        dim: even.

    Returns:
        float32 [..., dim]
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _flat_dot_general(x: jax.Array, kernel: jax.Array, _dimensions, **kwargs) -> jax.Array:
    """The product of [..., c] and [c, d] over flattened tokens.

    The kernel's gradient then contracts one axis, which XLA's CPU backend does three times faster than several.
    """
    y = jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel, precision=kwargs["precision"])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class _Parts:
    """Makes the layers that all of the model's modules share the settings of."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype):
        self.config, self.rngs, self.dtype = config, rngs, dtype

    def linear(self, in_features: int, out_features: int, *, bias: bool | None = None, zero: bool = False) -> Linear:
        use_bias = self.config.use_bias if bias is None else bias
        init = {"kernel_init": nnx.initializers.zeros} if zero else {}
        return Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            dot_general=_flat_dot_general,
            dtype=self.dtype,
            rngs=self.rngs,
            **init,
        )

    def rms_norm(self, features: int) -> RMSNorm:
        config = self.config
        return RMSNorm(
            features,
            epsilon=config.layer_norm_eps,
            use_scale=config.ln_elementwise_affine,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def layer_norm(self, features: int) -> LayerNorm:
        config = self.config
        return LayerNorm(
            features,
            epsilon=config.layer_norm_eps,
            use_scale=config.ln_elementwise_affine,
            use_bias=config.ln_elementwise_affine and config.use_bias,
            use_fast_variance=False,
            dtype=self.dtype,
            rngs=self.rngs,
        )


class AdaNorm(nnx.Module):
    """A norm whose output the conditioning vector scales and shifts (`AdaLayerNormContinuous`)."""

    def __init__(self, parts: _Parts, norm: RMSNorm | LayerNorm):
        hidden = parts.config.hidden_size
        self.norm = norm
        self.linear = parts.linear(hidden, 2 * hidden, zero=True)

    def __call__(self, x: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, n, c]. cond: [b, c], after its SiLU."""
        scale, shift = jnp.split(self.linear(cond)[:, None], 2, axis=-1)
        return self.norm(x) * (1 + scale) + shift


class Attention(nnx.Module):
    """Multi-head attention of `x` over `context`, or over itself."""

    def __init__(self, parts: _Parts, features: int, heads: int):
        self.heads = heads
        self.to_q = parts.linear(features, features)
        self.to_k = parts.linear(features, features)
        self.to_v = parts.linear(features, features)
        self.to_out = nnx.List([parts.linear(features, features)])

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """x: [b, n, c]. context: [b, t, c]. Returns [b, n, c]."""
        context = x if context is None else context
        y = attention(self.to_q(x), self.to_k(context), self.to_v(context), heads=self.heads)
        return self.to_out[0](y)


class Geglu(nnx.Module):
    """One product gives value and gate: value · gelu(gate)."""

    def __init__(self, parts: _Parts, features: int, inner: int):
        self.proj = parts.linear(features, 2 * inner)

    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """The gated MLP. `net` keeps the reference's numbering, whose second entry is dropout."""

    def __init__(self, parts: _Parts, features: int, inner: int):
        self.net = nnx.List([Geglu(parts, features, inner), None, parts.linear(inner, features)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.net[2](self.net[0](x))


class TransformerLayer(nnx.Module):
    """Self-attention, cross-attention to the text, MLP.

    A set `attn_adapter` maps the output of the cross-attention, and `mlp_adapter` that of the MLP, before it is added
    to the stream: the two adapters per layer of StyleDrop (arXiv 2306.00983, Fig. S1).
    """

    def __init__(self, parts: _Parts):
        config = parts.config
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.norm1 = AdaNorm(parts, parts.rms_norm(hidden))
        self.attn1 = Attention(parts, hidden, heads)
        self.norm2 = AdaNorm(parts, parts.rms_norm(hidden))
        self.attn2 = Attention(parts, hidden, heads)
        self.norm3 = AdaNorm(parts, parts.layer_norm(hidden))
        self.ff = FeedForward(parts, hidden, config.intermediate_size)
        self.attn_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(self, x: jax.Array, text: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, n, c]. text: [b, t, c]. cond: [b, c], after its SiLU."""
        x = x + self.attn1(self.norm1(x, cond))
        y = self.attn2(self.norm2(x, cond), text)
        x = x + (y if self.attn_adapter is None else self.attn_adapter(y))
        y = self.ff(self.norm3(x, cond))
        return x + (y if self.mlp_adapter is None else self.mlp_adapter(y))


class GlobalResponseNorm(nnx.Module):
    """Channels compete by their norm over the whole grid (ConvNeXt V2, arXiv 2301.00808, Eq. 1–3)."""

    def __init__(self, features: int):
        self.gamma = nnx.Param(jnp.zeros(features))
        self.beta = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]"""
        total = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        # the floor keeps the square root's gradient finite for a channel that is zero everywhere
        norm = jnp.sqrt(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))  # [b, 1, 1, c]
        share = (norm / (jnp.mean(norm, axis=-1, keepdims=True) + _GRN_EPS)).astype(x.dtype)
        return self.gamma[...].astype(x.dtype) * (x * share) + self.beta[...].astype(x.dtype) + x


class _Kernel(nnx.Module):
    """A convolution's parameters."""

    def __init__(self, parts: _Parts, shape: tuple[int, ...], *, fan_in: int):
        init = nnx.initializers.truncated_normal(fan_in**-0.5)
        self.kernel = nnx.Param(init(parts.rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[-1])) if parts.config.use_bias else None
        self.dtype = parts.dtype

    def _add_bias(self, y: jax.Array) -> jax.Array:
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class DepthwiseConv(_Kernel):
    """A 3×3 convolution of each channel by itself, with zeros around.

    Written as nine shifted products, which XLA fuses into one loop: on a CPU nine times faster, forward and backward,
    than its grouped convolution.
    """

    def __init__(self, parts: _Parts, channels: int):
        super().__init__(parts, (3, 3, 1, channels), fan_in=9)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]"""
        h, w = x.shape[1:3]
        kernel = self.kernel[...].astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = sum(padded[:, i : i + h, j : j + w] * kernel[i, j, 0] for i in range(3) for j in range(3))
        return self._add_bias(y)


class FoldingConv(_Kernel):
    """A 2×2 convolution of stride 2: each four tokens become one, by one product."""

    def __init__(self, parts: _Parts, channels: int):
        super().__init__(parts, (2, 2, channels, channels), fan_in=4 * channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], h and w even. Returns [b, h/2, w/2, c]."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4 * c)
        y = x @ self.kernel[...].astype(self.dtype).reshape(4 * c, c)
        return self._add_bias(y.reshape(b, h // 2, w // 2, c))


class UnfoldingConv(_Kernel):
    """A 2×2 transposed convolution of stride 2: each token becomes four, by one product."""

    def __init__(self, parts: _Parts, channels: int):
        super().__init__(parts, (2, 2, channels, channels), fan_in=channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]. Returns [b, 2h, 2w, c]."""
        b, h, w, c = x.shape
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3).reshape(c, 4 * c)
        y = (x.reshape(-1, c) @ kernel).reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        return self._add_bias(y.reshape(b, 2 * h, 2 * w, c))


class ResBlock(nnx.Module):
    """A ConvNeXt V2 block whose output the conditioning vector scales and shifts."""

    def __init__(self, parts: _Parts):
        config = parts.config
        channels = config.block_out_channels
        self.depthwise = DepthwiseConv(parts, channels)
        self.norm = parts.rms_norm(channels)
        self.channelwise_linear_1 = parts.linear(channels, 4 * channels)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = parts.linear(4 * channels, channels)
        self.cond_embeds_mapper = parts.linear(config.hidden_size, 2 * channels, zero=True)

    def __call__(self, x: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, h, w, c]. cond: [b, d], after its SiLU."""
        y = self.norm(self.depthwise(x))
        y = self.channelwise_norm(gelu(self.channelwise_linear_1(y)))
        x = x + self.channelwise_linear_2(y)
        scale, shift = jnp.split(self.cond_embeds_mapper(cond)[:, None, None], 2, axis=-1)
        return x * (1 + scale) + shift


class AttentionBlock(nnx.Module):
    """Two cross-attentions to the text, the first of which the reference calls `attn1` too, and no MLP."""

    def __init__(self, parts: _Parts):
        config = parts.config
        channels, heads = config.block_out_channels, config.block_num_heads
        mapped = config.hidden_size != channels
        self.kv_mapper = parts.linear(config.hidden_size, channels) if mapped else None
        self.norm1 = RMSNorm(channels, epsilon=_BLOCK_NORM_EPS, dtype=parts.dtype, rngs=parts.rngs)
        self.attn1 = Attention(parts, channels, heads)
        self.norm2 = RMSNorm(channels, epsilon=_BLOCK_NORM_EPS, dtype=parts.dtype, rngs=parts.rngs)
        self.attn2 = Attention(parts, channels, heads)

    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """x: [b, n, c]. text: [b, t, d]."""
        if self.kv_mapper is not None:
            text = self.kv_mapper(nnx.silu(text))  # [b, t, c]
        x = x + self.attn1(self.norm1(x), text)
        return x + self.attn2(self.norm2(x), text)


class Resample(nnx.Module):
    """A norm, then the convolution that halves or doubles the grid."""

    def __init__(self, parts: _Parts, conv: type[FoldingConv] | type[UnfoldingConv]):
        channels = parts.config.block_out_channels
        self.norm = parts.rms_norm(channels)
        self.conv = conv(parts, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Block(nnx.Module):
    """Residual and attention blocks in turn, after a downsampling or before an upsampling."""

    def __init__(self, parts: _Parts, *, downsample: bool = False, upsample: bool = False):
        count = parts.config.num_res_blocks
        self.downsample = Resample(parts, FoldingConv) if downsample else None
        self.res_blocks = nnx.List([ResBlock(parts) for _ in range(count)])
        self.attention_blocks = nnx.List([AttentionBlock(parts) for _ in range(count)])
        self.upsample = Resample(parts, UnfoldingConv) if upsample else None

    def __call__(self, x: jax.Array, text: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, h, w, c]. text: [b, t, d]. cond: [b, d], after its SiLU."""
        if self.downsample is not None:
            x = self.downsample(x)
        b, h, w, c = x.shape
        for res_block, attention_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = res_block(x, cond)
            x = attention_block(x.reshape(b, h * w, c), text).reshape(b, h, w, c)
        return x if self.upsample is None else self.upsample(x)


class TokenEmbed(nnx.Module):
    """Tokens [b, h, w] → features [b, h, w, c]."""

    def __init__(self, parts: _Parts):
        config = parts.config
        self.embeddings = Embed(config.vocab_size, config.in_channels, dtype=parts.dtype, rngs=parts.rngs)
        self.layer_norm = parts.rms_norm(config.in_channels)
        self.conv = parts.linear(config.in_channels, config.block_out_channels)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.conv(self.layer_norm(self.embeddings(tokens)))


class CondEmbed(nnx.Module):
    """Pooled text and micro-conditions → the conditioning vector."""

    def __init__(self, parts: _Parts):
        config = parts.config
        self.linear_1 = parts.linear(config.micro_cond_embed_dim + config.cond_embed_dim, config.hidden_size)
        self.linear_2 = parts.linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class TokenHead(nnx.Module):
    """Features [b, h, w, c] → logits [b, h, w, v]."""

    def __init__(self, parts: _Parts):
        config = parts.config
        self.conv1 = parts.linear(config.block_out_channels, config.in_channels)
        self.layer_norm = parts.rms_norm(config.in_channels)
        self.conv2 = parts.linear(config.in_channels, config.codebook_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv2(self.layer_norm(self.conv1(x)))


class UVit(nnx.Module):
    """The masked-token transformer; see the module's docstring.

    Args:
        config: sizes.
        rngs: for the initial weights.
        dtype: compute dtype; parameters are float32, and so are the statistics of norms and softmaxes.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        parts = _Parts(config, rngs=rngs, dtype=dtype)
        hidden, channels = config.hidden_size, config.block_out_channels
        self.config = config
        self.dtype = dtype
        self.encoder_proj = parts.linear(config.encoder_hidden_size, hidden)
        self.encoder_proj_layer_norm = parts.rms_norm(hidden)
        self.embed = TokenEmbed(parts)
        self.cond_embed = CondEmbed(parts)
        self.down_block = Block(parts, downsample=config.downsample)
        self.project_to_hidden_norm = parts.rms_norm(channels)
        self.project_to_hidden = parts.linear(channels, hidden)
        self.transformer_layers = nnx.List([TransformerLayer(parts) for _ in range(config.num_hidden_layers)])
        self.project_from_hidden_norm = parts.rms_norm(hidden)
        self.project_from_hidden = parts.linear(hidden, channels)
        self.up_block = Block(parts, upsample=config.upsample)
        self.mlm_layer = TokenHead(parts)

    def __call__(self, tokens: jax.Array, text: jax.Array, pooled: jax.Array, micro: jax.Array) -> jax.Array:
        """Predicts every token of the grid.

        Args:
            tokens: int [b, h, w]; `config.mask_token_id` where unknown. h and w are even if the model downsamples.
            text: [b, t, d] features of the text encoder.
            pooled: [b, p] pooled text embedding.
            micro: [b, 5] original width and height in pixels, crop top and left in pixels, aesthetic score.

        Returns:
            float32 logits [b, h, w, codebook_size]

        Raises:
            ValueError: an odd grid in a model that downsamples.
        """
        b, h, w = tokens.shape
        if self.config.downsample and (h % 2 or w % 2):
            raise ValueError(f"tokens are {h}×{w}; a model that downsamples needs an even grid")
        text = self.encoder_proj_layer_norm(self.encoder_proj(text))  # [b, t, d]
        sizes = sinusoids(micro, self.config.micro_cond_encode_dim).reshape(b, -1)
        cond = jnp.concatenate([pooled.astype(self.dtype), sizes.astype(self.dtype)], axis=-1)
        cond = nnx.silu(self.cond_embed(cond))  # [b, d]; every use of it takes the SiLU, so it is taken once

        x = self.down_block(self.embed(tokens), text, cond)  # [b, h', w', c]
        grid = x.shape
        x = self.project_to_hidden(self.project_to_hidden_norm(x.reshape(b, -1, grid[-1])))  # [b, n, d]
        for layer in self.transformer_layers:
            x = layer(x, text, cond)
        x = self.project_from_hidden(self.project_from_hidden_norm(x)).reshape(grid)
        x = self.up_block(x, text, cond)  # [b, h, w, c]
        return self.mlm_layer(x).astype(jnp.float32)


RULES = Rules(
    (
        Rule(r"(embed\.conv|mlm_layer\.conv[12])\.kernel", r"\1.weight", "1x1"),
        Rule(r"(.+\.depthwise|.+\.downsample\.conv)\.kernel", r"\1.weight", "conv"),
        Rule(r"(.+\.upsample\.conv)\.kernel", r"\1.weight", "conv_transpose"),
        Rule(r"(.+\.(?:gamma|beta))", r"\1", "row"),
        *COMMON,
    )
)
"""Tensor names and layouts of diffusers' `UVit2DModel`."""
