"""Muse: a VQGAN tokenizer, a U-ViT over masked tokens, and a CLIP text tower (arXiv 2301.00704; aMUSEd, 2401.01808)."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.io import hub, pretrained
from styledrop_jax.models import clip, uvit, vqgan
from styledrop_jax.models.tokenizer import load_tokenizer, tokenize
from styledrop_jax.pipelines.base import (
    Edit,
    Group,
    Pipeline,
    SampleSettings,
    TrainSettings,
    distinct_rows,
)
from styledrop_jax.sampling import maskgit, masking
from styledrop_jax.training import losses
from styledrop_jax.tree import chunks

_ENCODE_BATCH = 16
_AESTHETIC = 6.0


class Text(NamedTuple):
    """What the denoiser sees of prompts: `states` [b, t, c] (second to last layer) and `pooled` [b, p]."""

    states: jax.Array
    pooled: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muse(Pipeline):
    """A loaded Muse: what it is made of, and what one does with it.

    Attributes:
        denoiser: predicts tokens. autoencoder: images ↔ tokens. text: prompts → features.
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
        """Pixels along one side of the images it draws."""
        return self.grid * self.autoencoder.config.downsampling

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """It draws squares alone, whatever the shape of a picture."""
        del height, width
        return self.resolution, self.resolution

    @property
    def mask_id(self) -> int:
        return self.denoiser.config.mask_token_id

    @property
    def micro(self) -> jax.Array:
        """aMUSEd's micro-conditions [5]: width, height, crop top, crop left, aesthetic score."""
        return jnp.array([self.resolution, self.resolution, 0.0, 0.0, _AESTHETIC])

    def text_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts → token ids [b, t] int32."""
        return tokenize(
            self.tokenizer,
            list(map(self.expand, prompts)),
            self.text.config.max_position_embeddings,
        )

    def text_features(self, tower: clip.ClipText, ids: jax.Array) -> Text:
        """Token ids [b, t] → features; pure."""
        out = tower(ids)
        return Text(out.hidden_states[-2], out.embeds)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts → features; each distinct prompt is computed once, in batches of one fixed size."""

        def encode(distinct: list[str]) -> Text:
            parts = [
                _text(self.text, chunk) for chunk in chunks(self.text_ids(distinct), _ENCODE_BATCH)
            ]
            return Text(*(jnp.concatenate(x)[: len(distinct)] for x in zip(*parts, strict=True)))

        return distinct_rows(prompts, encode)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Images [b, r, r, 3], uint8 or float in [0, 1], r = `resolution` → tokens [b, h, w] int32."""
        images = np.asarray(images, np.float32) / (255 if images.dtype == np.uint8 else 1)
        return np.concatenate(
            [_encode(self.autoencoder, chunk) for chunk in chunks(images, _ENCODE_BATCH)]
        )[: len(images)]

    def decode_tokens(self, tokens: np.ndarray, batch_size: int = _ENCODE_BATCH) -> np.ndarray:
        """Tokens [b, h, w] → images [b, r, r, 3] float32 in [0, 1], `batch_size` at a time."""
        return np.concatenate(
            [_decode(self.autoencoder, chunk) for chunk in chunks(tokens, batch_size)]
        )[: len(tokens)]

    def loss(
        self,
        denoiser: uvit.UVit,
        targets: jax.Array,
        text: Text,
        keys: jax.Array,
        settings: TrainSettings,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`token_loss` of tokens `targets` [b, h, w]; of `settings` only `remat` concerns it."""
        return token_loss(denoiser, targets, text, self.micro, keys, remat=settings.remat)

    def generate(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: SampleSettings,
        edit: Edit | None = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], float32 in [0, 1]; each depends on its own seed and prompts alone.

        An edit masks a share of the picture's own tokens; a token is redrawn if any of its pixels is in the region.
        """
        tokens = None if edit is None else self._masked(edit, seeds)
        drawn = self.sample(groups, seeds, temperature=settings.temperature, tokens=tokens)
        return self.decode_tokens(drawn, len(seeds))

    def _masked(self, edit: Edit, seeds: Sequence[int]) -> np.ndarray:
        """The pictures' own tokens [n, h, w], masked for each seed."""
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
        """Decodes one batch of tokens [b, h, w]; every image depends on its own seed, prompt and tokens alone.

        Args:
            groups: see `Group`.
            seeds: one an image.
            temperature: the choice temperature.
            tokens: [b, h, w] to start from, `mask_id` where to draw; None draws everything.
        """
        b = len(seeds)
        if tokens is None:
            tokens = np.full((b, self.grid, self.grid), self.mask_id, np.int32)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        plans, arrays = (
            tuple(group.static for group in groups),
            tuple(group.arrays for group in groups),
        )
        return np.asarray(
            _sample(plans, arrays, jnp.asarray(tokens), keys, temperature, self.micro, self.mask_id)
        )


def load(name: str, dtype: jnp.dtype = jnp.float32) -> Muse:
    """Loads a Muse by name: "emoji64", a local diffusers folder, or "amused/amused-256" from the cache or hub.

    Raises:
        UserError: the model is nowhere, or a file of it is missing or does not fit.
    """
    folder = hub.resolve_pipeline(name, "muse")
    return Muse(
        name=name,
        base_hash=pretrained.hash_files(_denoiser_files(folder)),
        denoiser=load_denoiser(folder, dtype),
        autoencoder=load_autoencoder(folder / "vqvae", dtype),
        text=load_text(folder / "text_encoder", dtype),
        tokenizer=load_tokenizer(folder / "tokenizer"),
    )


def _denoiser_files(folder: Path) -> list[Path]:
    return pretrained.weight_files(folder / "transformer", "diffusion_pytorch_model")


def load_denoiser(folder: Path, dtype: jnp.dtype = jnp.float32) -> uvit.UVit:
    """The transformer of a Muse folder."""
    config = uvit.Config.from_dict(hub.read_config(folder / "transformer"))
    tensors = pretrained.Tensors(_denoiser_files(folder), uvit.RULES)
    source = str(folder / "transformer")
    return pretrained.load(
        lambda: uvit.UVit(config, rngs=nnx.Rngs(0), dtype=dtype), tensors, uvit.RULES, source=source
    )


def load_autoencoder(folder: Path, dtype: jnp.dtype = jnp.float32) -> vqgan.VQModel:
    """The tokenizer in a `vqvae` folder; computed in float32 if its config says `force_upcast`."""
    config = vqgan.Config.from_dict(hub.read_config(folder))
    dtype = jnp.float32 if config.force_upcast else dtype
    tensors = pretrained.Tensors(
        pretrained.weight_files(folder, "diffusion_pytorch_model"), vqgan.RULES
    )
    build = lambda: vqgan.VQModel(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
    return pretrained.load(build, tensors, vqgan.RULES, source=str(folder))


def load_text(folder: Path, dtype: jnp.dtype = jnp.float32) -> clip.ClipText:
    """The text tower, with projection, in a `text_encoder` folder."""
    config = clip.TextConfig.from_dict(hub.read_config(folder))
    tensors = pretrained.Tensors(pretrained.weight_files(folder, "model"), clip.RULES)
    build = lambda: clip.ClipText(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
    return pretrained.load(build, tensors, clip.RULES, source=str(folder))


def token_loss(
    denoiser: uvit.UVit,
    tokens: jax.Array,
    text: Text,
    micro: jax.Array,
    keys: jax.Array,
    *,
    remat: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy on a random share of masked tokens (Muse 2301.00704 §2.6), one value an example.

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


@nnx.jit
def _text(tower: clip.ClipText, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = tower(ids)
    return out.hidden_states[-2], out.embeds


@nnx.jit
def _encode(codec: vqgan.VQModel, images: jax.Array) -> jax.Array:
    return codec.encode(images)


@nnx.jit
def _decode(codec: vqgan.VQModel, tokens: jax.Array) -> jax.Array:
    return codec.decode(tokens)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _sample(plans, groups, tokens, keys, temperature, micro, mask_id):
    """One program: the loop over steps, in it one batched forward for each group, then the weighted sum of logits."""
    b, h, w = tokens.shape

    def forward(graphdef, frozen, grid, state, text):
        denoiser = nnx.merge(graphdef, state, frozen)
        return denoiser(grid, text.states, text.pooled, jnp.tile(micro, (b, 1))).reshape(
            b, h * w, -1
        )

    def predict(flat, step):
        grid, total = flat.reshape(b, h, w), 0
        for (graphdef, shared), (states, frozen, text, weights) in zip(plans, groups, strict=True):
            branches = jax.vmap(
                functools.partial(forward, graphdef, frozen, grid),
                in_axes=(None if shared else 0, 0),
            )
            total += jnp.einsum("k,kbnv->bnv", weights[step], branches(states, text))
        return total

    steps = groups[0][3].shape[0]
    out = maskgit.decode(
        predict, tokens.reshape(b, -1), keys, steps=steps, temperature=temperature, mask_id=mask_id
    )
    return out.reshape(b, h, w)
