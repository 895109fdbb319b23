"""The configs of CLIP's towers and of both together, as in transformers' config.json files."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.config_json import known_fields, require, require_value

_SOURCE = "CLIP config"
_ACTIVATIONS = ("quick_gelu", "gelu")


def _check(config: "TextConfig | VisionConfig") -> None:
    known = config.hidden_act in _ACTIVATIONS
    require(known, _SOURCE, config, "hidden_act", f"one of {', '.join(_ACTIVATIONS)}")
    heads = config.num_attention_heads
    fits = config.hidden_size % heads == 0
    require(fits, _SOURCE, config, "hidden_size", f"a multiple of num_attention_heads {heads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: the fields of transformers' `CLIPTextConfig` with its defaults.

    Attributes:
        eos_token_id: the pooled features are read at the first such token. But 2, which old configs
            hold in error, stands for the highest id of the vocabulary.
        projection: whether the pooled features are projected to `projection_dim`.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 1
    projection: bool = True

    def __post_init__(self):
        _check(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a `CLIPTextModel` or `CLIPTextModelWithProjection`.

        Raises:
            UserError: it is of another kind of model, or asks for what is not supported.
        """
        require_value(_SOURCE, values, "model_type", "clip_text_model")
        known = known_fields(cls, values, source=_SOURCE)
        names = values.get("architectures") or []
        if not isinstance(names, list):
            raise UserError(f"{_SOURCE}: architectures is {shown(names)}, expected a list of names")
        known["projection"] = "CLIPTextModel" not in names
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        values = dataclasses.asdict(self)
        del values["projection"]
        name = "CLIPTextModelWithProjection" if self.projection else "CLIPTextModel"
        return {"architectures": [name], "model_type": "clip_text_model", **values}

    @classmethod
    def vit_l_14(cls, *, projection: bool = True) -> Self:
        """The text tower of openai/clip-vit-large-patch14.

        Stable Diffusion 1.x has it without `projection`, aMUSEd with it.
        """
        return cls(
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_attention_heads=12,
            eos_token_id=2,
            bos_token_id=0,
            projection=projection,
        )

    @classmethod
    def open_clip_big_g(cls) -> Self:
        """OpenCLIP's ViT-bigG-14, the second text tower of Stable Diffusion XL."""
        return cls(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1280,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            eos_token_id=2,
            bos_token_id=0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How the two text towers of Stable Diffusion XL read one text.

    Attributes:
        end: id of the token that ends a text.
        first_padding, second_padding: ids of the tokens after it, for each tower.
        zero_empty: an empty text is zeros, which the model was trained with; the reference's
            `force_zeros_for_empty_prompt`.
    """

    end: int
    first_padding: int
    second_padding: int
    zero_empty: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower; the fields of transformers' `CLIPVisionConfig` with its defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        _check(self)
        for field in ("image_size", "patch_size"):
            single = isinstance(getattr(self, field), int)
            require(single, _SOURCE, self, field, "one number: square images")
        fits = self.image_size % self.patch_size == 0
        require(fits, _SOURCE, self, "image_size", f"a multiple of patch_size {self.patch_size}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a `CLIPVisionModelWithProjection`.

        Raises:
            UserError: it is of another kind of model, or asks for what is not supported.
        """
        require_value(_SOURCE, values, "num_channels", 3)
        require_value(_SOURCE, values, "model_type", "clip_vision_model")
        return cls(**known_fields(cls, values, source=_SOURCE))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **dataclasses.asdict(self),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers. `projection_dim` holds for both, whatever the towers' own say."""

    text: TextConfig
    vision: VisionConfig
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    def __post_init__(self):
        text = dataclasses.replace(self.text, projection_dim=self.projection_dim, projection=True)
        vision = dataclasses.replace(self.vision, projection_dim=self.projection_dim)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "vision", vision)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a `CLIPModel`.

        Raises:
            UserError: it is of another kind of model, or asks for what is not supported.
        """
        require_value(_SOURCE, values, "model_type", "clip")

        def tower(name: str) -> Mapping[str, Any]:
            # In transformers the old `*_config_dict`, with its defaults, wins over `*_config`.
            old = values.get(f"{name}_config_dict")
            found = (values.get(f"{name}_config") or {}) if old is None else old
            if not isinstance(found, Mapping):
                raise UserError(f"{_SOURCE}: {name}_config is {shown(found)}, expected an object")
            return found

        own = {key: values.get(key) for key in ("projection_dim", "logit_scale_init_value")}
        known = known_fields(cls, own, source=_SOURCE)
        known["text"] = TextConfig.from_dict(tower("text"))
        known["vision"] = VisionConfig.from_dict(tower("vision"))
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
        }

    @classmethod
    def vit_l_14(cls) -> Self:
        """openai/clip-vit-large-patch14."""
        vision = VisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
        )
        return cls(text=TextConfig.vit_l_14(), vision=vision, projection_dim=768)

    @classmethod
    def emoji64(
        cls,
        *,
        vocab_size: int = 2048,
        width: int = 128,
        text_layers: int = 2,
        vision_layers: int = 6,
    ) -> Self:
        """The shipped model: 64-pixel images in 8-pixel patches, 32 tokens.

        The last two ids of the vocabulary are BOS and EOS.
        """
        size: dict[str, Any] = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": max(1, width // 32),
        }
        text = TextConfig(
            vocab_size=vocab_size,
            num_hidden_layers=text_layers,
            max_position_embeddings=32,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
            **size,
        )
        vision = VisionConfig(num_hidden_layers=vision_layers, image_size=64, patch_size=8, **size)
        return cls(text=text, vision=vision, projection_dim=width)
