"""The T5 encoder, v1.0 and v1.1.

Sources: Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202 for the gate.
Attribute paths, configs and files follow transformers' `T5EncoderModel`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.models.attention import attention
from styledrop_jax.models.config_json import known_fields, require, require_value
from styledrop_jax.models.layers import Embed, Linear, RMSNorm
from styledrop_jax.models.rules import COMMON, Rules

_SOURCE = "T5 config"
_normal = nnx.initializers.normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of transformers' `T5Config` that the encoder uses, with its defaults.

    Attributes:
        feed_forward_proj: "relu" (v1.0) or "gated-gelu" (v1.1, the tanh approximation of GELU).
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self):
        fits = self.feed_forward_proj in ("relu", "gated-gelu")
        require(fits, _SOURCE, self, "feed_forward_proj", "'relu' or 'gated-gelu'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the config.json of a T5, encoder alone or whole.

        Raises:
            UserError: it is of another kind of model, or asks for what is not supported.
        """
        require_value(_SOURCE, values, "model_type", "t5")
        return cls(**known_fields(cls, values, source=_SOURCE))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        return {"architectures": ["T5EncoderModel"], "model_type": "t5", **dataclasses.asdict(self)}

    @classmethod
    def t5_base(cls) -> Self:
        """google-t5/t5-base, v1.0."""
        return cls(d_model=768, d_ff=3072, num_layers=12, num_heads=12)

    @classmethod
    def t5_xxl(cls) -> Self:
        """google/t5-v1_1-xxl: what Muse and Imagen condition on."""
        return cls(
            d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
        )


def position_buckets(length: int, *, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every (query, key) pair of positions, int [length, length].

    Half of the buckets are for keys after the query. Of each half, half hold one distance each and
    the rest grow logarithmically up to `max_distance`.

    Source: arXiv:1910.10683 §2.1.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    away = np.abs(distance)
    half = buckets // 2
    exact = half // 2
    # In float32 like the reference: distances on a bucket's edge round as they did in training.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact))
    far = exact + (ratio * np.float32(half - exact)).astype(int)
    return (distance > 0) * half + np.where(away < exact, away, np.minimum(far, half - 1))


class _Attention(nnx.Module):
    def __init__(self, config: Config, *, has_bias: bool, rngs: nnx.Rngs, dtype: Any):
        d = config.d_model
        inner = config.num_heads * config.d_kv
        shared = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.config = config
        self.q = Linear(d, inner, kernel_init=_normal((d * config.d_kv) ** -0.5), **shared)
        self.k = Linear(d, inner, kernel_init=_normal(d**-0.5), **shared)
        self.v = Linear(d, inner, kernel_init=_normal(d**-0.5), **shared)
        self.o = Linear(inner, d, kernel_init=_normal(inner**-0.5), **shared)
        if has_bias:
            self.relative_attention_bias = Embed(
                config.relative_attention_num_buckets,
                config.num_heads,
                embedding_init=_normal(d**-0.5),
                rngs=rngs,
            )

    def position_bias(self, length: int) -> jax.Array:
        """[1, heads, length, length]; the first block's serves all."""
        buckets = position_buckets(
            length,
            buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        return self.relative_attention_bias(jnp.asarray(buckets)).transpose(2, 0, 1)[None]

    def __call__(self, x: jax.Array, *, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        # T5 does not scale its logits, `attention` does.
        q = self.q(x) * math.sqrt(self.config.d_kv)
        return self.o(
            attention(q, self.k(x), self.v(x), heads=self.config.num_heads, bias=bias, mask=mask)
        )


class _SelfAttentionLayer(nnx.Module):
    def __init__(self, config: Config, *, has_bias: bool, rngs: nnx.Rngs, dtype: Any):
        self.layer_norm = RMSNorm(
            config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs
        )
        self.SelfAttention = _Attention(config, has_bias=has_bias, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, *, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        return x + self.SelfAttention(self.layer_norm(x), bias=bias, mask=mask)


class _Dense(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any):
        d = config.d_model
        inner = config.d_ff
        shared = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.gated = config.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = Linear(d, inner, kernel_init=_normal(d**-0.5), **shared)
            self.wi_1 = Linear(d, inner, kernel_init=_normal(d**-0.5), **shared)
        else:
            self.wi = Linear(d, inner, kernel_init=_normal(d**-0.5), **shared)
        self.wo = Linear(inner, d, kernel_init=_normal(inner**-0.5), **shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gated:
            return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))
        return self.wo(jax.nn.relu(self.wi(x)))


class _DenseLayer(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any):
        self.layer_norm = RMSNorm(
            config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs
        )
        self.DenseReluDense = _Dense(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.DenseReluDense(self.layer_norm(x))


class _Block(nnx.Module):
    def __init__(self, config: Config, *, has_bias: bool, rngs: nnx.Rngs, dtype: Any):
        attend = _SelfAttentionLayer(config, has_bias=has_bias, rngs=rngs, dtype=dtype)
        dense = _DenseLayer(config, rngs=rngs, dtype=dtype)
        self.layer: nnx.List[Any] = nnx.List([attend, dense])

    def __call__(self, x: jax.Array, *, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        return self.layer[1](self.layer[0](x, bias=bias, mask=mask))


class _Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any):
        self.block = nnx.List([])
        for i in range(config.num_layers):
            self.block.append(_Block(config, has_bias=i == 0, rngs=rngs, dtype=dtype))
        self.final_layer_norm = RMSNorm(
            config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None) -> jax.Array:
        bias = self.block[0].layer[0].SelfAttention.position_bias(x.shape[1])
        for block in self.block:
            x = block(x, bias=bias, mask=mask)
        return self.final_layer_norm(x)


class T5Encoder(nnx.Module):
    """The encoder with its token embedding."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.shared = Embed(
            config.vocab_size, config.d_model, embedding_init=_normal(1.0), dtype=dtype, rngs=rngs
        )
        self.encoder = _Encoder(config, rngs=rngs, dtype=dtype)

    def __call__(self, ids: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Encodes token ids.

        Args:
            ids: int [b, t], any t.
            mask: bool [b, t], False at padding, which is then not attended to; None attends to
                everything.

        Returns:
            [b, t, d_model]
        """
        if mask is not None:
            mask = mask[:, None, None, :].astype(bool)
        return self.encoder(self.shared(ids), mask=mask)


RULES = Rules(
    rules=COMMON,
    # `embed_tokens` repeats `shared`; the rest belongs to a whole T5, of which this is the encoder.
    ignored=r"encoder\.embed_tokens\.weight|decoder\..+|lm_head\.weight",
)
