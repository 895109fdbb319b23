"""The config of aMUSEd's transformer, as in the config.json of diffusers' `UVit2DModel`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from styledrop_jax.models.config_json import known_fields, require, require_value

_SOURCE = "transformer config"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of the reference's config.json, with the reference's names and defaults.

    Attributes:
        hidden_size: width of the transformer layers.
        use_bias: whether linear layers, convolutions and layer norms carry a bias.
        cond_embed_dim: width of the pooled text embedding.
        micro_cond_encode_dim: width of the sinusoid of one micro-condition.
        micro_cond_embed_dim: width of the sinusoids of all micro-conditions together.
        encoder_hidden_size: width of the text features.
        vocab_size: rows of the token embedding: codebook entries, padding, and the mask token last.
        codebook_size: number of logits; the mask token is never predicted.
        in_channels: width of the token embedding and of the output layer's input.
        block_out_channels: width of the convolutional blocks around the transformer.
        num_res_blocks: residual and attention blocks on each side of the transformer.
        downsample, upsample: halve the token grid before the transformer, and double it after. Both
            or neither.
        block_num_heads: heads of the attention blocks.
        num_hidden_layers, num_attention_heads: of the transformer.
        intermediate_size: width of the transformer's gated MLP.
        layer_norm_eps: of every norm but the attention blocks'.
        ln_elementwise_affine: whether those norms learn a scale.
        sample_size: side of the token grid the model was trained at; the module takes any grid.
        positional_masks: a masked token is embedded as one of `sample_size`² that follow the
            codebook, by its place. The reference ignores the field: it takes such tokens, but its
            own pipeline knows only one mask token.
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
    sample_size: int = 64
    positional_masks: bool = False

    def __post_init__(self) -> None:
        def check(fits: bool, field: str, expected: str) -> None:
            require(fits, _SOURCE, self, field, expected)

        for field, divisor in (
            ("hidden_size", "num_attention_heads"),
            ("block_out_channels", "block_num_heads"),
            ("micro_cond_embed_dim", "micro_cond_encode_dim"),
        ):
            size = getattr(self, divisor)
            check(getattr(self, field) % size == 0, field, f"a multiple of {divisor} {size}")
        check(self.micro_cond_encode_dim % 2 == 0, "micro_cond_encode_dim", "an even number")
        both = self.upsample == self.downsample
        check(both, "upsample", f"the value of downsample, {self.downsample}")
        least = self.codebook_size + 1 + self.positional_masks * self.sample_size**2
        expected = f"at least {least}, the codebook and the mask tokens"
        check(self.vocab_size >= least, "vocab_size", expected)

    @property
    def mask_token_id(self) -> int:
        """The token that stands for "not decided yet": the last row of the embedding."""
        return self.vocab_size - 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's config.json.

        Null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: the file is of another class, asks for dropout, or its sizes do not fit
                together.
        """
        require_value(_SOURCE, config, "_class_name", "UVit2DModel")
        for name in ("hidden_dropout", "attention_dropout"):
            require_value(_SOURCE, config, name, 0)
        return cls(**known_fields(cls, config, source=_SOURCE))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that the reference library loads."""
        fields = dataclasses.asdict(self)
        if not self.positional_masks:
            del fields["positional_masks"]  # the reference does not have it
        return {"_class_name": "UVit2DModel", **fields}

    @classmethod
    def amused_256(cls) -> Self:
        """`amused/amused-256`: 16×16 tokens, 603M parameters."""
        return cls(sample_size=16)

    @classmethod
    def amused_512(cls) -> Self:
        """`amused/amused-512`: 32×32 tokens, 16×16 inside, 608M parameters."""
        return cls(downsample=True, upsample=True, sample_size=32)

    @classmethod
    def emoji(cls, *, width: int = 192, layers: int = 6, text_width: int = 192) -> Self:
        """The shipped model: 16×16 tokens of 512 codes, 8×8 inside, heads of 32 channels."""
        blocks = max(1, width // 48)
        return cls(
            hidden_size=width,
            cond_embed_dim=text_width,
            micro_cond_encode_dim=16,
            micro_cond_embed_dim=80,
            encoder_hidden_size=text_width,
            vocab_size=784,
            codebook_size=512,
            in_channels=32 * blocks,
            block_out_channels=32 * blocks,
            num_res_blocks=2,
            downsample=True,
            upsample=True,
            block_num_heads=blocks,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            intermediate_size=8 * width // 3,
            sample_size=16,
            positional_masks=True,
        )
