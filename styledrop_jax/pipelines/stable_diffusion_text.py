"""What a Stable Diffusion's U-Net sees of a text, and XL's of an image's size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.models import clip, unet
from styledrop_jax.models.reading import Tokens, in_a_row, weighted


class TextStates(NamedTuple):
    """What the denoiser sees of prompts: `states` [b, t, c], the last layer's after the final norm,
    or XL's of both towers, which also sees `pooled` [b, p].

    In training `apart` [b, t, 2] may say which tokens belong to one half of an image; see
    `losses.unmix_loss`.
    """

    states: jax.Array
    apart: jax.Array | None = None
    pooled: jax.Array | None = None


def of_chunks(text: clip.ClipText | clip.TextPair, tokens: Tokens) -> TextStates:
    """Of tokens [b, t]."""
    weigh = functools.partial(weighted, weights=tokens.weights)
    if isinstance(text, clip.ClipText):
        return TextStates(weigh(text(tokens.ids).last_hidden_state))
    states, pooled = text(tokens.ids, weigh)
    return TextStates(states, pooled=pooled)


encode_chunks = nnx.jit(of_chunks)


def joined(text: clip.ClipText | clip.TextPair, ids: jax.Array, chunks: TextStates) -> TextStates:
    """Of prompts of ids [b, n, t], the features of whose chunks [b·n, …] are given."""
    count = ids.shape[1]
    states = in_a_row(chunks.states, count)
    if isinstance(text, clip.ClipText):
        return TextStates(states)
    assert chunks.pooled is not None
    states, pooled = text.zeroed(ids, states, chunks.pooled[::count])
    return TextStates(states, pooled=pooled)


def added_of(text: TextStates, shape: tuple[int, ...], factor: int) -> unet.Added | None:
    """What XL adds to the time, of latents of a shape [b, h, w, c]; see
    `stable_diffusion`."""
    if text.pooled is None:
        return None
    b, h, w, _ = shape
    size = (h * factor, w * factor)
    return unet.Added(text.pooled, jnp.tile(jnp.array([*size, 0, 0, *size], jnp.float32), (b, 1)))
