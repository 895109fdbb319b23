"""The config of Stable Diffusion's U-Net, as in diffusers' `unet/config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from styledrop_jax.models.config_json import known_fields, require, require_value

_SOURCE = "unet config"
_DOWN = "DownBlock2D"
DOWN_ATTENTION = "CrossAttnDownBlock2D"
_UP = "UpBlock2D"
UP_ATTENTION = "CrossAttnUpBlock2D"
_SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "norm_num_groups",
)
_TEXT_TIME = "text_time"
_SIZES_OF_XL = 6  # numbers beside the text: `Added.sizes`
_SIZES_OF_REFINER = 5  # the last two are an aesthetic score in their place
# Options of the reference that no Stable Diffusion uses, each with the one value that is supported.
_FIXED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0,
    "reverse_transformer_layers_per_block": None,
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
        transformer_layers_per_block: of a transformer, at all resolutions or at each of
            `block_out_channels`.
        use_linear_projection: files hold the transformers' projections as linear layers, not as 1×1
            convolutions.
        upcast_attention: tells the reference to take the softmax in float32; it always is here.
        addition_embed_type: "text_time" adds an embedding of `Added` to the time's, as XL does;
            None adds nothing.
        addition_time_embed_dim: width of the sinusoids of each of its numbers.
        projection_class_embeddings_input_dim: width of the pooled text and all those sinusoids.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (DOWN_ATTENTION, DOWN_ATTENTION, DOWN_ATTENTION, _DOWN)
    up_block_types: tuple[str, ...] = (_UP, UP_ATTENTION, UP_ATTENTION, UP_ATTENTION)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    upcast_attention: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        for field in _SIZES:
            self._check(_positive(getattr(self, field)), field, "one positive number")
        self._check_channels()
        self._check_types()
        self._check_heads()
        self._check_depths()
        self._check_added()

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
        down = (_DOWN, DOWN_ATTENTION)
        up = (_UP, UP_ATTENTION)
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
            if down == DOWN_ATTENTION or up == UP_ATTENTION or i == last:
                self._check(channels[i] % heads[i] == 0, field, expected)

    def _check_depths(self) -> None:
        count = len(self.block_out_channels)
        expected = f"one number of layers or {count}, as many as block_out_channels"
        fits = len(self.depths) == count and _positive(*self.depths)
        self._check(fits, "transformer_layers_per_block", expected)

    def _check_added(self) -> None:
        if self.addition_embed_type is None:
            return
        widths = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim)
        fits = self.addition_embed_type == _TEXT_TIME and _positive(*widths)
        expected = (
            f"null, or {_TEXT_TIME!r} with an addition_time_embed_dim and a "
            "projection_class_embeddings_input_dim"
        )
        self._check(fits, "addition_embed_type", expected)
        field = "projection_class_embeddings_input_dim"
        self._check(self.pooled_dim > 0, field, f"{_SIZES_OF_XL} sinusoids and a pooled text")
        sinusoids = _SIZES_OF_REFINER * (self.addition_time_embed_dim or 0)
        # The refiner's text tower gives both the features and the pooled text.
        refines = self.projection_class_embeddings_input_dim == self.cross_attention_dim + sinusoids
        self._check(not refines, field, "that of SDXL's base model: this is SDXL's refiner")

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads at each of `block_out_channels`."""
        return self._each(self.attention_head_dim)

    @property
    def depths(self) -> tuple[int, ...]:
        """The number of a transformer's layers at each of `block_out_channels`."""
        return self._each(self.transformer_layers_per_block)

    def _each(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled text that is added to the time; 0 if nothing is."""
        whole = self.projection_class_embeddings_input_dim or 0
        return whole - _SIZES_OF_XL * (self.addition_time_embed_dim or 0)

    @property
    def types(self) -> list[tuple[str, str]]:
        """The down and the up block of each resolution, from the highest to the lowest."""
        return list(zip(self.down_block_types, reversed(self.up_block_types), strict=True))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's config.json.

        Null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: the file is of another class, asks for what Stable Diffusion does not have,
                or its sizes do not fit together.
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
    def sdxl(cls) -> Self:
        """Stable Diffusion XL 1.0, the base model: 1024-pixel images, 2.6B parameters."""
        return cls(
            sample_size=128,
            down_block_types=(_DOWN, DOWN_ATTENTION, DOWN_ATTENTION),
            up_block_types=(UP_ATTENTION, UP_ATTENTION, _UP),
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type=_TEXT_TIME,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )

    @classmethod
    def emoji(cls, *, width: int = 48, text_width: int = 192) -> Self:
        """The shipped model: 16×16 latents, with attention at 8×8.

        Args:
            width: channels at 16×16, a multiple of 16.
            text_width: of the text features.
        """
        return cls(
            sample_size=16,
            down_block_types=(_DOWN, DOWN_ATTENTION),
            up_block_types=(UP_ATTENTION, _UP),
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=text_width,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
        )
