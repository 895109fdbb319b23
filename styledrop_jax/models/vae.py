"""The autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`, channels last.

Images in [0, 1] become a Gaussian over unit-scale latents, and latents images (Rombach et al., arXiv 2112.10752, §3.1).
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
from styledrop_jax.models.layers import Linear

_LOGVAR_RANGE = (-30.0, 20.0)  # the reference's: exp stays finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and scales, by the names of the reference's `config.json` and with its defaults.

    Attributes:
        scaling_factor: one over the deviation of the encoder's own latents, which makes them unit-scale.
        shift_factor: their mean, if it is not taken as zero.
        force_upcast: the weights want float32, whatever the other models compute in.
        sample_size: pixels along one side of the images it was trained on.
    """

    block_out_channels: tuple[int, ...] = (64,)
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    sample_size: int = 32

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the reference's `vae/config.json`; null and missing entries keep the defaults.

        Raises:
            UserError: a setting this implementation does not have.
        """
        vqgan.check_blocks(values, source="vae/config.json")
        for name in ("latents_mean", "latents_std"):
            if values.get(name) is not None:
                raise UserError(
                    f"vae/config.json: {name} is set, only scaling_factor and shift_factor are supported"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **{
                k: tuple(v) if isinstance(v, list) else v
                for k, v in values.items()
                if k in known and v is not None
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that the reference library loads."""
        blocks = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **dataclasses.asdict(self),
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
        }

    @classmethod
    def sd(cls) -> Self:
        """The autoencoder of Stable Diffusion 1.x and 2.x: 8 pixels a latent, 4 channels."""
        return cls(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512)

    @classmethod
    def emoji64(cls, *, width: int = 8) -> Self:
        """For 64-pixel images: 4 pixels a latent, 4 channels, 0.6M parameters; `width` channels at first, 4s.

        The scaling factor is 1 for training; the deviation of the trained latents says what it is to be.
        """
        return cls(
            block_out_channels=(width, 2 * width, 8 * width),
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=1.0,
            sample_size=64,
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
        """Latents [b, h/f, w/f, c] drawn with one PRNG key."""
        return self.mean + jnp.exp(self.logvar / 2) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """The most likely latents [b, h/f, w/f, c]."""
        return self.mean


class AutoencoderKL(nnx.Module):
    """Encoder and decoder, which are the VQGAN's, around latents (z - shift_factor) · scaling_factor."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        kwargs = {"rngs": rngs, "dtype": dtype}
        c = config.latent_channels
        self.config = config
        # a mean and a logarithm of variance for each latent channel
        self.encoder = vqgan.Encoder(dataclasses.replace(config, latent_channels=2 * c), **kwargs)
        self.quant_conv = Linear(2 * c, 2 * c, **kwargs) if config.use_quant_conv else None
        self.post_quant_conv = Linear(c, c, **kwargs) if config.use_post_quant_conv else None
        self.decoder = vqgan.Decoder(config, **kwargs)

    def encode(self, images: jax.Array) -> Posterior:
        """Images [b, h, w, 3] in [0, 1], sides divisible by `config.downsampling` → latents [b, h/f, w/f, c].

        Raises:
            ValueError: the sides are not divisible.
        """
        h, w = images.shape[1:3]
        if h % self.config.downsampling or w % self.config.downsampling:
            raise ValueError(
                f"images of {h}×{w} pixels, expected sides divisible by {self.config.downsampling}"
            )
        moments = self.encoder(2 * images - 1)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        scale, shift = self.config.scaling_factor, self.config.shift_factor or 0.0
        return Posterior(
            (mean - shift) * scale, jnp.clip(logvar, *_LOGVAR_RANGE) + 2 * math.log(scale)
        )

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unit-scale latents [b, h, w, c] → images [b, h·f, w·f, 3] float32, [0, 1] but not clipped."""
        z = latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return (self.decoder(z).astype(jnp.float32) + 1) / 2

    def decode_tiled(self, latents: jax.Array, *, tile: int, overlap: int) -> jax.Array:
        """`decode` in overlapping tiles, one after the other: only one tile's activations are held at a time.

        Where tiles overlap, one fades linearly into the next. A tile normalises and attends over itself alone, so
        colours differ slightly from those of `decode` unless one tile covers everything. To be called under `jit`.

        Args:
            latents: [b, h, w, c], unit-scale.
            tile: latents along one side of a tile.
            overlap: the least number of latents that neighbours share; a quarter of `tile` hides the seams.

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
        (rows, row_weights), (columns, column_weights) = (
            _tiles(n, tile, overlap, scale=f) for n in (h, w)
        )
        size = (b, min(tile, h), min(tile, w), c)

        def add(i: jax.Array, canvas: jax.Array) -> jax.Array:
            r, k = i // len(columns), i % len(columns)
            y, x = rows[r], columns[k]
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
        length: latents along the side. tile, overlap: as in `decode_tiled`. scale: pixels per latent.

    Returns:
        starts [n] int32, in latents, and weights [n, pixels of a tile] float32, which add up to one at every pixel.
    """
    tile = min(tile, length)
    steps = math.ceil((length - tile) / (tile - overlap)) if length > tile else 0
    starts = [i * (length - tile) // steps for i in range(steps + 1)] if steps else [0]
    distance = np.arange(tile * scale) + 0.5  # of each pixel's middle from the tile's edge
    weights = np.ones((steps + 1, tile * scale))
    for i in range(steps):
        if shared := scale * (starts[i] + tile - starts[i + 1]):
            weights[i] *= np.minimum(distance[::-1] / shared, 1)
            weights[i + 1] *= np.minimum(distance / shared, 1)
    total = np.zeros(
        length * scale
    )  # one, but where an overlap of more than half a tile makes three meet
    windows = [slice(scale * start, scale * (start + tile)) for start in starts]
    for window, weight in zip(windows, weights, strict=True):
        total[window] += weight
    weights /= np.stack([total[window] for window in windows])
    return jnp.asarray(starts, jnp.int32), jnp.asarray(weights, jnp.float32)


RULES = vqgan.RULES
"""The VQGAN's: the same blocks, and the same older names of the attention's tensors."""
