"""What the U-Net of an inpainting model sees beside the noisy latents (Rombach et al., arXiv
2112.10752, appendix E.2.2): a mask, and the latents of the picture with what is masked in grey.

Such a model was also trained with all of a picture masked, as one of text alone: so it generates
whole pictures, and learns from them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.models import vae

GREY = 0.5  # of pixels in [0, 1]


def channels(latents: int) -> int:
    """How many channels its U-Net takes, of latents of so many."""
    return 2 * latents + 1


def whole(
    encode: Callable[[np.ndarray], Any], autoencoder: vae.AutoencoderKL, height: int, width: int
) -> np.ndarray:
    """What is seen of a picture that is all masked: [1, h, w, 1 + c].

    Args:
        encode: images [b, height, width, 3] → a `vae.Posterior`; it is run at once, while a program
            is traced too.
        autoencoder: that it uses. If its arrays are shapes alone, so are the numbers.
    """
    config = autoencoder.config
    factor = config.downsampling
    shape = (1, height // factor, width // factor, config.latent_channels)
    latents = np.zeros(shape, np.float32)
    first = jax.tree.leaves(nnx.state(autoencoder, nnx.Param))[0]
    if not isinstance(first, jax.ShapeDtypeStruct):
        with jax.ensure_compile_time_eval():
            latents = np.asarray(encode(np.full((1, height, width, 3), GREY, np.float32)).mode())
    return np.concatenate([np.ones((*shape[:-1], 1), np.float32), latents], axis=-1)


def hidden(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """A picture [h, w, 3], uint8, with a region, bool [h, w], in grey: float32 in [0, 1]."""
    return np.where(region[..., None], np.float32(GREY), image.astype(np.float32) / 255)


def part(mask: np.ndarray, around: np.ndarray) -> np.ndarray:
    """What is seen of pictures that are masked in part: [b, h, w, 1 + c].

    Args:
        mask: bool [b, h, w, 1], true where to generate.
        around: [b, h, w, c], the latents of the pictures with that in grey.
    """
    return np.concatenate([np.asarray(mask, np.float32), around], axis=-1)


def told(denoiser: Callable[..., jax.Array], seen: jax.Array | np.ndarray | None) -> Any:
    """`denoiser` as one of latents [b, h, w, c] alone, which is shown `seen`, of one for each or
    of one for all, beside them; None is a model that inpaints nothing."""
    if seen is None:
        return denoiser

    def with_seen(x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        beside = jnp.broadcast_to(jnp.asarray(seen, x.dtype), (*x.shape[:-1], seen.shape[-1]))
        return denoiser(jnp.concatenate([x, beside], axis=-1), *args, **kwargs)

    return with_seen
