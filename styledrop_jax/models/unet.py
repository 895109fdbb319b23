"""The U-Net of Stable Diffusion 1.x and 2.x: noisy latents, a time and a text → the prediction of the noise or of v.

The architecture is `UNet2DConditionModel` of the diffusers library as those models configure it (Rombach et al.,
arXiv 2112.10752), tensor for tensor, channels last. What the output means is the scheduler's to say, not the model's.
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
from styledrop_jax.errors import UserError
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

_DOWN, _DOWN_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _UP_ATTENTION = "UpBlock2D", "CrossAttnUpBlock2D"
# Options of the reference that no Stable Diffusion 1.x or 2.x uses, with the one value that is supported.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of the reference's config.json under the reference's names, with the reference's defaults.

    Attributes:
        sample_size: side of the latents the model was trained at; the module takes any height and width.
        in_channels, out_channels: of the latents.
        center_input_sample: the latents come in [0, 1] and are moved to [-1, 1].
        flip_sin_to_cos: the time's cosines come before its sines. freq_shift: lowers the lowest frequency.
        down_block_types: from the highest resolution to the lowest. up_block_types: from the lowest to the highest.
        block_out_channels: from the highest resolution to the lowest.
        layers_per_block: of a down block; an up block has one more.
        norm_num_groups, norm_eps: of the group norms.
        cross_attention_dim: width of the text features.
        attention_head_dim: the *number* of heads, whatever its name says, at all resolutions or at each of
            `block_out_channels`.
        use_linear_projection: files hold the transformers' projections as linear layers, not as 1×1 convolutions.
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
        def require(fits: bool, field: str, expected: str) -> None:
            if not fits:
                raise UserError(
                    f"unet config: {field} is {getattr(self, field)!r}, expected {expected}"
                )

        def positive(*values: Any) -> bool:
            return all(isinstance(value, int) and value > 0 for value in values)

        sizes = (
            "sample_size",
            "in_channels",
            "out_channels",
            "layers_per_block",
            "cross_attention_dim",
        )
        for field in (*sizes, "norm_num_groups"):
            require(positive(getattr(self, field)), field, "one positive number")
        channels, groups, field = (
            self.block_out_channels,
            self.norm_num_groups,
            "block_out_channels",
        )
        require(
            isinstance(channels, tuple) and bool(channels) and positive(*channels),
            field,
            "positive numbers",
        )
        require(
            all(c % groups == 0 for c in channels), field, f"multiples of norm_num_groups {groups}"
        )
        require(channels[0] % 2 == 0, field, "an even number first")
        for field, known in (
            ("down_block_types", (_DOWN, _DOWN_ATTENTION)),
            ("up_block_types", (_UP, _UP_ATTENTION)),
        ):
            types = getattr(self, field)
            fits = (
                isinstance(types, tuple)
                and len(types) == len(channels)
                and set(types) <= set(known)
            )
            require(
                fits,
                field,
                f"{len(channels)} of {' and '.join(known)}, as many as block_out_channels",
            )
        fits = len(self.heads) == len(channels) and positive(*self.heads)
        require(
            fits,
            "attention_head_dim",
            f"one number of heads or {len(channels)}, as many as block_out_channels",
        )
        attends = [_DOWN_ATTENTION == down or _UP_ATTENTION == up for down, up in self.types]
        attends[-1] = True  # the middle block
        fits = all(
            c % heads == 0
            for c, heads, used in zip(channels, self.heads, attends, strict=True)
            if used
        )
        require(
            fits,
            "attention_head_dim",
            f"numbers of heads that divide block_out_channels {channels}",
        )

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
        """From the reference's config.json; null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: the file is of another class, asks for what Stable Diffusion 1.x and 2.x do not have, or its
                sizes do not fit together.
        """
        for name, supported in _FIXED.items():
            if config.get(name, supported) != supported:
                raise UserError(f"unet config: {name} is {config[name]!r}, expected {supported!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {
            name: value for name, value in config.items() if name in known and value is not None
        }
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in kept.items()
            }
        )

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
        """The shipped model of 64-pixel images: 16×16 latents, `width` channels, a multiple of 16; attention at 8×8."""
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

    `dtype` is the compute dtype; parameters are float32, and so are the statistics of norms and softmaxes. A fresh
    model predicts zero.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        channels, heads, layers = config.block_out_channels, config.heads, config.layers_per_block
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
        downs, ups, last = [], [], len(channels) - 1
        for i, (down, up) in enumerate(config.types):
            above, below = channels[max(i - 1, 0)], channels[min(i + 1, last)]
            at_down = {
                "heads": heads[i] if down == _DOWN_ATTENTION else None,
                "downsample": i < last,
            }
            at_up = {"heads": heads[i] if up == _UP_ATTENTION else None, "upsample": i > 0}
            downs.append(DownBlock2D(parts, above, channels[i], layers=layers, **at_down))
            ups.append(UpBlock2D(parts, below, channels[i], skip=above, layers=layers + 1, **at_up))
        self.down_blocks, self.up_blocks = nnx.List(downs), nnx.List(reversed(ups))
        self.mid_block = UNetMidBlock2DCrossAttn(parts, channels[-1], heads=heads[-1])
        self.conv_norm_out = parts.group_norm(channels[0])
        self.conv_out = parts.conv(
            channels[0], config.out_channels, kernel_init=nnx.initializers.zeros
        )
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
            text_mask: bool [b, t], True where to attend; None attends to everything, as the public models do.
            control: edits the weights of every cross-attention, for example those of prompt-to-prompt
                (arXiv 2208.01626, §3). Takes them as float32 [b, heads, n, t], softmaxed, with n the positions row by
                row, and the module's dotted path, such as `mid_block.attentions.0.transformer_blocks.0.attn2`;
                returns weights of the same shape.
            remat: whether the backward pass computes the activations of each block anew; else it keeps them.

        Returns:
            float32 [b, h, w, out_channels]
        """
        mask = None if text_mask is None else text_mask[:, None, None]  # [b, 1, 1, t]
        context = Text(text, mask, control)
        if self.config.center_input_sample:
            latents = 2 * latents - 1
        time = nnx.silu(
            self.time_embedding(self._sinusoids(timesteps))
        )  # [b, e]; every use of it takes the SiLU
        run = recomputed if remat else lambda block: block
        skips = [self.conv_in(latents)]
        for block in self.down_blocks:
            skips += run(block)(skips[-1], time, context)
        x = run(self.mid_block)(skips[-1], time, context)
        for block in self.up_blocks:
            x = run(block)(x, skips, time, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def _sinusoids(self, timesteps: jax.Array) -> jax.Array:
        """[b] → float32 [b, c]: sines and cosines at c/2 frequencies falling from 1 (arXiv 1706.03762, §3.5)."""
        half = self.config.block_out_channels[0] // 2
        # NumPy's float32 as the reference's: an ulp of the first frequencies is a visible angle at time 999
        exponents = (
            -math.log(10_000) * np.arange(half, dtype=np.float32) / (half - self.config.freq_shift)
        )
        angles = timesteps.astype(jnp.float32)[:, None] * np.exp(exponents)
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.config.flip_sin_to_cos else waves, axis=-1)


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
