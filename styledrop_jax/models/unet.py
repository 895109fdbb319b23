"""Stable Diffusion's U-Net (1.x, 2.x, XL): from noisy latents, a time and a text to the noise.

The architecture is `UNet2DConditionModel` of the diffusers library as those models configure it
(Rombach et al., arXiv 2112.10752; XL: Podell et al., arXiv 2307.01952), tensor for tensor, channels
last. Whether the output is the noise or v is for the scheduler to say, not for the model.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.models.layers import recomputed
from styledrop_jax.models.rules import COMMON, Rule, Rules
from styledrop_jax.models.unet_blocks import (
    Attention,
    Control,
    DownBlock2D,
    Parts,
    Text,
    TimestepEmbedding,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from styledrop_jax.models.unet_config import DOWN_ATTENTION, UP_ATTENTION, Config


class Added(NamedTuple):
    """What XL adds to the time (arXiv 2307.01952, §2.2).

    Attributes:
        pooled: [b, p] features of the whole text.
        sizes: [b, 6], pixels: height and width of the image before it was scaled and cut; top and
            left of the cut; height and width of what the model sees.
    """

    pooled: jax.Array
    sizes: jax.Array


class UNet(nnx.Module):
    """The denoiser; see the module's docstring.

    `dtype` is the compute dtype. Fresh parameters are float32, and so are the statistics of norms
    and softmaxes. A fresh model predicts zero.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        channels = config.block_out_channels
        heads = config.heads
        depths = config.depths
        layers = config.layers_per_block
        last = len(channels) - 1
        parts = Parts(
            time_dim=4 * channels[0],
            text_dim=config.cross_attention_dim,
            groups=config.norm_num_groups,
            epsilon=config.norm_eps,
            linear_projection=config.use_linear_projection,
            rngs=rngs,
            dtype=dtype,
        )
        self.config = config
        self.conv_in = parts.conv(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(parts, channels[0])
        width = config.projection_class_embeddings_input_dim
        self.add_embedding = TimestepEmbedding(parts, width) if width else None
        downs = []
        ups = []
        for i, (down, up) in enumerate(config.types):
            above = channels[max(i - 1, 0)]
            below = channels[min(i + 1, last)]
            down_block = DownBlock2D(
                parts,
                above,
                channels[i],
                layers=layers,
                heads=heads[i] if down == DOWN_ATTENTION else None,
                depth=depths[i],
                downsample=i < last,
            )
            up_block = UpBlock2D(
                parts,
                below,
                channels[i],
                skip=above,
                layers=layers + 1,
                heads=heads[i] if up == UP_ATTENTION else None,
                depth=depths[i],
                upsample=i > 0,
            )
            downs.append(down_block)
            ups.append(up_block)
        self.down_blocks = nnx.List(downs)
        self.up_blocks = nnx.List(reversed(ups))
        self.mid_block = UNetMidBlock2DCrossAttn(
            parts, channels[-1], heads=heads[-1], depth=depths[-1]
        )
        self.conv_norm_out = parts.group_norm(channels[0])
        zeros = nnx.initializers.zeros
        self.conv_out = parts.conv(channels[0], config.out_channels, kernel_init=zeros)
        for path, module in nnx.iter_modules(self):
            if isinstance(module, Attention):
                module.place = tree.path_name(path)

    def __call__(
        self,
        latents: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        *,
        added: Added | None = None,
        text_mask: jax.Array | None = None,
        control: Control | None = None,
        remat: bool = False,
    ) -> jax.Array:
        """Predicts what the model was trained to predict of the noise in the latents.

        Args:
            latents: [b, h, w, in_channels], of any height and width.
            timesteps: [b], int or float, of the training schedule: 0 to 999.
            text: [b, t, d] features of the text encoder.
            added: what a model with an `addition_embed_type` needs, and no other takes.
            text_mask: bool [b, t], True where to attend; None attends to everything, as the public
                models do.
            control: edits the weights of every cross-attention, as prompt-to-prompt does (arXiv
                2208.01626, §3). It takes them as float32 [b, heads, n, t], softmaxed, with n the
                positions row by row, and the module's dotted path, such as
                `mid_block.attentions.0.transformer_blocks.0.attn2`, and returns weights of the same
                shape.
            remat: whether the backward pass computes the activations of each block anew; else it
                keeps them.

        Returns:
            float32 [b, h, w, out_channels]
        """
        mask = None if text_mask is None else text_mask[:, None, None]  # [b, 1, 1, t]
        context = Text(text, mask, control)
        if self.config.center_input_sample:
            latents = 2 * latents - 1
        time = self.time_embedding(self._sinusoids(timesteps, self.config.block_out_channels[0]))
        if self.add_embedding is not None:
            assert added is not None, "this model sees the pooled text and sizes"
            time = time + self.add_embedding(self._of_added(added))
        time = nnx.silu(time)  # [b, e], with the SiLU that every use of it takes
        run = recomputed if remat else lambda block: block
        skips = [self.conv_in(latents)]
        for block in self.down_blocks:
            skips += run(block)(skips[-1], time, context)
        x = run(self.mid_block)(skips[-1], time, context)
        for block in self.up_blocks:
            x = run(block)(x, skips, time, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def _of_added(self, added: Added) -> jax.Array:
        """[b, c], the pooled text beside the sinusoids of each of its sizes."""
        width = self.config.addition_time_embed_dim
        assert width is not None, "as the config was checked"
        waves = self._sinusoids(added.sizes.reshape(-1), width)
        return jnp.concatenate([added.pooled, waves.reshape(len(added.sizes), -1)], axis=-1)

    def _sinusoids(self, numbers: jax.Array, width: int) -> jax.Array:
        """[n] → float32 [n, width], sines and cosines at width/2 frequencies falling from 1.

        Source: arXiv 1706.03762, §3.5.
        """
        half = width // 2
        # In NumPy's float32, which agrees with the reference: an error in the last place of the
        # first frequencies makes a visible angle at time 999.
        exponents = -math.log(10_000) * np.arange(half, dtype=np.float32)
        frequencies = np.exp(exponents / (half - self.config.freq_shift))
        angles = numbers.astype(jnp.float32)[:, None] * frequencies
        waves = [jnp.sin(angles), jnp.cos(angles)]
        if self.config.flip_sin_to_cos:
            waves.reverse()
        return jnp.concatenate(waves, axis=-1)


RULES = Rules(
    (
        Rule(r"(.+\.proj_(?:in|out))\.conv\.kernel", r"\1.weight", "1x1"),
        Rule(r"(.+\.proj_(?:in|out))\.conv\.bias", r"\1.bias"),
        Rule(r"(.+\.conv_shortcut)\.kernel", r"\1.weight", "1x1"),
        Rule(r"((?:.+\.)?conv\w*)\.kernel", r"\1.weight", "conv"),
        *COMMON,
    )
)
"""Tensor names and layouts of diffusers' `UNet2DConditionModel`."""
