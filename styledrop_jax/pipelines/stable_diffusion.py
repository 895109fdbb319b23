"""Stable Diffusion: an autoencoder, a U-Net over noisy latents, a CLIP text tower (1.x and 2.x,
arXiv 2112.10752) or two (XL, arXiv 2307.01952).

XL is also told the size of an image before it was scaled and cut, the corner of the cut, and the
size that it sees. Images are scaled and cut on their way into a run, so both sizes are taken to be
the image's own, and the corner to be (0, 0), in training and in sampling.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.reading import Tokens
from styledrop_jax.pipelines import inpainting
from styledrop_jax.pipelines.base import (
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
from styledrop_jax.pipelines.stable_diffusion_sampling import (
    Program,
    StepControl,
    check_steps,
    inputs_of,
    sample_latents,
)
from styledrop_jax.pipelines.stable_diffusion_text import (
    TextStates,
    added_of,
    encode_chunks,
    joined,
    of_chunks,
)
from styledrop_jax.sampling import schedulers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.training import losses, mesh

_TEXT_BATCH = 16
_IMAGE_BATCH = 4  # of 768 pixels the autoencoder's activations are gigabytes,
_AREA = 0.1  # share by which the area of an image that trains may differ from a square's
_LARGE = 768  # and of more those of one image


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(Pipeline):
    """A loaded Stable Diffusion: what it is made of, and what one does with it.

    Attributes:
        denoiser: predicts the noise or v.
        autoencoder: images ↔ latents.
        text: prompts → features. XL has two towers of one vocabulary.
        schedule: the noise of each timestep, and which of the two the denoiser predicts.
    """

    controllable: ClassVar[bool] = True
    denoiser: unet.UNet
    autoencoder: vae.AutoencoderKL
    text: clip.ClipText | clip.TextPair
    schedule: NoiseSchedule

    @property
    def is_xl(self) -> bool:
        """Whether it is an XL."""
        return isinstance(self.text, clip.TextPair)

    @property
    def inpaints(self) -> bool:
        """Whether its U-Net is an inpainting model's; see `inpainting`."""
        latents = self.autoencoder.config.latent_channels
        return self.denoiser.config.in_channels == inpainting.channels(latents)

    @property
    def resolution(self) -> int:
        """Pixels along one side of the images it was trained on, and generates unless told
        otherwise."""
        return self.denoiser.config.sample_size * self.autoencoder.config.downsampling

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, pixels, of about that aspect and the area of `resolution`², divisible
        by the autoencoder's factor."""
        factor = self.autoencoder.config.downsampling
        scale = self.resolution / math.sqrt(height * width)

        def fitting(side: int) -> int:
            return max(round(scale * side / factor), 1) * factor

        return fitting(height), fitting(width)

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """The square, and sizes of about its area whose latents every level of the U-Net halves
        evenly, up to twice as long as they are wide.
        """
        levels = len(self.denoiser.config.block_out_channels)
        stride = self.autoencoder.config.downsampling * 2 ** (levels - 1)
        sides = range(stride, 2 * self.resolution, stride)
        found = []
        for height, width in itertools.product(sides, sides):
            area = height * width / self.resolution**2
            if height != width and abs(area - 1) <= _AREA and 0.5 <= height / width <= 2:
                found.append((height, width))
        return [(self.resolution, self.resolution), *found]

    @staticmethod
    def text_features(tower: clip.ClipText | clip.TextPair, tokens: Tokens) -> TextStates:
        """Tokens → features; pure."""
        return joined(tower, tokens.ids, of_chunks(tower, tokens.flat))

    def encode_text(self, prompts: Sequence[str], chunks: int = 1) -> TextStates:
        """Prompts, in at least that many chunks → features; each distinct prompt is computed once,
        in batches of one size."""

        def encode(distinct: list[str]) -> TextStates:
            compute = functools.partial(encode_chunks, self.text)
            tokens = self.text_tokens(distinct, chunks)
            found = mesh.in_chunks(compute, tokens.flat, _TEXT_BATCH, self.devices)
            return joined(self.text, tokens.ids, found)

        return distinct_rows(prompts, encode)

    def encode_images(self, images: np.ndarray) -> vae.Posterior:
        """Images [b, h, w, 3], uint8 or float in [0, 1], sides divisible by the autoencoder's
        factor → NumPy arrays [b, h', w', c].

        The mean is what to take for an image; with both cached, training can sample other latents
        at each step.
        """
        compute = functools.partial(_encode, self.autoencoder)
        return mesh.in_chunks(compute, to_floats(images), self._at_once, self.devices)

    @property
    def _at_once(self) -> int:
        """Images that the autoencoder takes at once."""
        return _IMAGE_BATCH if self.resolution <= _LARGE else 1

    def decode_latents(self, latents: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Latents [b, h, w, c] → images [b, h·f, w·f, 3] float32 in [0, 1], `batch_size` at a
        time."""
        compute = functools.partial(_decode, self.autoencoder)
        return mesh.in_chunks(compute, latents, batch_size or self._at_once, self.devices)

    def loss(self, settings: TrainSettings) -> Loss:
        """The denoising loss of latents sampled from a posterior, plus the `losses.Unmix` of the
        text's `apart` if it is given.

        `settings.remat` goes without `apart`.
        """
        return _Loss(
            schedule=self.schedule,
            factor=self.autoencoder.config.downsampling,
            min_snr_gamma=settings.min_snr_gamma,
            noise_offset=settings.noise_offset,
            remat=settings.remat,
            seen=self._seen_of if self.inpaints else None,
        )

    def generate(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: SampleSettings,
        edit: Edit | None = None,
        control: StepControl | None = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], or of the edit's size, float32 in [0, 1].

        Each depends on its own seed, prompts and image alone. An edit starts from the noised
        latents of the images (SDEdit 2108.01073), and keeps those outside its region; an
        inpainting model sees these instead.
        """
        latents = self.sample(
            groups,
            seeds,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance_rescale=settings.guidance_rescale,
            control=control,
            **({} if edit is None else self._edited(edit)),
        )
        return self.decode_latents(latents, min(len(seeds), self._at_once))

    def _edited(self, edit: Edit) -> dict[str, Any]:
        """The arguments of `sample` that start from an edit's images."""
        latents = edit.own.mode()
        given = {"latents": latents, "strength": edit.strength}
        if edit.region is None:
            return given
        n, h, w, _ = latents.shape
        factor = self.autoencoder.config.downsampling
        region = edit.region.reshape(h, factor, w, factor).any(axis=(1, 3))  # [h, w]
        mask = np.broadcast_to(np.asarray(region)[None, ..., None], (n, h, w, 1))
        if self.inpaints:
            return given | {"seen": inpainting.part(mask, edit.around.mode())}
        return given | {"known": latents, "mask": mask}

    def _seen_of(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """What an inpainting model sees of an image that is all to be generated, with latents of
        `shape` [h, w, c]; None if it is none."""
        if not self.inpaints:
            return None
        factor = self.autoencoder.config.downsampling
        height, width, _ = shape
        key = height * factor, width * factor
        if key not in self._seen:
            self._seen[key] = inpainting.whole(self.encode_images, self.autoencoder, *key)
        return self._seen[key]

    @functools.cached_property
    def _seen(self) -> dict[tuple[int, int], np.ndarray]:
        """What `_seen_of` gave, by height and width."""
        return {}

    def sample(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        sampler: str | schedulers.Sampler,
        steps: int,
        guidance_rescale: float = 0.0,
        size: tuple[int, int] | None = None,
        latents: np.ndarray | None = None,
        strength: float | None = None,
        known: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        seen: np.ndarray | None = None,
        control: StepControl | None = None,
    ) -> np.ndarray:
        """Samples one batch of latents; every image depends on its own seed, prompt and inputs
        alone.

        Args:
            groups: see `base.Group`; `text` is a `TextStates`, and the weights [steps, k] are of
                the denoiser's outputs. Classifier-free guidance of scale s weights the prompt with
                s and the negative prompt with 1 - s.
            seeds: one an image. Its first noise depends neither on the sampler nor on the steps.
            sampler: a name in `schedulers.SAMPLERS`, or a function like those.
            steps: from pure noise; `strength` takes a share of them.
            guidance_rescale: share in [0, 1] by which the guided output's deviation is pulled back
                to that of the first branch (2305.08891 section 3.4).
            size: height and width of the images in pixels; None is a square of `resolution`.
                Latents have their own.
            latents: [b, h, w, c] to start from: noise of unit variance, or with `strength` the
                latents of images.
            strength: in [0, 1], how much of `latents` is generated anew (SDEdit 2108.01073).
            known, mask: latents [b, h, w, c] to keep where the mask [b, h, w, 1], bool or float, is
                0; 1 is to generate.
            seen: [b, h, w, 1 + c], what an inpainting model sees beside the latents; see
                `inpainting`. None is a mask of all.
            control: edits the attention; see `StepControl`.

        Returns:
            latents [b, h, w, c] float32

        Raises:
            UserError: the sampler is unknown, or a size, number of steps or strength does not fit.
            ValueError: what belongs together is not given together.
        """
        check_steps(groups, steps)
        plan = Program(
            tuple(group.static for group in groups),
            self.schedule,
            sampler,
            steps,
            self._shape(size) if latents is None else latents.shape[1:],
            self.autoencoder.config.downsampling,
        )
        if seen is None:
            seen = self._seen_of(plan.shape)
        inputs = inputs_of(steps, latents, strength, known, mask, seen, control)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        arrays = tuple(group.arrays for group in groups)
        with mesh.used(self.devices):
            found = sample_latents(plan, arrays, keys, guidance_rescale, inputs)
        return mesh.fetch(found)

    def programs(
        self, groups: Sequence[Group], count: int, settings: SampleSettings
    ) -> dict[str, Compilable]:
        """See `Pipeline.programs`."""
        shape = self._shape(None)
        statics = tuple(group.static for group in groups)
        factor = self.autoencoder.config.downsampling
        plan = Program(statics, self.schedule, settings.sampler, settings.steps, shape, factor)
        inputs = inputs_of(settings.steps, None, None, None, None, self._seen_of(shape), None)
        rescale = jax.ShapeDtypeStruct((), jnp.float32)
        arrays = tuple(group.arrays for group in groups)
        latents = jax.ShapeDtypeStruct((min(count, self._at_once), *shape), jnp.float32)
        return {
            "sampling": Compilable(
                sample_latents, (plan, arrays, shape_of_keys(count), rescale, inputs)
            ),
            "decoding": decoding(self.autoencoder, latents),
        }

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        height, width = size or (self.resolution, self.resolution)
        factor = self.autoencoder.config.downsampling
        if height < 1 or width < 1 or height % factor or width % factor:
            raise UserError(
                f"size: found {height} high and {width} wide, expected pixels divisible by {factor}"
            )
        return height // factor, width // factor, self.autoencoder.config.latent_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    """See `StableDiffusion.loss`.

    Attributes:
        factor: pixels along a side of a latent.
        seen: of an inpainting model: the shape of latents [h, w, c] → what it sees beside them.
    """

    schedule: NoiseSchedule
    factor: int
    min_snr_gamma: float
    noise_offset: float
    remat: bool
    seen: Callable[[tuple[int, ...]], np.ndarray | None] | None

    def __call__(
        self, denoiser: unet.UNet, targets: vae.Posterior, text: TextStates, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        latent_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        unmix = None if text.apart is None else losses.Unmix(text.apart)
        latents = jax.vmap(vae.Posterior.sample)(targets, latent_keys)
        added = added_of(text, latents.shape, self.factor)
        seen = None if self.seen is None else self.seen(latents.shape[1:])
        predict = inpainting.told(denoiser, seen)
        each, metrics = losses.denoising_loss(
            functools.partial(predict, added=added, remat=self.remat, control=unmix),
            self.schedule,
            latents,
            text.states,
            noise_keys,
            min_snr_gamma=self.min_snr_gamma or None,
            noise_offset=self.noise_offset,
        )
        return (each, metrics) if unmix is None else unmix.added(each, metrics)


@nnx.jit
def _encode(autoencoder: vae.AutoencoderKL, images: jax.Array) -> vae.Posterior:
    return on_own(vae.AutoencoderKL.encode, autoencoder, images)


@nnx.jit
def _decode(autoencoder: vae.AutoencoderKL, latents: jax.Array) -> jax.Array:
    return jnp.clip(on_own(vae.AutoencoderKL.decode, autoencoder, latents), 0, 1)
