"""Muse: a VQGAN tokenizer, a U-ViT over masked tokens, and a CLIP text tower (arXiv 2301.00704;
aMUSEd, 2401.01808)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.models import clip, uvit, vqgan
from styledrop_jax.models.reading import Reading, Tokens, in_a_row
from styledrop_jax.pipelines.base import (
    IN_ARRAYS,
    Compilable,
    Edit,
    Group,
    Loss,
    Pipeline,
    SampleSettings,
    TrainSettings,
    decoding,
    distinct_rows,
    on_own,
    shape_of_keys,
    to_floats,
)
from styledrop_jax.sampling import maskgit, masking
from styledrop_jax.training import losses, mesh

_ENCODE_BATCH = 16
_AESTHETIC = 6.0


class PooledText(NamedTuple):
    """What the denoiser sees of prompts: `states` [b, t, c] (second to last layer) and `pooled`
    [b, p]."""

    states: jax.Array
    pooled: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muse(Pipeline):
    """A loaded Muse: what it is made of, and what one does with it.

    Attributes:
        denoiser: predicts tokens.
        autoencoder: images ↔ tokens.
        text: prompts → features.
    """

    denoiser: uvit.UVit
    autoencoder: vqgan.VQModel
    text: clip.ClipText

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.denoiser.config.sample_size

    @property
    def resolution(self) -> int:
        """Pixels along one side of the images it generates."""
        return self.grid * self.autoencoder.config.downsampling

    def reads(self, reading: Reading) -> Self:
        """The pipeline that reads prompts so; UserError for weights.

        The denoiser scales the features of each token to one length, whatever they are multiplied
        by.
        """
        if reading.weights:
            raise UserError(
                f"prompt_weights: found true, expected false: {self.name!r} is a Muse, which "
                "scales the features of every token to one length, so that weights do nothing"
            )
        return super().reads(reading)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """It generates squares alone, whatever the shape of an image."""
        del height, width
        return self.resolution, self.resolution

    @property
    def mask_id(self) -> int:
        return self.denoiser.config.mask_token_id

    @property
    def micro(self) -> jax.Array:
        """aMUSEd's micro-conditions [5]: width, height, crop top, crop left, aesthetic score."""
        return _micro(self.resolution)

    @staticmethod
    def text_features(tower: clip.ClipText, tokens: Tokens) -> PooledText:
        """Tokens → features; pure."""
        return _joined(_of_chunks(tower, tokens.flat), tokens.ids.shape[1])

    def encode_text(self, prompts: Sequence[str], chunks: int = 1) -> PooledText:
        """Prompts, in at least that many chunks → features; each distinct prompt is computed once,
        in batches of one size."""

        def encode(distinct: list[str]) -> PooledText:
            compute = functools.partial(_encode_chunks, self.text)
            tokens = self.text_tokens(distinct, chunks)
            found = mesh.in_chunks(compute, tokens.flat, _ENCODE_BATCH, self.devices)
            return _joined(found, tokens.ids.shape[1])

        return distinct_rows(prompts, encode)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Images [b, r, r, 3], uint8 or float in [0, 1], r = `resolution` → tokens [b, h, w]
        int32."""
        compute = functools.partial(_encode, self.autoencoder)
        return mesh.in_chunks(compute, to_floats(images), _ENCODE_BATCH, self.devices)

    def decode_tokens(self, tokens: np.ndarray, batch_size: int = _ENCODE_BATCH) -> np.ndarray:
        """Tokens [b, h, w] → images [b, r, r, 3] float32 in [0, 1], `batch_size` at a time."""
        compute = functools.partial(_decode, self.autoencoder)
        return mesh.in_chunks(compute, tokens, batch_size, self.devices)

    def loss(self, settings: TrainSettings) -> Loss:
        """`token_loss` of tokens [b, h, w]; of `settings` only `remat` concerns it."""
        return _Loss(self.resolution, settings.remat)

    def generate(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: SampleSettings,
        edit: Edit | None = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], float32 in [0, 1]; each depends on its own seed and
        prompts alone.

        An edit masks a share of an image's own tokens; a token is generated anew if any of its
        pixels is in the region.
        """
        tokens = None if edit is None else self._masked(edit, seeds)
        sampled = self.sample(groups, seeds, temperature=settings.temperature, tokens=tokens)
        return self.decode_tokens(sampled, len(seeds))

    def _masked(self, edit: Edit, seeds: Sequence[int]) -> np.ndarray:
        """The images' own tokens [n, h, w], masked for each seed."""
        own = edit.own.reshape(len(seeds), -1)
        region = np.ones((self.resolution,) * 2, bool) if edit.region is None else edit.region
        pixels = self.autoencoder.config.downsampling
        patches = region.reshape(self.grid, pixels, self.grid, pixels).any(axis=(1, 3)).ravel()
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(
            jnp.asarray(seeds, jnp.uint32)
        )
        masked = maskgit.mask_for_edit(
            jnp.asarray(own),
            keys,
            mask_id=self.mask_id,
            region=jnp.tile(patches, (len(seeds), 1)),
            strength=edit.strength,
        )
        return np.asarray(masked).reshape(-1, self.grid, self.grid)

    def sample(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        temperature: float,
        tokens: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples one batch of tokens [b, h, w]; every image depends on its own seed, prompt and
        tokens alone.

        Args:
            groups: see `Group`.
            seeds: one an image.
            temperature: the choice temperature.
            tokens: [b, h, w] to start from, `mask_id` where to sample; None samples everything.
        """
        if tokens is None:
            tokens = np.full((len(seeds), self.grid, self.grid), self.mask_id, np.int32)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        plans = tuple(group.static for group in groups)
        arrays = tuple(group.arrays for group in groups)
        with mesh.used(self.devices):
            found = _sample(
                plans, arrays, jnp.asarray(tokens), keys, temperature, self.micro, self.mask_id
            )
        return mesh.fetch(found)

    def programs(
        self, groups: Sequence[Group], count: int, settings: SampleSettings
    ) -> dict[str, Compilable]:
        """See `Pipeline.programs`."""
        tokens = jax.ShapeDtypeStruct((count, self.grid, self.grid), jnp.int32)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        micro = jax.ShapeDtypeStruct((5,), jnp.float32)
        plans = tuple(group.static for group in groups)
        arrays = tuple(group.arrays for group in groups)
        keys = shape_of_keys(count)
        arguments = plans, arrays, tokens, keys, number, micro, self.mask_id
        return {
            "sampling": Compilable(_sample, arguments),
            "decoding": decoding(self.autoencoder, tokens),
        }


def _micro(resolution: int) -> jax.Array:
    return jnp.array([resolution, resolution, 0.0, 0.0, _AESTHETIC])


@dataclasses.dataclass(frozen=True)
class _Loss:
    resolution: int
    remat: bool

    def __call__(
        self, denoiser: uvit.UVit, tokens: jax.Array, text: PooledText, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        micro = _micro(self.resolution)
        return token_loss(denoiser, tokens, text, micro, keys, remat=self.remat)


def token_loss(
    denoiser: uvit.UVit,
    tokens: jax.Array,
    text: PooledText,
    micro: jax.Array,
    keys: jax.Array,
    *,
    remat: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy on a random share of masked tokens (Muse 2301.00704 §2.6), one value an
    example.

    Args:
        denoiser: the transformer.
        tokens: [b, h, w] int32.
        text: `states` [b, t, c] and `pooled` [b, p].
        micro: [5].
        keys: [b], of the examples.
        remat: see `uvit.UVit`.
    """
    b = tokens.shape[0]
    flat = tokens.reshape(b, -1)
    inputs, mask = masking.mask_tokens(flat, keys, mask_id=denoiser.config.mask_token_id)
    logits = denoiser(
        inputs.reshape(tokens.shape), text.states, text.pooled, jnp.tile(micro, (b, 1)), remat=remat
    )
    return losses.masked_token_loss(logits.reshape(*flat.shape, -1), flat, mask)


def _of_chunks(tower: clip.ClipText, tokens: Tokens) -> PooledText:
    """Of tokens [b, t]."""
    out = tower(tokens.ids)
    assert out.embeds is not None, "a Muse's text tower has a projection"
    return PooledText(out.hidden_states[-2], out.embeds)


_encode_chunks = nnx.jit(_of_chunks)


def _joined(chunks: PooledText, count: int) -> PooledText:
    """Of prompts, the features of whose `count` chunks are given."""
    return PooledText(in_a_row(chunks.states, count), chunks.pooled[::count])


@nnx.jit
def _encode(autoencoder: vqgan.VQModel, images: jax.Array) -> jax.Array:
    return on_own(vqgan.VQModel.encode, autoencoder, images)


@nnx.jit
def _decode(autoencoder: vqgan.VQModel, tokens: jax.Array) -> jax.Array:
    return on_own(vqgan.VQModel.decode, autoencoder, tokens)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _sample(plans, groups, tokens, keys, temperature, micro, mask_id):
    """One program, of which each device takes its own images."""
    of_own = functools.partial(_sample_own, plans, mask_id)
    axes = tuple([IN_ARRAYS] * len(groups)), 0, 0, None, None
    return mesh.apart(of_own, axes)(groups, tokens, keys, temperature, micro)


def _sample_own(plans, mask_id, groups, tokens, keys, temperature, micro):
    """The loop over steps, in it one batched forward for each group, then the weighted sum of
    logits."""
    b, h, w = tokens.shape

    def forward(graphdef, frozen, grid, state, text):
        denoiser = nnx.merge(graphdef, state, frozen)
        logits = denoiser(grid, text.states, text.pooled, jnp.tile(micro, (b, 1)))
        return logits.reshape(b, h * w, -1)

    def predict(flat, step):
        grid = flat.reshape(b, h, w)
        sums = []
        for (graphdef, shared), (states, frozen, text, weights) in zip(plans, groups, strict=True):
            branches = jax.vmap(
                functools.partial(forward, graphdef, frozen, grid),
                in_axes=(None if shared else 0, 0),
            )
            sums.append(jnp.einsum("k,kbnv->bnv", weights[step], branches(states, text)))
        return sum(sums[1:], sums[0])

    steps = groups[0][3].shape[0]
    out = maskgit.decode(
        predict, tokens.reshape(b, -1), keys, steps=steps, temperature=temperature, mask_id=mask_id
    )
    return out.reshape(b, h, w)
