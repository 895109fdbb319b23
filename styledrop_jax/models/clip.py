"""CLIP: the text tower, the vision tower, and both with the logit scale.

Attribute paths, configs and files follow transformers' `CLIPTextModel`,
`CLIPTextModelWithProjection`, `CLIPVisionModelWithProjection` and `CLIPModel`. Two text towers side
by side are Stable Diffusion XL's.

Sources: Radford et al. 2021, arXiv:2103.00020; XL: Podell et al. 2023, arXiv:2307.01952.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.models.attention import attention
from styledrop_jax.models.clip_config import ClipConfig, PairConfig, TextConfig, VisionConfig
from styledrop_jax.models.grid import FoldingConv
from styledrop_jax.models.layers import Embed, LayerNorm, Linear, gelu
from styledrop_jax.models.rules import COMMON, Rule, Rules

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_normal = nnx.initializers.normal


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


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
        d = config.hidden_size
        inner = config.intermediate_size
        out = _normal(d**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = Linear(d, inner, kernel_init=_normal((2 * d) ** -0.5), dtype=dtype, rngs=rngs)
        self.fc2 = Linear(inner, d, kernel_init=out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.fc1(x)
        return self.fc2(_quick_gelu(hidden) if self.quick else gelu(hidden))


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
        self.layers = nnx.List([])
        for _ in range(config.num_hidden_layers):
            self.layers.append(_EncoderLayer(config, rngs=rngs, dtype=dtype))

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """[b, n, d] → the input and the output of every layer."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask=mask))
        return tuple(states)


class _TextEmbeddings(nnx.Module):
    """The sum of token and position embeddings, with a slot for an adapter.

    If it is set, `adapter(ids, x)` maps ids [b, t] and their rows of the table [b, t, d] to the
    rows to use.
    """

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


def _projection(config: TextConfig | VisionConfig, *, rngs: nnx.Rngs, dtype: Any) -> Linear:
    d = config.hidden_size
    init = {"kernel_init": _normal(d**-0.5), "dtype": dtype, "rngs": rngs}
    return Linear(d, config.projection_dim, use_bias=False, **init)


class TextOutput(NamedTuple):
    """What the text tower gives.

    Attributes:
        hidden_states: the input of the first layer and the output of each, without the final norm,
            [b, t, d] each. aMUSEd is conditioned on `hidden_states[-2]`.
        last_hidden_state: [b, t, d], with the final norm. Stable Diffusion is conditioned on it.
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
            self.text_projection = _projection(config, rngs=rngs, dtype=dtype)
        else:
            self.text_projection = nnx.data(None)

    def __call__(self, ids: jax.Array) -> TextOutput:
        """Encodes token ids, int [b, t], t at most `max_position_embeddings`.

        Padding is not masked, as in the pipelines that this tower serves. The tower is causal, so
        what stands before the padding does not see it, and shorter padding gives the same pooled
        features.

        Raises:
            ValueError: there are more tokens.
        """
        t = ids.shape[1]
        most = self.config.max_position_embeddings
        if t > most:
            raise ValueError(f"{t} tokens, expected at most max_position_embeddings {most}")
        causal = jnp.tril(jnp.ones((t, t), bool))
        states = self.text_model.encoder(self.text_model.embeddings(ids), mask=causal)
        last = self.text_model.final_layer_norm(states[-1])
        # The highest id marks the end of the text. An adapter's tokens, with ids above the
        # vocabulary's, must not take its place.
        known = jnp.where(ids < self.config.vocab_size, ids, 0)
        ends = known if self.config.eos_token_id == 2 else ids == self.config.eos_token_id
        pooled = jnp.take_along_axis(last, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
        embeds = None if self.text_projection is None else self.text_projection(pooled)
        return TextOutput(states, last, pooled, embeds)


class TextPair(nnx.Module):
    """Two text towers that read the same texts, with one vocabulary (arXiv 2307.01952, §2.1).

    Attributes:
        first: its features stand first; its projection, if any, is not used.
        second: has a projection.
    """

    def __init__(self, first: ClipText, second: ClipText, config: PairConfig):
        self.config = config
        self.first = first
        self.second = second

    def __call__(
        self,
        ids: jax.Array,
        change: Callable[[jax.Array], jax.Array] = jnp.asarray,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes token ids, int [b, t], padded with the first tower's padding.

        Args:
            ids: the tokens.
            change: what is done to the hidden states [b, t, d] of each tower.

        Returns:
            The last hidden states but one of both, side by side [b, t, d + d'], and the second's
            pooled and projected features [b, p].
        """
        first = self.first(ids)
        second = self.second(jnp.where(self._after(ids), self.config.second_padding, ids))
        assert second.embeds is not None, "the second text tower has a projection"
        states = [change(first.hidden_states[-2]), change(second.hidden_states[-2])]
        states = jnp.concatenate(states, axis=-1)
        return states, second.embeds

    def zeroed(
        self, ids: jax.Array, states: jax.Array, pooled: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The features of texts [b, t, c] and [b, p], with zeros, if the model sees an empty text
        so, for those whose ids [b, n, t] have no words in any of n chunks.
        """
        if not self.config.zero_empty:
            return states, pooled
        # After the token that begins every text.
        empty = jnp.all(ids[:, :, 1] == self.config.end, axis=1)
        return jnp.where(empty[:, None, None], 0, states), jnp.where(empty[:, None], 0, pooled)

    def _after(self, ids: jax.Array) -> jax.Array:
        """bool [b, t], the padding: what is like the padding up to the end, but for the token that
        ends the text, which may be the same."""
        padding = self.config.first_padding
        rest = jnp.flip(jnp.cumprod(jnp.flip(ids == padding, 1), axis=1), 1).astype(bool)
        if padding != self.config.end:
            return rest
        before = jnp.pad(rest[:, :-1], ((0, 0), (1, 0)))
        return rest & before


def towers(text: nnx.Module) -> dict[str, ClipText]:
    """The text towers of a pipeline, by their dotted paths in it; "" is a tower on its own."""
    if isinstance(text, TextPair):
        return {"first": text.first, "second": text.second}
    assert isinstance(text, ClipText)
    return {"": text}


class _VisionEmbeddings(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any):
        d = config.hidden_size
        patch = config.patch_size
        positions = (config.image_size // patch) ** 2 + 1
        init = _normal(0.02)
        shared = {"dtype": dtype, "rngs": rngs}
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
    """Images [b, h, w, 3] in [0, 1] → zero mean and unit deviation over CLIP's training images.

    The numbers are those of the preprocessor_config.json of all CLIP models.
    """
    return (images - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)


class ClipVision(nnx.Module):
    """The vision tower with its projection."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.vision_model = _VisionTransformer(config, rngs=rngs, dtype=dtype)
        self.visual_projection = _projection(config, rngs=rngs, dtype=dtype)

    def __call__(self, images: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Images → their features [b, p], not normalised.

        Args:
            images: [b, h, w, 3] in [0, 1], h = w = `image_size`.
            kept: int [b, k], which of each image's patches are seen, counted row by row; None is
                all.

        Raises:
            ValueError: the images have another shape.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images of shape {images.shape}, expected [b, {size}, {size}, 3]")
        x = self.vision_model.embeddings(normalize(images))  # [b, 1 + patches, d]
        if kept is not None:
            patches = jnp.take_along_axis(x[:, 1:], kept[..., None], axis=1)
            x = jnp.concatenate([x[:, :1], patches], axis=1)
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
        """The scaled cosines of images and texts, float32 [b, n].

        Args:
            ids: [n, t].
            images: [b, h, w, 3] in [0, 1].
            kept: see `ClipVision`.
        """
        texts = self.text_features(ids)
        return jnp.exp(self.logit_scale[...]) * self.image_features(images, kept) @ texts.T

    def text_features(self, ids: jax.Array) -> jax.Array:
        """Token ids [n, t] → features [n, p] of length one, float32."""
        embeds = self.text(ids).embeds
        assert embeds is not None, "the text tower of a whole CLIP has a projection"
        return _unit(embeds)

    def image_features(self, images: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Images [b, h, w, 3] in [0, 1] → features [b, p] of length one, float32."""
        return _unit(self.vision(images, kept))


def _unit(x: jax.Array) -> jax.Array:
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
    # transformers 5 writes a bare `CLIPTextModel` without the prefix; every version reads it with
    # the prefix.
    renames=((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
    ignored=r"(?:.+\.)?embeddings\.position_ids",
)
"""For `ClipText` (with and without projection), `ClipVision` and `Clip`."""
