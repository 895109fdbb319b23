"""The blocks of Stable Diffusion's U-Net on a grid [b, h, w, c].

They are diffusers' modules, attribute path for attribute path. Residual blocks take the time
embedding; transformers attend within the grid and then to the text (Rombach et al., arXiv
2112.10752, §3.3 and Appendix E.2.1). The last layer of a residual branch is zero at first, so that
a fresh block passes its input on, as in the guided diffusion models that the architecture comes
from (arXiv 2105.05233).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.models.attention import attention
from styledrop_jax.models.grid import doubled
from styledrop_jax.models.layers import (
    Conv,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
)

Control = Callable[[jax.Array, str], jax.Array]
"""Maps the weights of one cross-attention and the dotted path of its module to other weights.

The weights are float32 [b, heads, n, t] with rows that sum to one, n = h·w row by row.
"""

# The reference fixes both, whatever `norm_eps` is.
_TRANSFORMER_NORM_EPS = 1e-6
_LAYER_NORM_EPS = 1e-5
_zeros = nnx.initializers.zeros


class Text(NamedTuple):
    """What cross-attention looks at.

    Attributes:
        states: [b, t, d].
        mask: bool [b, 1, 1, t], True where to attend; None attends to everything.
        control: edits the attention weights; None leaves them as they are.
    """

    states: jax.Array
    mask: jax.Array | None = None
    control: Control | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Makes the layers of all blocks, with the settings that they share.

    Attributes:
        time_dim: width of the time embedding.
        text_dim: width of the text features.
        groups: of every group norm.
        epsilon: of the group norms outside transformers.
        linear_projection: whether files hold a transformer's projections as linear layers; else as
            1×1 convolutions.
        rngs, dtype: of every layer.
    """

    time_dim: int
    text_dim: int
    groups: int
    epsilon: float
    linear_projection: bool
    rngs: nnx.Rngs
    dtype: Any

    def linear(self, c_in: int, c_out: int, **kwargs) -> Linear:
        return Linear(c_in, c_out, rngs=self.rngs, dtype=self.dtype, **kwargs)

    def conv(self, c_in: int, c_out: int, **kwargs) -> Conv:
        """3×3."""
        return Conv(c_in, c_out, 3, rngs=self.rngs, dtype=self.dtype, **kwargs)

    def projection(self, c: int, **kwargs) -> "Linear | Pointwise":
        linear = self.linear(c, c, **kwargs)
        return linear if self.linear_projection else Pointwise(linear)

    def group_norm(self, c: int, *, epsilon: float | None = None) -> GroupNorm:
        epsilon = self.epsilon if epsilon is None else epsilon
        return GroupNorm(
            c, num_groups=self.groups, epsilon=epsilon, rngs=self.rngs, dtype=self.dtype
        )

    def layer_norm(self, c: int) -> LayerNorm:
        return LayerNorm(c, epsilon=_LAYER_NORM_EPS, rngs=self.rngs, dtype=self.dtype)


class Pointwise(nnx.Module):
    """A linear layer that files hold as a 1×1 convolution.

    It has a path of its own, by which the rules tell it from other linear layers.
    """

    def __init__(self, conv: Linear):
        self.conv = conv

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class TimestepEmbedding(nnx.Module):
    """Sinusoids [b, c] → the time embedding [b, e]."""

    def __init__(self, parts: Parts, c: int):
        self.linear_1 = parts.linear(c, parts.time_dim)
        self.linear_2 = parts.linear(parts.time_dim, parts.time_dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions; the time embedding is added between them."""

    def __init__(self, parts: Parts, c_in: int, c_out: int):
        self.norm1 = parts.group_norm(c_in)
        self.conv1 = parts.conv(c_in, c_out)
        self.time_emb_proj = parts.linear(parts.time_dim, c_out)
        self.norm2 = parts.group_norm(c_out)
        self.conv2 = parts.conv(c_out, c_out, kernel_init=_zeros)
        self.conv_shortcut = parts.linear(c_in, c_out) if c_in != c_out else None

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """x: [b, h, w, c_in]. time: [b, e], after its SiLU. Returns [b, h, w, c_out]."""
        y = self.conv1(nnx.silu(self.norm1(x))) + self.time_emb_proj(time)[:, None, None]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Multi-head attention of a grid over itself, or over a text if `text_dim` is given.

    Attributes:
        place: the module's dotted path, which tells a control where it is; the U-Net sets it.
    """

    def __init__(self, parts: Parts, c: int, *, heads: int, text_dim: int | None = None):
        self.heads = heads
        self.place = ""
        self.to_q = parts.linear(c, c, use_bias=False)
        self.to_k = parts.linear(text_dim or c, c, use_bias=False)
        self.to_v = parts.linear(text_dim or c, c, use_bias=False)
        self.to_out = nnx.List([parts.linear(c, c)])

    def __call__(self, x: jax.Array, text: Text | None = None) -> jax.Array:
        """x: [b, n, c]. Returns [b, n, c]."""
        text = Text(x) if text is None else text
        q = self.to_q(x)
        k = self.to_k(text.states)
        v = self.to_v(text.states)
        control = text.control
        edit = None if control is None else lambda weights: control(weights, self.place)
        return self.to_out[0](attention(q, k, v, heads=self.heads, mask=text.mask, control=edit))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text, MLP.

    The slots `attn_adapter` and `mlp_adapter` are those of the U-ViT's layers.
    """

    def __init__(self, parts: Parts, c: int, *, heads: int):
        self.norm1 = parts.layer_norm(c)
        self.attn1 = Attention(parts, c, heads=heads)
        self.norm2 = parts.layer_norm(c)
        self.attn2 = Attention(parts, c, heads=heads, text_dim=parts.text_dim)
        self.norm3 = parts.layer_norm(c)
        self.ff = FeedForward(parts.linear, c, 4 * c)
        self.width = c
        self.attn_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        """x: [b, n, c]. Returns [b, n, c]."""
        x = x + self.attn1(self.norm1(x))
        y = self.attn2(self.norm2(x), text)
        x = x + (y if self.attn_adapter is None else self.attn_adapter(y))
        y = self.ff(self.norm3(x))
        return x + (y if self.mlp_adapter is None else self.mlp_adapter(y))


class Transformer2DModel(nnx.Module):
    """`depth` transformer blocks over the positions of a grid, added to it."""

    def __init__(self, parts: Parts, c: int, *, heads: int, depth: int):
        self.norm = parts.group_norm(c, epsilon=_TRANSFORMER_NORM_EPS)
        self.proj_in = parts.projection(c)
        self.transformer_blocks = nnx.List([])
        for _ in range(depth):
            self.transformer_blocks.append(BasicTransformerBlock(parts, c, heads=heads))
        self.proj_out = parts.projection(c, kernel_init=_zeros)

    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        """x: [b, h, w, c]. Returns [b, h, w, c]."""
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x).reshape(b, h * w, c))
        for block in self.transformer_blocks:
            y = block(y, text)
        return x + self.proj_out(y).reshape(b, h, w, c)


class Downsample2D(nnx.Module):
    """[b, h, w, c] → [b, ⌈h/2⌉, ⌈w/2⌉, c]"""

    def __init__(self, parts: Parts, c: int):
        self.conv = parts.conv(c, c, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles the grid by nearest neighbour, then applies a convolution."""

    def __init__(self, parts: Parts, c: int):
        self.conv = parts.conv(c, c)

    def __call__(self, x: jax.Array, h: int, w: int) -> jax.Array:
        """x: [b, ⌈h/2⌉, ⌈w/2⌉, c]. Returns [b, h, w, c]."""
        # An odd side is the doubled one without its last row or column.
        return self.conv(doubled(x)[:, :h, :w])


class _Layers(nnx.Module):
    """Residual blocks, each followed by a transformer if the block has `heads`."""

    def __init__(
        self, parts: Parts, widths: Sequence[int], c: int, *, heads: int | None, depth: int
    ):
        """widths: channels that each residual block takes. c: channels it gives. depth: layers of a
        transformer.
        """
        self.resnets = nnx.List([ResnetBlock2D(parts, width, c) for width in widths])
        self.attentions = nnx.List([])
        if heads:
            for _ in widths:
                self.attentions.append(Transformer2DModel(parts, c, heads=heads, depth=depth))

    def _layer(self, index: int, x: jax.Array, time: jax.Array, text: Text) -> jax.Array:
        x = self.resnets[index](x, time)
        return self.attentions[index](x, text) if self.attentions else x


class DownBlock2D(_Layers):
    """One resolution on the way down; with `heads`, the reference's `CrossAttnDownBlock2D`."""

    def __init__(
        self,
        parts: Parts,
        c_in: int,
        c: int,
        *,
        layers: int,
        heads: int | None,
        depth: int,
        downsample: bool,
    ):
        super().__init__(parts, [c_in] + [c] * (layers - 1), c, heads=heads, depth=depth)
        self.downsamplers = nnx.List([Downsample2D(parts, c)] if downsample else [])

    def __call__(self, x: jax.Array, time: jax.Array, text: Text) -> list[jax.Array]:
        """x: [b, h, w, c_in]. Returns the output of every layer: the skips, the last of which is
        also the input of the next block."""
        outputs = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, time, text)
            outputs.append(x)
        for downsampler in self.downsamplers:
            outputs.append(downsampler(x))
        return outputs


class UNetMidBlock2DCrossAttn(nnx.Module):
    """A transformer between two residual blocks, at the lowest resolution."""

    def __init__(self, parts: Parts, c: int, *, heads: int, depth: int):
        self.resnets = nnx.List([ResnetBlock2D(parts, c, c), ResnetBlock2D(parts, c, c)])
        self.attentions = nnx.List([Transformer2DModel(parts, c, heads=heads, depth=depth)])

    def __call__(self, x: jax.Array, time: jax.Array, text: Text) -> jax.Array:
        """x: [b, h, w, c]. Returns [b, h, w, c]."""
        x = self.attentions[0](self.resnets[0](x, time), text)
        return self.resnets[1](x, time)


class UpBlock2D(_Layers):
    """One resolution on the way up; with `heads`, the reference's `CrossAttnUpBlock2D`."""

    def __init__(
        self,
        parts: Parts,
        c_in: int,
        c: int,
        *,
        skip: int,
        layers: int,
        heads: int | None,
        depth: int,
        upsample: bool,
    ):
        """skip: channels of the last of the block's skips; the others have `c`."""
        widths = [2 * c] * layers  # of the input and the skip
        widths[0] += c_in - c
        widths[-1] += skip - c
        super().__init__(parts, widths, c, heads=heads, depth=depth)
        self.upsamplers = nnx.List([Upsample2D(parts, c)] if upsample else [])

    def __call__(
        self, x: jax.Array, skips: list[jax.Array], time: jax.Array, text: Text
    ) -> jax.Array:
        """x: [b, h, w, c_in].

        Args:
            skips: those not yet used; the block takes its own off the end.

        Returns:
            [b, h', w', c] of the size of the last skip that is left, if the block upsamples.
        """
        for index in range(len(self.resnets)):
            x = self._layer(index, jnp.concatenate([x, skips.pop()], axis=-1), time, text)
        for upsampler in self.upsamplers:
            _, h, w, _ = skips[-1].shape
            x = upsampler(x, h, w)
        return x
