"""CLIP: the text tower, the vision tower, and both with the logit scale (Radford et al. 2021, arXiv:2103.00020).

Attribute paths, configs and files follow transformers' `CLIPTextModel`, `CLIPTextModelWithProjection`,
`CLIPVisionModelWithProjection` and `CLIPModel`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.models.grid import FoldingConv
from styledrop_jax.models.layers import Embed, LayerNorm, Linear, attention, gelu
from styledrop_jax.models.rules import COMMON, Rule, Rules

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_normal = nnx.initializers.normal


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": gelu}


def _check(config: "TextConfig | VisionConfig") -> None:
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"CLIP config: hidden_act is {config.hidden_act!r}, expected one of {', '.join(_ACTIVATIONS)}"
        )
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"CLIP config: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )


def _known_fields(cls: type, values: Mapping[str, Any], *, model_type: str) -> dict[str, Any]:
    """The entries of a config.json that `cls` has fields for; null and missing ones keep the defaults."""
    if values.get("model_type", model_type) != model_type:
        raise UserError(
            f"CLIP config: model_type is {values['model_type']!r}, expected {model_type!r}"
        )
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names and value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower; the fields of transformers' `CLIPTextConfig` with its defaults, and `projection`.

    Attributes:
        eos_token_id: where the pooled features are read: at the first such token, except that 2, which old configs
            hold in error, means at the highest id of the vocabulary.
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
        """Reads the config.json of a `CLIPTextModel` or `CLIPTextModelWithProjection`; UserError if unsupported."""
        known = _known_fields(cls, values, model_type="clip_text_model")
        return cls(
            **known | {"projection": "CLIPTextModel" not in (values.get("architectures") or ())}
        )

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        values = dataclasses.asdict(self)
        architecture = (
            "CLIPTextModelWithProjection" if values.pop("projection") else "CLIPTextModel"
        )
        return {"architectures": [architecture], "model_type": "clip_text_model", **values}

    @classmethod
    def vit_l_14(cls, *, projection: bool = True) -> Self:
        """The text tower of openai/clip-vit-large-patch14: Stable Diffusion 1.x's, and aMUSEd's with `projection`."""
        return cls(
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_attention_heads=12,
            eos_token_id=2,
            bos_token_id=0,
            projection=projection,
        )


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
        if not (isinstance(self.image_size, int) and isinstance(self.patch_size, int)):
            raise UserError(
                f"CLIP config: image_size {self.image_size} is not one number, expected square images"
            )
        if self.image_size % self.patch_size:
            raise UserError(
                f"CLIP config: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a `CLIPVisionModelWithProjection`; UserError if unsupported."""
        if values.get("num_channels", 3) != 3:
            raise UserError(f"CLIP config: num_channels is {values['num_channels']}, expected 3")
        return cls(**_known_fields(cls, values, model_type="clip_vision_model"))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        model = {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
        }
        return model | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers. `projection_dim` holds for both, whatever the towers' own say."""

    text: TextConfig
    vision: VisionConfig
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    def __post_init__(self):
        text = dataclasses.replace(self.text, projection_dim=self.projection_dim, projection=True)
        object.__setattr__(self, "text", text)
        object.__setattr__(
            self, "vision", dataclasses.replace(self.vision, projection_dim=self.projection_dim)
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a `CLIPModel`; UserError if unsupported."""
        known = _known_fields(cls, values, model_type="clip")

        def tower(name: str) -> Mapping[str, Any]:
            # transformers lets the old `*_config_dict`, filled up with defaults, win over `*_config`.
            old = values.get(f"{name}_config_dict")
            return (values.get(f"{name}_config") or {}) if old is None else old

        text, vision = TextConfig.from_dict(tower("text")), VisionConfig.from_dict(tower("vision"))
        return cls(**known | {"text": text, "vision": vision})

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
        """The shipped model: 64-pixel images in 8-pixel patches, 32 tokens; the last two ids are BOS and EOS."""
        size = {
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


class _Attention(nnx.Module):
    def __init__(self, config: TextConfig | VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        d = config.hidden_size
        inner = _normal(d**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
        self.heads = config.num_attention_heads
        self.q_proj = Linear(d, d, kernel_init=inner, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(d, d, kernel_init=inner, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(d, d, kernel_init=inner, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(d, d, kernel_init=_normal(d**-0.5), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None) -> jax.Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attention(q, k, v, heads=self.heads, mask=mask))


class _Mlp(nnx.Module):
    def __init__(self, config: TextConfig | VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        d, inner = config.hidden_size, config.intermediate_size
        out = _normal(d**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
        self.activation = config.hidden_act
        self.fc1 = Linear(d, inner, kernel_init=_normal((2 * d) ** -0.5), dtype=dtype, rngs=rngs)
        self.fc2 = Linear(inner, d, kernel_init=out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


class _EncoderLayer(nnx.Module):
    def __init__(self, config: TextConfig | VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        norm = {"epsilon": config.layer_norm_eps, "dtype": dtype, "rngs": rngs}
        self.layer_norm1 = LayerNorm(config.hidden_size, **norm)
        self.self_attn = _Attention(config, rngs=rngs, dtype=dtype)
        self.layer_norm2 = LayerNorm(config.hidden_size, **norm)
        self.mlp = _Mlp(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), mask=mask)
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nnx.Module):
    def __init__(self, config: TextConfig | VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List(_EncoderLayer(config, rngs=rngs, dtype=dtype) for _ in layers)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """[b, n, d] → the input and the output of every layer."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask=mask))
        return tuple(states)


class _TextEmbeddings(nnx.Module):
    """With a slot: a set `adapter(ids, x)` maps ids [b, t] and their rows of the table [b, t, d] to the rows to use."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Any):
        init = {"embedding_init": _normal(0.02), "dtype": dtype, "rngs": rngs}
        self.token_embedding = Embed(config.vocab_size, config.hidden_size, **init)
        self.position_embedding = Embed(config.max_position_embeddings, config.hidden_size, **init)
        self.adapter = nnx.data(None)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.token_embedding(ids)
        x = x if self.adapter is None else self.adapter(ids, x)
        return x + self.position_embedding(jnp.arange(ids.shape[1]))


class _TextTransformer(nnx.Module):
    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Any):
        self.embeddings = _TextEmbeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = _Encoder(config, rngs=rngs, dtype=dtype)
        self.final_layer_norm = LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )


class TextOutput(NamedTuple):
    """What the text tower gives.

    Attributes:
        hidden_states: the input of the first layer and the output of each, without the final norm, [b, t, d] each:
            `hidden_states[-2]` is what aMUSEd conditions on.
        last_hidden_state: [b, t, d], with the final norm: what Stable Diffusion conditions on.
        pooled: [b, d], the last hidden state at the end of the text.
        embeds: [b, p], pooled and projected; None for a tower without projection.
    """

    hidden_states: tuple[jax.Array, ...]
    last_hidden_state: jax.Array
    pooled: jax.Array
    embeds: jax.Array | None


class ClipText(nnx.Module):
    """The causal text tower. Under `jax.jit` only the outputs that are used are computed."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.text_model = _TextTransformer(config, rngs=rngs, dtype=dtype)
        if config.projection:
            d, p = config.hidden_size, config.projection_dim
            self.text_projection = Linear(
                d, p, use_bias=False, kernel_init=_normal(d**-0.5), dtype=dtype, rngs=rngs
            )
        else:
            self.text_projection = nnx.data(None)

    def __call__(self, ids: jax.Array) -> TextOutput:
        """Encodes token ids, int [b, t], t at most `max_position_embeddings`.

        Padding is not masked, as in the pipelines this tower serves; being causal, what stands before it does not
        see it, so shorter padding gives the same pooled features.
        """
        t = ids.shape[1]
        if t > self.config.max_position_embeddings:
            raise ValueError(
                f"{t} tokens, expected at most max_position_embeddings {self.config.max_position_embeddings}"
            )
        causal = jnp.tril(jnp.ones((t, t), bool))
        states = self.text_model.encoder(self.text_model.embeddings(ids), mask=causal)
        last = self.text_model.final_layer_norm(states[-1])
        # an adapter's tokens have ids above the vocabulary's, where the highest must stay the end of the text
        known = jnp.where(ids < self.config.vocab_size, ids, 0)
        ends = known if self.config.eos_token_id == 2 else ids == self.config.eos_token_id
        pooled = jnp.take_along_axis(last, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
        embeds = None if self.text_projection is None else self.text_projection(pooled)
        return TextOutput(states, last, pooled, embeds)


class _VisionEmbeddings(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        d, patch = config.hidden_size, config.patch_size
        positions = (config.image_size // patch) ** 2 + 1
        init, shared = _normal(0.02), {"dtype": dtype, "rngs": rngs}
        self.class_embedding = nnx.Param(_normal(d**-0.5)(rngs.params(), (d,)))
        self.patch_embedding = FoldingConv(3, d, patch, use_bias=False, kernel_init=init, **shared)
        self.position_embedding = Embed(positions, d, embedding_init=init, **shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch_embedding(x)
        b, h, w, d = x.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (b, 1, d))
        x = jnp.concatenate([first, x.reshape(b, h * w, d)], axis=1)  # [b, 1 + h w, d]
        return x + self.position_embedding(jnp.arange(x.shape[1]))


class _VisionTransformer(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        norm = {"epsilon": config.layer_norm_eps, "dtype": dtype, "rngs": rngs}
        self.embeddings = _VisionEmbeddings(config, rngs=rngs, dtype=dtype)
        self.pre_layrnorm = LayerNorm(config.hidden_size, **norm)  # the reference's spelling
        self.encoder = _Encoder(config, rngs=rngs, dtype=dtype)
        self.post_layernorm = LayerNorm(config.hidden_size, **norm)


def normalize(images: jax.Array) -> jax.Array:
    """[0, 1] images [b, h, w, 3] → zero mean, unit deviation, by CLIP's preprocessor_config.json (all CLIP models)."""
    return (images - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)


class ClipVision(nnx.Module):
    """The vision tower with its projection."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.vision_model = _VisionTransformer(config, rngs=rngs, dtype=dtype)
        d, p = config.hidden_size, config.projection_dim
        self.visual_projection = Linear(
            d, p, use_bias=False, kernel_init=_normal(d**-0.5), dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """[b, h, w, 3] in [0, 1], h = w = `image_size` → image features [b, p], not normalised.

        Of each image's patches, in reading order, `kept` [b, k] are seen; without it all.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images of shape {images.shape}, expected [b, {size}, {size}, 3]")
        x = self.vision_model.embeddings(normalize(images))  # [b, 1 + patches, d]
        if kept is not None:
            x = jnp.concatenate(
                [x[:, :1], jnp.take_along_axis(x[:, 1:], kept[..., None], axis=1)], axis=1
            )
        x = self.vision_model.pre_layrnorm(x)
        x = self.vision_model.encoder(x)[-1]
        return self.visual_projection(self.vision_model.post_layernorm(x[:, 0]))


class Clip(nnx.Module):
    """Both towers and the logit scale."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.text = ClipText(config.text, rngs=rngs, dtype=dtype)
        self.vision = ClipVision(config.vision, rngs=rngs, dtype=dtype)
        self.logit_scale = nnx.Param(jnp.array(config.logit_scale_init_value))

    def __call__(
        self, ids: jax.Array, images: jax.Array, kept: jax.Array | None = None
    ) -> jax.Array:
        """ids [n, t], images [b, h, w, 3] in [0, 1] → scaled cosines [b, n], float32; `kept` as in `ClipVision`."""
        texts, pictures = unit(self.text(ids).embeds), unit(self.vision(images, kept))
        return jnp.exp(self.logit_scale[...]) * pictures @ texts.T


def unit(x: jax.Array) -> jax.Array:
    """Features [..., p] scaled to length one, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True))


_TOWER = r"(?:text\.|vision\.)?"
RULES = Rules(
    rules=(
        Rule("logit_scale", "logit_scale"),
        Rule(rf"{_TOWER}(.+\.class_embedding)", r"\1"),
        Rule(rf"{_TOWER}(.+\.patch_embedding)\.kernel", r"\1.weight", "conv"),
        *(dataclasses.replace(rule, path=_TOWER + rule.path) for rule in COMMON),
    ),
    # transformers 5 writes a bare `CLIPTextModel` without the prefix; it and every older version read it with.
    renames=((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
    ignored=r"(?:.+\.)?embeddings\.position_ids",
)
"""For `ClipText` (with and without projection), `ClipVision` and `Clip`."""
