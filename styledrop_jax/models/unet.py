"""The U-Net of Stable Diffusion 1.x and 2.x: from noisy latents, a time and a text to the noise.

The architecture is `UNet2DConditionModel` of the diffusers library as those models configure it
(Rombach et al., arXiv 2112.10752), tensor for tensor, channels last. Whether the output is the
noise or v is for the scheduler to say, not for the model.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.models.config_json import known_fields, require, require_value
from styledrop_jax.models.layers import recomputed
from styledrop_jax.models.rules import COMMON, Rule, Rules
from styledrop_jax.models.unet_blocks import (
    Attention,
    Control,
    DownBlock2D,
    Parts,
    Text,
    TimestepEmbedding,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)

_SOURCE = "unet config"
_DOWN = "DownBlock2D"
_DOWN_ATTENTION = "CrossAttnDownBlock2D"
_UP = "UpBlock2D"
_UP_ATTENTION = "CrossAttnUpBlock2D"
_SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "norm_num_groups",
)
# Options of the reference that no Stable Diffusion 1.x or 2.x uses, each with the one value that is
# supported.
_FIXED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0,
    "transformer_layers_per_block": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "num_attention_heads": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
}


def _positive(*values: Any) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of the reference's config.json, with the reference's names and defaults.

    Attributes:
        sample_size: side of the latents the model was trained at; the module takes any height and
            width.
        in_channels, out_channels: of the latents.
        center_input_sample: the latents come in [0, 1] and are moved to [-1, 1].
        flip_sin_to_cos: the time's cosines come before its sines.
        freq_shift: lowers the lowest frequency.
        down_block_types: from the highest resolution to the lowest.
        up_block_types: from the lowest resolution to the highest.
        block_out_channels: from the highest resolution to the lowest.
        layers_per_block: of a down block; an up block has one more.
        norm_num_groups, norm_eps: of the group norms.
        cross_attention_dim: width of the text features.
        attention_head_dim: the *number* of heads, whatever its name says, at all resolutions or at
            each of `block_out_channels`.
        use_linear_projection: files hold the transformers' projections as linear layers, not as 1×1
            convolutions.
        upcast_attention: tells the reference to take the softmax in float32; it always is here.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (_DOWN_ATTENTION, _DOWN_ATTENTION, _DOWN_ATTENTION, _DOWN)
    up_block_types: tuple[str, ...] = (_UP, _UP_ATTENTION, _UP_ATTENTION, _UP_ATTENTION)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False

    def __post_init__(self) -> None:
        for field in _SIZES:
            self._check(_positive(getattr(self, field)), field, "one positive number")
        self._check_channels()
        self._check_types()
        self._check_heads()

    def _check(self, fits: bool, field: str, expected: str) -> None:
        require(fits, _SOURCE, self, field, expected)

    def _check_channels(self) -> None:
        channels = self.block_out_channels
        field = "block_out_channels"
        several = isinstance(channels, tuple) and bool(channels)
        self._check(several and _positive(*channels), field, "positive numbers")
        groups = self.norm_num_groups
        divisible = all(c % groups == 0 for c in channels)
        self._check(divisible, field, f"multiples of norm_num_groups {groups}")
        self._check(channels[0] % 2 == 0, field, "an even number first")

    def _check_types(self) -> None:
        count = len(self.block_out_channels)
        down = (_DOWN, _DOWN_ATTENTION)
        up = (_UP, _UP_ATTENTION)
        for field, known in (("down_block_types", down), ("up_block_types", up)):
            types = getattr(self, field)
            fits = isinstance(types, tuple) and len(types) == count and set(types) <= set(known)
            expected = f"{count} of {' and '.join(known)}, as many as block_out_channels"
            self._check(fits, field, expected)

    def _check_heads(self) -> None:
        channels = self.block_out_channels
        heads = self.heads
        field = "attention_head_dim"
        counts = f"one number of heads or {len(channels)}, as many as block_out_channels"
        self._check(len(heads) == len(channels) and _positive(*heads), field, counts)
        expected = f"numbers of heads that divide block_out_channels {channels}"
        last = len(channels) - 1
        for i, (down, up) in enumerate(self.types):
            # The middle block, at the last resolution, attends in any case.
            if down == _DOWN_ATTENTION or up == _UP_ATTENTION or i == last:
                self._check(channels[i] % heads[i] == 0, field, expected)

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads at each of `block_out_channels`."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

    @property
    def types(self) -> list[tuple[str, str]]:
        """The down and the up block of each resolution, from the highest to the lowest."""
        return list(zip(self.down_block_types, reversed(self.up_block_types), strict=True))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's config.json.

        Null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: the file is of another class, asks for what Stable Diffusion 1.x and 2.x do
                not have, or its sizes do not fit together.
        """
        for name, supported in _FIXED.items():
            require_value(_SOURCE, config, name, supported)
        return cls(**known_fields(cls, config, source=_SOURCE))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that the reference library loads."""
        return {"_class_name": "UNet2DConditionModel", **dataclasses.asdict(self)}

    @classmethod
    def sd15(cls) -> Self:
        """Stable Diffusion 1.5 and every other 1.x: 512-pixel images, 860M parameters."""
        return cls(cross_attention_dim=768)

    @classmethod
    def sd21(cls) -> Self:
        """Stable Diffusion 2.1: 768-pixel images, predicts v, 866M parameters."""
        return cls(
            sample_size=96,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            upcast_attention=True,
        )

    @classmethod
    def emoji64(cls, *, width: int = 48, text_width: int = 192) -> Self:
        """The shipped model of 64-pixel images: 16×16 latents, with attention at 8×8.

        Args:
            width: channels at 16×16, a multiple of 16.
            text_width: of the text features.
        """
        return cls(
            sample_size=16,
            down_block_types=(_DOWN, _DOWN_ATTENTION),
            up_block_types=(_UP_ATTENTION, _UP),
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=text_width,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
        )


class UNet(nnx.Module):
    """The denoiser; see the module's docstring.

    `dtype` is the compute dtype. Fresh parameters are float32, and so are the statistics of norms
    and softmaxes. A fresh model predicts zero.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        channels = config.block_out_channels
        heads = config.heads
        layers = config.layers_per_block
        last = len(channels) - 1
        parts = Parts(
            time_dim=4 * channels[0],
            text_dim=config.cross_attention_dim,
            groups=config.norm_num_groups,
            epsilon=config.norm_eps,
            linear_projection=config.use_linear_projection,
            rngs=rngs,
            dtype=dtype,
        )
        self.config = config
        self.conv_in = parts.conv(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(parts, channels[0])
        downs = []
        ups = []
        for i, (down, up) in enumerate(config.types):
            above = channels[max(i - 1, 0)]
            below = channels[min(i + 1, last)]
            down_block = DownBlock2D(
                parts,
                above,
                channels[i],
                layers=layers,
                heads=heads[i] if down == _DOWN_ATTENTION else None,
                downsample=i < last,
            )
            up_block = UpBlock2D(
                parts,
                below,
                channels[i],
                skip=above,
                layers=layers + 1,
                heads=heads[i] if up == _UP_ATTENTION else None,
                upsample=i > 0,
            )
            downs.append(down_block)
            ups.append(up_block)
        self.down_blocks = nnx.List(downs)
        self.up_blocks = nnx.List(reversed(ups))
        self.mid_block = UNetMidBlock2DCrossAttn(parts, channels[-1], heads=heads[-1])
        self.conv_norm_out = parts.group_norm(channels[0])
        zeros = nnx.initializers.zeros
        self.conv_out = parts.conv(channels[0], config.out_channels, kernel_init=zeros)
        for path, module in nnx.iter_modules(self):
            if isinstance(module, Attention):
                module.place = tree.path_name(path)

    def __call__(
        self,
        latents: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        *,
        text_mask: jax.Array | None = None,
        control: Control | None = None,
        remat: bool = False,
    ) -> jax.Array:
        """Predicts what the model was trained to predict of the noise in the latents.

        Args:
            latents: [b, h, w, in_channels], of any height and width.
            timesteps: [b], int or float, of the training schedule: 0 to 999.
            text: [b, t, d] features of the text encoder.
            text_mask: bool [b, t], True where to attend; None attends to everything, as the public
                models do.
            control: edits the weights of every cross-attention, as prompt-to-prompt does (arXiv
                2208.01626, §3). It takes them as float32 [b, heads, n, t], softmaxed, with n the
                positions row by row, and the module's dotted path, such as
                `mid_block.attentions.0.transformer_blocks.0.attn2`, and returns weights of the same
                shape.
            remat: whether the backward pass computes the activations of each block anew; else it
                keeps them.

        Returns:
            float32 [b, h, w, out_channels]
        """
        mask = None if text_mask is None else text_mask[:, None, None]  # [b, 1, 1, t]
        context = Text(text, mask, control)
        if self.config.center_input_sample:
            latents = 2 * latents - 1
        time = self.time_embedding(self._sinusoids(timesteps))
        time = nnx.silu(time)  # [b, e], with the SiLU that every use of it takes
        run = recomputed if remat else lambda block: block
        skips = [self.conv_in(latents)]
        for block in self.down_blocks:
            skips += run(block)(skips[-1], time, context)
        x = run(self.mid_block)(skips[-1], time, context)
        for block in self.up_blocks:
            x = run(block)(x, skips, time, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def _sinusoids(self, timesteps: jax.Array) -> jax.Array:
        """[b] → float32 [b, c], sines and cosines at c/2 frequencies falling from 1.

        Source: arXiv 1706.03762, §3.5.
        """
        half = self.config.block_out_channels[0] // 2
        # In NumPy's float32, which agrees with the reference: an error in the last place of the
        # first frequencies makes a visible angle at time 999.
        exponents = -math.log(10_000) * np.arange(half, dtype=np.float32)
        frequencies = np.exp(exponents / (half - self.config.freq_shift))
        angles = timesteps.astype(jnp.float32)[:, None] * frequencies
        waves = [jnp.sin(angles), jnp.cos(angles)]
        if self.config.flip_sin_to_cos:
            waves.reverse()
        return jnp.concatenate(waves, axis=-1)


RULES = Rules(
    (
        Rule(r"(.+\.proj_(?:in|out))\.conv\.kernel", r"\1.weight", "1x1"),
        Rule(r"(.+\.proj_(?:in|out))\.conv\.bias", r"\1.bias"),
        Rule(r"(.+\.conv_shortcut)\.kernel", r"\1.weight", "1x1"),
        Rule(r"((?:.+\.)?conv\w*)\.kernel", r"\1.weight", "conv"),
        *COMMON,
    )
)
"""Tensor names and layouts of diffusers' `UNet2DConditionModel`."""
