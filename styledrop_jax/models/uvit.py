"""The masked-token transformer of aMUSEd: a U-ViT over a grid of image tokens, conditioned on text.

The architecture is `UVit2DModel` of the diffusers library, tensor for tensor (aMUSEd, arXiv
2401.01808, after Muse, arXiv 2301.00704, and the U-ViT of simple diffusion, arXiv 2301.11093). It
has no position embedding: tokens learn where they are from the zero padding of the depthwise
convolutions, `num_res_blocks` steps in from the border. A small model learns that too slowly to
generate shapes. With `positional_masks` the masked tokens themselves say where they are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.models.attention import attention
from styledrop_jax.models.grid import (
    DepthwiseConv,
    FoldingConv,
    GlobalResponseNorm,
    UnfoldingConv,
    places,
)
from styledrop_jax.models.layers import (
    Embed,
    FeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    gelu,
    recomputed,
)
from styledrop_jax.models.rules import COMMON, Rule, Rules
from styledrop_jax.models.uvit_config import Config

# The reference fixes it for the norms of its attention blocks, whatever `layer_norm_eps` is.
_BLOCK_NORM_EPS = 1e-6


def _sinusoids(values: jax.Array, dim: int) -> jax.Array:
    """Cosines, then sines, of `values` [...] at dim/2 frequencies falling from 1.

    Returns:
        float32 [..., dim]
    """
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = values.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class _Parts:
    """Makes the model's layers, with the settings that they share.

    Attributes:
        config: of the model.
        common: settings of all layers.
        grid: settings of the convolutions.
        norm: settings of the norms.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any):
        self.config = config
        self.common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.grid = self.common | {"use_bias": config.use_bias}
        scaled = config.ln_elementwise_affine
        self.norm = self.common | {"epsilon": config.layer_norm_eps, "use_scale": scaled}

    def linear(self, in_features: int, out_features: int, **kwargs) -> Linear:
        return Linear(in_features, out_features, **self.grid, **kwargs)

    def modulation(self, features: int) -> Linear:
        """Conditioning vector → scale and shift.

        Both are zero at first, so that training starts without conditioning.
        """
        zeros = nnx.initializers.zeros
        return self.linear(self.config.hidden_size, 2 * features, kernel_init=zeros)

    def rms_norm(self, features: int) -> RMSNorm:
        return RMSNorm(features, **self.norm)

    def layer_norm(self, features: int) -> LayerNorm:
        use_bias = self.config.ln_elementwise_affine and self.config.use_bias
        return LayerNorm(features, use_bias=use_bias, use_fast_variance=False, **self.norm)


class AdaNorm(nnx.Module):
    """A norm whose output the conditioning vector scales and shifts (`AdaLayerNormContinuous`)."""

    def __init__(self, parts: _Parts, norm: RMSNorm | LayerNorm):
        self.norm = norm
        self.linear = parts.modulation(parts.config.hidden_size)

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


class TransformerLayer(nnx.Module):
    """Self-attention, cross-attention to the text, MLP.

    It has the slots of StyleDrop's adapters (2306.00983): if they are set, `attn_adapter` maps what
    the cross-attention adds to the stream, and `mlp_adapter` what the MLP adds.
    """

    def __init__(self, parts: _Parts):
        config = parts.config
        hidden = config.hidden_size
        heads = config.num_attention_heads
        self.norm1 = AdaNorm(parts, parts.rms_norm(hidden))
        self.attn1 = Attention(parts, hidden, heads)
        self.norm2 = AdaNorm(parts, parts.rms_norm(hidden))
        self.attn2 = Attention(parts, hidden, heads)
        self.norm3 = AdaNorm(parts, parts.layer_norm(hidden))
        self.ff = FeedForward(parts.linear, hidden, config.intermediate_size)
        self.width = hidden
        self.attn_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(self, x: jax.Array, text: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, n, c]. text: [b, t, c]. cond: [b, c], after its SiLU."""
        x = x + self.attn1(self.norm1(x, cond))
        y = self.attn2(self.norm2(x, cond), text)
        x = x + (y if self.attn_adapter is None else self.attn_adapter(y))
        y = self.ff(self.norm3(x, cond))
        return x + (y if self.mlp_adapter is None else self.mlp_adapter(y))


class ResBlock(nnx.Module):
    """A ConvNeXt V2 block whose output the conditioning vector scales and shifts."""

    def __init__(self, parts: _Parts):
        config = parts.config
        channels = config.block_out_channels
        self.depthwise = DepthwiseConv(channels, **parts.grid)
        self.norm = parts.rms_norm(channels)
        self.channelwise_linear_1 = parts.linear(channels, 4 * channels)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = parts.linear(4 * channels, channels)
        self.cond_embeds_mapper = parts.modulation(channels)

    def __call__(self, x: jax.Array, cond: jax.Array) -> jax.Array:
        """x: [b, h, w, c]. cond: [b, d], after its SiLU."""
        y = self.norm(self.depthwise(x))
        y = self.channelwise_norm(gelu(self.channelwise_linear_1(y)))
        x = x + self.channelwise_linear_2(y)
        scale, shift = jnp.split(self.cond_embeds_mapper(cond)[:, None, None], 2, axis=-1)
        return x * (1 + scale) + shift


class AttentionBlock(nnx.Module):
    """Two cross-attentions to the text and no MLP.

    Both look at the text, although the first is called `attn1`, as in the reference.
    """

    def __init__(self, parts: _Parts):
        config = parts.config
        channels = config.block_out_channels
        heads = config.block_num_heads
        block_norm = parts.norm | {"epsilon": _BLOCK_NORM_EPS, "use_scale": True}
        mapped = config.hidden_size != channels
        self.kv_mapper = parts.linear(config.hidden_size, channels) if mapped else None
        self.norm1 = RMSNorm(channels, **block_norm)
        self.attn1 = Attention(parts, channels, heads)
        self.norm2 = RMSNorm(channels, **block_norm)
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
        self.conv = conv(channels, channels, **parts.grid)

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
        self.embeddings = Embed(config.vocab_size, config.in_channels, **parts.common)
        self.layer_norm = parts.rms_norm(config.in_channels)
        self.conv = parts.linear(config.in_channels, config.block_out_channels)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.conv(self.layer_norm(self.embeddings(tokens)))


class CondEmbed(nnx.Module):
    """Pooled text and micro-conditions → the conditioning vector."""

    def __init__(self, parts: _Parts):
        config = parts.config
        width = config.micro_cond_embed_dim + config.cond_embed_dim
        self.linear_1 = parts.linear(width, config.hidden_size)
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

    `dtype` is the compute dtype. Fresh parameters are float32, and so are the statistics of norms
    and softmaxes.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        parts = _Parts(config, rngs=rngs, dtype=dtype)
        hidden = config.hidden_size
        channels = config.block_out_channels
        self.config = config
        self.dtype = dtype
        self.encoder_proj = parts.linear(config.encoder_hidden_size, hidden)
        self.encoder_proj_layer_norm = parts.rms_norm(hidden)
        self.embed = TokenEmbed(parts)
        self.cond_embed = CondEmbed(parts)
        self.down_block = Block(parts, downsample=config.downsample)
        self.project_to_hidden_norm = parts.rms_norm(channels)
        self.project_to_hidden = parts.linear(channels, hidden)
        self.transformer_layers = nnx.List(
            [TransformerLayer(parts) for _ in range(config.num_hidden_layers)]
        )
        self.project_from_hidden_norm = parts.rms_norm(hidden)
        self.project_from_hidden = parts.linear(hidden, channels)
        self.up_block = Block(parts, upsample=config.upsample)
        self.mlm_layer = TokenHead(parts)

    def __call__(
        self,
        tokens: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        micro: jax.Array,
        *,
        remat: bool = False,
    ) -> jax.Array:
        """Predicts every token of the grid.

        Args:
            tokens: int [b, h, w]; `config.mask_token_id` where unknown. h and w are even if the
                model downsamples.
            text: [b, t, d] features of the text encoder.
            pooled: [b, p] pooled text embedding.
            micro: [b, 5] original width and height in pixels, crop top and left in pixels,
                aesthetic score.
            remat: whether the backward pass computes the activations of each block anew; else it
                keeps them.

        Returns:
            float32 logits [b, h, w, codebook_size]

        Raises:
            ValueError: an odd grid in a model that downsamples.
        """
        b, h, w = tokens.shape
        if self.config.downsample and (h % 2 or w % 2):
            raise ValueError(f"tokens are {h}×{w}; a model that downsamples needs an even grid")
        if self.config.positional_masks:
            placed = self.config.codebook_size + places(h, w, self.config.sample_size)
            tokens = jnp.where(tokens == self.config.mask_token_id, placed, tokens)
        text = self.encoder_proj_layer_norm(self.encoder_proj(text))  # [b, t, d]
        sizes = _sinusoids(micro, self.config.micro_cond_encode_dim).reshape(b, -1)
        cond = jnp.concatenate([pooled.astype(self.dtype), sizes.astype(self.dtype)], axis=-1)
        cond = nnx.silu(self.cond_embed(cond))  # [b, d], with the SiLU that every use of it takes

        run = recomputed if remat else lambda block: block
        x = run(self.down_block)(self.embed(tokens), text, cond)  # [b, h', w', c]
        grid = x.shape
        x = self.project_to_hidden_norm(x.reshape(b, -1, grid[-1]))
        x = self.project_to_hidden(x)  # [b, n, d]
        for layer in self.transformer_layers:
            x = run(layer)(x, text, cond)
        x = self.project_from_hidden(self.project_from_hidden_norm(x)).reshape(grid)
        x = run(self.up_block)(x, text, cond)  # [b, h, w, c]
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
