"""The autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`, channels last.

Images in [0, 1] become a Gaussian over unit-scale latents, and latents become images (Rombach et
al., arXiv 2112.10752, §3.1).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.models import vqgan
from styledrop_jax.models.config_json import known_fields
from styledrop_jax.models.layers import Linear

_SOURCE = "vae/config.json"
_LOGVAR_RANGE = (-30.0, 20.0)  # the reference's: exp stays finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vqgan.CodecConfig):
    """Sizes and scales, by the names of the reference's `config.json` and with its defaults.

    Attributes:
        use_quant_conv, use_post_quant_conv: whether a 1×1 convolution follows the encoder, and
            precedes the decoder.
        scaling_factor: one over the standard deviation of the encoder's own latents, which makes
            them unit-scale.
        shift_factor: their mean, if it is not taken as zero.
    """

    block_out_channels: tuple[int, ...] = (64,)
    latent_channels: int = 4
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the reference's `vae/config.json`.

        Null and missing entries keep the defaults, unknown ones are ignored.

        Raises:
            UserError: a setting this implementation does not have.
        """
        vqgan.check_blocks(values, source=_SOURCE)
        for name in ("latents_mean", "latents_std"):
            if values.get(name) is not None:
                raise UserError(
                    f"{_SOURCE}: {name} is set, only scaling_factor and shift_factor are supported"
                )
        return cls(**known_fields(cls, values, source=_SOURCE))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that the reference library loads."""
        return {"_class_name": "AutoencoderKL", **super().to_dict()}

    @classmethod
    def sd(cls) -> Self:
        """The autoencoder of Stable Diffusion 1.x and 2.x: 8 pixels a latent, 4 channels."""
        return cls(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512)

    @classmethod
    def sdxl(cls) -> Self:
        """The autoencoder of Stable Diffusion XL: the same network, with weights of its own."""
        return dataclasses.replace(cls.sd(), scaling_factor=0.13025, sample_size=1024)

    @classmethod
    def emoji(cls, *, width: int = 8, size: int = 64) -> Self:
        """For images of 64 or 128 pixels: 16×16 latents of 4 channels.

        The scaling factor is 1 for training. The standard deviation of the trained latents says
        what it is to be.

        Args:
            width: channels at 64 pixels, and at 128; a multiple of 4.
            size: pixels along one side.
        """
        larger = (width,) if size == 128 else ()
        return cls(
            block_out_channels=(*larger, width, 2 * width, 8 * width),
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=1.0,
            sample_size=size,
        )


class Posterior(NamedTuple):
    """A Gaussian over the unit-scale latents of images, independent in every number.

    Attributes:
        mean: [b, h/f, w/f, c] float32.
        logvar: [b, h/f, w/f, c] float32, the natural logarithm of the variance.
    """

    mean: jax.Array
    logvar: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Random latents [b, h/f, w/f, c] by one PRNG key."""
        return self.mean + jnp.exp(self.logvar / 2) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """The most likely latents [b, h/f, w/f, c]."""
        return self.mean


class AutoencoderKL(nnx.Module):
    """The VQGAN's encoder and decoder around latents (z - shift_factor) · scaling_factor."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        kwargs = {"rngs": rngs, "dtype": dtype}
        c = config.latent_channels
        self.config = config
        # A mean and a logarithm of the variance for each latent channel.
        self.encoder = vqgan.Encoder(dataclasses.replace(config, latent_channels=2 * c), **kwargs)
        self.quant_conv = Linear(2 * c, 2 * c, **kwargs) if config.use_quant_conv else None
        self.post_quant_conv = Linear(c, c, **kwargs) if config.use_post_quant_conv else None
        self.decoder = vqgan.Decoder(config, **kwargs)

    def encode(self, images: jax.Array) -> Posterior:
        """Images [b, h, w, 3] in [0, 1] → latents [b, h/f, w/f, c], f = `config.downsampling`.

        Raises:
            ValueError: the sides are not divisible by f.
        """
        h, w = images.shape[1:3]
        f = self.config.downsampling
        if h % f or w % f:
            raise ValueError(f"images of {h}×{w} pixels, expected sides divisible by {f}")
        moments = self.encoder(2 * images - 1)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        scale = self.config.scaling_factor
        shift = self.config.shift_factor or 0.0
        logvar = jnp.clip(logvar, *_LOGVAR_RANGE) + 2 * math.log(scale)
        return Posterior((mean - shift) * scale, logvar)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unit-scale latents [b, h, w, c] → images [b, h·f, w·f, 3] float32.

        They are in [0, 1], but not clipped to it.
        """
        z = latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return (self.decoder(z).astype(jnp.float32) + 1) / 2

    def decode_tiled(self, latents: jax.Array, *, tile: int, overlap: int) -> jax.Array:
        """`decode` in overlapping tiles, one after the other, which takes less memory.

        Only one tile's activations are held at a time. Where tiles overlap, one fades linearly into
        the next. A tile normalises and attends over itself alone, so colours differ slightly from
        those of `decode` unless one tile covers everything. To be called under `jit`.

        Args:
            latents: [b, h, w, c], unit-scale.
            tile: latents along one side of a tile.
            overlap: the least number of latents that neighbours share; a quarter of `tile` hides
                the seams.

        Returns:
            images [b, h·f, w·f, 3] float32, [0, 1] but not clipped.

        Raises:
            ValueError: overlap is negative or not less than tile.
        """
        if not 0 <= overlap < tile:
            raise ValueError(
                f"overlap is {overlap}, expected 0 to {tile - 1}, less than the tile's side {tile}"
            )
        b, h, w, c = latents.shape
        f = self.config.downsampling
        rows, row_weights = _tiles(h, tile, overlap, scale=f)
        columns, column_weights = _tiles(w, tile, overlap, scale=f)
        size = (b, min(tile, h), min(tile, w), c)

        def add(i: jax.Array, canvas: jax.Array) -> jax.Array:
            r = i // len(columns)
            k = i % len(columns)
            y = rows[r]
            x = columns[k]
            image = self.decode(jax.lax.dynamic_slice(latents, (0, y, x, 0), size))
            weights = row_weights[r][:, None, None] * column_weights[k][:, None]  # [h, w, 1]
            corner = (0, f * y, f * x, 0)
            blended = jax.lax.dynamic_slice(canvas, corner, image.shape) + weights * image
            return jax.lax.dynamic_update_slice(canvas, blended, corner)

        canvas = jnp.zeros((b, f * h, f * w, self.config.out_channels))
        return jax.lax.fori_loop(0, len(rows) * len(columns), add, canvas)


def _tiles(length: int, tile: int, overlap: int, *, scale: int) -> tuple[jax.Array, jax.Array]:
    """Tiles spread evenly over one side: where each starts, and what each of its pixels counts.

    Args:
        length: latents along the side.
        tile, overlap: as in `decode_tiled`.
        scale: pixels per latent.

    Returns:
        starts [n] int32, in latents, and weights [n, pixels of a tile] float32, which add up to one
        at every pixel.
    """
    tile = min(tile, length)
    steps = math.ceil((length - tile) / (tile - overlap)) if length > tile else 0
    starts = [0]
    for i in range(1, steps + 1):
        starts.append(i * (length - tile) // steps)
    distance = np.arange(tile * scale) + 0.5  # of each pixel's middle from the tile's edge
    weights = np.ones((steps + 1, tile * scale))
    for i in range(steps):
        shared = scale * (starts[i] + tile - starts[i + 1])
        if shared:
            weights[i] *= np.minimum(distance[::-1] / shared, 1)
            weights[i + 1] *= np.minimum(distance / shared, 1)
    # One, except where an overlap of more than half a tile makes three tiles meet.
    total = np.zeros(length * scale)
    windows = [slice(scale * start, scale * (start + tile)) for start in starts]
    for window, weight in zip(windows, weights, strict=True):
        total[window] += weight
    for i, window in enumerate(windows):
        weights[i] /= total[window]
    return jnp.asarray(starts, jnp.int32), jnp.asarray(weights, jnp.float32)


RULES = vqgan.RULES
"""The VQGAN's, as it has the same blocks and the same older names of the attention's tensors."""
