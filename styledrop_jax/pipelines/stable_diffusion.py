"""Stable Diffusion 1.x and 2.x: an autoencoder, a U-Net over noisy latents, a CLIP text tower (arXiv 2112.10752)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.files import read_json
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.rules import Rules
from styledrop_jax.models.tokenizer import load_tokenizer, tokenize
from styledrop_jax.pipelines.base import (
    Edit,
    Group,
    Pipeline,
    SampleSettings,
    TrainSettings,
    distinct_rows,
)
from styledrop_jax.sampling import schedulers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.training import losses
from styledrop_jax.tree import chunks

_TEXT_BATCH = 16
_IMAGE_BATCH = 4  # of 768 pixels the autoencoder's activations are gigabytes

Control = Callable[[jax.Array, str, jax.Array, jax.Array], jax.Array]
"""Edits the cross-attention while images are drawn: (weights, place, step, branch) → the weights to use instead.

`weights` and `place` are those of `unet.UNet.__call__`; `step` counts from 0, `branch` over all branches of all groups,
both traced int32 scalars. A `jax.tree_util.Partial` may hold arrays, which can change without compiling anew.
"""


class Text(NamedTuple):
    """What the denoiser sees of prompts: `states` [b, t, c], the last layer's after the final norm.

    In training `apart` [b, t, 2] may say which tokens belong to one half of a picture; see `losses.unmix_loss`.
    """

    states: jax.Array
    apart: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(Pipeline):
    """A loaded Stable Diffusion: what it is made of, and what one does with it.

    Attributes:
        denoiser: predicts the noise or v. autoencoder: images ↔ latents. text: prompts → features.
        schedule: the noise of each timestep, and which of the two the denoiser predicts.
    """

    controllable: ClassVar[bool] = True
    denoiser: unet.UNet
    autoencoder: vae.AutoencoderKL
    text: clip.ClipText
    schedule: NoiseSchedule

    @property
    def resolution(self) -> int:
        """Pixels along one side of the images it was trained on, and draws unless told otherwise."""
        return self.denoiser.config.sample_size * self.autoencoder.config.downsampling

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, pixels, of about that aspect and the area of `resolution`², divisible by the codec's."""
        factor, scale = (
            self.autoencoder.config.downsampling,
            self.resolution / math.sqrt(height * width),
        )
        return tuple(max(round(scale * side / factor), 1) * factor for side in (height, width))

    def text_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts → token ids [b, t] int32."""
        return tokenize(
            self.tokenizer,
            list(map(self.expand, prompts)),
            self.text.config.max_position_embeddings,
        )

    def text_features(self, tower: clip.ClipText, ids: jax.Array) -> Text:
        """Token ids [b, t] → features; pure."""
        return Text(tower(ids).last_hidden_state)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts → features; each distinct prompt is computed once, in batches of one fixed size."""

        def encode(distinct: list[str]) -> Text:
            states = [
                _text(self.text, chunk) for chunk in chunks(self.text_ids(distinct), _TEXT_BATCH)
            ]
            return Text(jnp.concatenate(states)[: len(distinct)])

        return distinct_rows(prompts, encode)

    def encode_images(self, images: np.ndarray) -> vae.Posterior:
        """Images [b, h, w, 3], uint8 or float in [0, 1], sides divisible by the codec's → NumPy arrays [b, h', w', c].

        The mean is what to take for an image; with both cached, training can sample other latents at each step.
        """
        images = np.asarray(images, np.float32) / (255 if images.dtype == np.uint8 else 1)
        parts = [_encode(self.autoencoder, chunk) for chunk in chunks(images, _IMAGE_BATCH)]
        return vae.Posterior(*(np.concatenate(x)[: len(images)] for x in zip(*parts, strict=True)))

    def decode_latents(self, latents: np.ndarray, batch_size: int = _IMAGE_BATCH) -> np.ndarray:
        """Latents [b, h, w, c] → images [b, h·f, w·f, 3] float32 in [0, 1], `batch_size` at a time."""
        return np.concatenate(
            [_decode(self.autoencoder, chunk) for chunk in chunks(latents, batch_size)]
        )[: len(latents)]

    def loss(
        self,
        denoiser: unet.UNet,
        targets: vae.Posterior,
        text: Text,
        keys: jax.Array,
        settings: TrainSettings,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The denoising loss of latents drawn from `targets`, plus the `losses.Unmix` of `text.apart` if it is given.

        `settings.remat` goes without `apart`.
        """
        latent_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        unmix = None if text.apart is None else losses.Unmix(text.apart)
        each, metrics = losses.denoising_loss(
            functools.partial(denoiser, remat=settings.remat, control=unmix),
            self.schedule,
            jax.vmap(vae.Posterior.sample)(targets, latent_keys),
            text.states,
            noise_keys,
            min_snr_gamma=settings.min_snr_gamma or None,
            noise_offset=settings.noise_offset,
        )
        return (each, metrics) if unmix is None else unmix.added(each, metrics)

    def generate(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: SampleSettings,
        edit: Edit | None = None,
        control: Control | None = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], or of the edit's size, float32 in [0, 1].

        Each depends on its own seed, prompts and picture alone. An edit starts from the noised latents of the pictures
        (SDEdit 2108.01073), and keeps those outside its region.
        """
        given = {}
        if edit is not None:
            given = {"latents": edit.own.mode(), "strength": edit.strength}
            if edit.region is not None:
                factor, (n, h, w, _) = self.autoencoder.config.downsampling, given["latents"].shape
                mask = edit.region.reshape(h, factor, w, factor).any(axis=(1, 3))
                mask = np.broadcast_to(mask[None, ..., None], (n, h, w, 1))
                given |= {"known": given["latents"], "mask": mask}
        latents = self.sample(
            groups,
            seeds,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance_rescale=settings.guidance_rescale,
            control=control,
            **given,
        )
        return self.decode_latents(latents, min(len(seeds), _IMAGE_BATCH))

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
        control: Control | None = None,
    ) -> np.ndarray:
        """Draws one batch of latents; every image depends on its own seed, prompt and inputs alone.

        Args:
            groups: see `base.Group`; `text` is a `Text`, and the weights [steps, k] are of the denoiser's outputs.
                Classifier-free guidance of scale s weights the prompt with s and the negative prompt with 1 - s.
            seeds: one an image. Its first noise depends neither on the sampler nor on the steps.
            sampler: a name in `schedulers.SAMPLERS`, or a function like those.
            steps: from pure noise; `strength` takes a share of them.
            guidance_rescale: share in [0, 1] by which the guided output's deviation is pulled back to that of the first
                branch (2305.08891 section 3.4).
            size: height and width of the images in pixels; None is a square of `resolution`. Latents have their own.
            latents: [b, h, w, c] to start from: noise of unit variance, or with `strength` the latents of images.
            strength: in [0, 1], how much of `latents` is redrawn (SDEdit 2108.01073).
            known, mask: latents [b, h, w, c] to keep where the mask [b, h, w, 1], bool or float, is 0; 1 is to draw.
            control: edits the attention; see `Control`.

        Returns:
            latents [b, h, w, c] float32

        Raises:
            UserError: the sampler is unknown, or a size, number of steps or strength does not fit.
            ValueError: what belongs together is not given together.
        """
        if any(len(group.weights) != steps for group in groups):
            raise ValueError(
                f"weights of {[len(group.weights) for group in groups]} steps, expected {steps}"
            )
        if strength is not None and latents is None:
            raise ValueError("strength needs latents")
        shape = self._shape(size) if latents is None else latents.shape[1:]
        plan = _Program(
            tuple(group.static for group in groups), self.schedule, sampler, steps, shape
        )
        inputs = _Inputs(
            latents=latents,
            start=None if strength is None else schedulers.sdedit_start(steps, strength),
            known=known,
            mask=None if mask is None else np.asarray(mask, np.float32),
            # traced, for its arrays; a second Partial would hide those of a first
            control=control
            if control is None or isinstance(control, Partial)
            else Partial(control),
        )
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        return np.asarray(
            _sample(plan, tuple(group.arrays for group in groups), keys, guidance_rescale, inputs)
        )

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        height, width = size or (self.resolution, self.resolution)
        factor = self.autoencoder.config.downsampling
        if height < 1 or width < 1 or height % factor or width % factor:
            raise UserError(
                f"size: found {height} high and {width} wide, expected pixels divisible by {factor}"
            )
        return height // factor, width // factor, self.autoencoder.config.latent_channels


class _Kind(NamedTuple):
    """How a component of the diffusers layout is read: its config, its module, their names, its weights' file."""

    config: type
    module: type
    rules: Rules
    stem: str


_KINDS = {
    "unet": _Kind(unet.Config, unet.UNet, unet.RULES, "diffusion_pytorch_model"),
    "vae": _Kind(vae.Config, vae.AutoencoderKL, vae.RULES, "diffusion_pytorch_model"),
    "text_encoder": _Kind(clip.TextConfig, clip.ClipText, clip.RULES, "model"),
}
_TEXT_1 = clip.TextConfig.vit_l_14(projection=False)
_WIDER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
_TEXT_2 = dataclasses.replace(_TEXT_1, hidden_act="gelu", **_WIDER)
_PRESETS = {
    1: {"unet": unet.Config.sd15(), "vae": vae.Config.sd(), "text_encoder": _TEXT_1},
    2: {"unet": unet.Config.sd21(), "vae": vae.Config.sd(), "text_encoder": _TEXT_2},
}
"""Configs by major version: a single file has none."""
_BASE_2_SAMPLE_SIZE = 64  # of the 2.x that predict the noise; those that predict v draw 768 pixels
_SCHEDULE = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
)
_TOKENIZER = "openai/clip-vit-large-patch14"
_PADDING_2 = "!"  # 2.x was trained on texts padded with the token 0


def load(name: str, dtype: jnp.dtype = jnp.float32) -> StableDiffusion:
    """Loads a Stable Diffusion 1.x or 2.x by name.

    Args:
        name: "emoji64"; a local diffusers folder; "owner/name" from the cache or hub; or a single `.safetensors` file.
            With such a file `tuned.safetensors` comes neither a tokenizer nor a schedule: they are taken from
            `tuned/tokenizer` and `tuned/scheduler` beside it if they are there, else CLIP's from the cache or hub, and
            the released models' with the prediction type that the file's metadata gives.
        dtype: the compute dtype; that of the codec is float32 if its config says `force_upcast`.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    file = Path(name).expanduser()
    if file.is_file() or file.suffix == ".safetensors":
        return _load_file(name, file, dtype)
    folder = hub.resolve_pipeline(name, "sd")
    configs = {
        part: kind.config.from_dict(hub.read_config(folder / part)) for part, kind in _KINDS.items()
    }
    files = {
        part: pretrained.weight_files(folder / part, kind.stem) for part, kind in _KINDS.items()
    }
    tensors = {part: pretrained.Tensors(files[part], kind.rules) for part, kind in _KINDS.items()}
    rest = {"tokenizer": load_tokenizer(folder / "tokenizer"), "schedule": _read_schedule(folder)}
    return _assemble(name, configs, tensors, dtype, hashed=files["unet"], **rest)


def _load_file(name: str, file: Path, dtype: jnp.dtype) -> StableDiffusion:
    tensors = pretrained.Tensors.of_single_file(file)
    version = (
        2 if "text_model.encoder.layers.12.layer_norm1.weight" in tensors["text_encoder"] else 1
    )
    schedule, configs = _schedule_of_file(file, version), dict(_PRESETS[version])
    if version == 2 and schedule.prediction_type == "epsilon":
        configs["unet"] = dataclasses.replace(configs["unet"], sample_size=_BASE_2_SAMPLE_SIZE)
    beside = file.with_suffix("") / "tokenizer"
    if beside.is_dir():
        tokenizer = load_tokenizer(beside)
    else:
        tokenizer = load_tokenizer(hub.resolve(_TOKENIZER, files=("*.json", "*.txt")))
        if version == 2:
            tokenizer.pad_token = _PADDING_2
    return _assemble(
        name, configs, tensors, dtype, hashed=[file], tokenizer=tokenizer, schedule=schedule
    )


def _schedule_of_file(file: Path, version: int) -> NoiseSchedule:
    beside = file.with_suffix("")
    with pretrained.open_safetensors(file) as handle:
        said = (handle.metadata() or {}).get("modelspec.prediction_type")
    said = "v_prediction" if said == "v" else said
    if (beside / "scheduler").is_dir():
        schedule = _read_schedule(beside)
        if said not in (None, schedule.prediction_type):
            raise UserError(
                f"{beside / 'scheduler'}: prediction_type is {schedule.prediction_type!r}, expected {said!r}, as the "
                f"metadata of {file.name} says"
            )
        return schedule
    if said is None and version == 2:
        raise UserError(
            f"{file}: a 2.x model that does not say whether it predicts the noise or v; expected "
            f"modelspec.prediction_type in its metadata, or its scheduler_config.json in {beside / 'scheduler'}"
        )
    return dataclasses.replace(_SCHEDULE, prediction_type=said or "epsilon")


def _read_schedule(folder: Path) -> NoiseSchedule:
    return NoiseSchedule.from_dict(read_json(folder / "scheduler" / "scheduler_config.json"))


def _assemble(
    name: str,
    configs: dict[str, Any],
    tensors: Mapping[str, pretrained.Tensors],
    dtype: jnp.dtype,
    *,
    hashed: Sequence[Path],
    **rest: Any,
) -> StableDiffusion:
    """Loads the components, once it is known that they fit each other."""
    denoiser, codec, text = (configs[part] for part in _KINDS)
    channels = f"the latent_channels {codec.latent_channels} of vae"
    for field, fits, expected in (
        (
            "cross_attention_dim",
            text.hidden_size,
            f"the hidden_size {text.hidden_size} of text_encoder",
        ),
        ("in_channels", codec.latent_channels, channels),
        ("out_channels", codec.latent_channels, channels),
    ):
        if (found := getattr(denoiser, field)) != fits:
            raise UserError(f"{name}: unet has {field} {found}, expected {expected}")
    configs["text_encoder"] = dataclasses.replace(
        text, projection="text_projection.weight" in tensors["text_encoder"]
    )

    def build(part: str, dtype: jnp.dtype) -> nnx.Module:
        kind, config = _KINDS[part], configs[part]
        make = lambda: kind.module(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
        return pretrained.load(make, tensors[part], kind.rules, source=f"{part} of {name}")

    return StableDiffusion(
        name=name,
        base_hash=pretrained.hash_files(hashed),
        denoiser=build("unet", dtype),
        autoencoder=build("vae", jnp.float32 if codec.force_upcast else dtype),
        text=build("text_encoder", dtype),
        **rest,
    )


def load_component(folder: Path, part: str, dtype: jnp.dtype = jnp.float32) -> nnx.Module:
    """One component, "unet", "vae" or "text_encoder", from its own folder."""
    kind = _KINDS[part]
    config = kind.config.from_dict(hub.read_config(folder))
    tensors = pretrained.Tensors(pretrained.weight_files(folder, kind.stem), kind.rules)
    build = lambda: kind.module(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
    return pretrained.load(build, tensors, kind.rules, source=str(folder))


@nnx.jit
def _text(tower: clip.ClipText, ids: jax.Array) -> jax.Array:
    return tower(ids).last_hidden_state


@nnx.jit
def _encode(codec: vae.AutoencoderKL, images: jax.Array) -> vae.Posterior:
    return codec.encode(images)


@nnx.jit
def _decode(codec: vae.AutoencoderKL, latents: jax.Array) -> jax.Array:
    return jnp.clip(codec.decode(latents), 0, 1)


class _Program(NamedTuple):
    """What a program is compiled for. `shape` is h, w, c of the latents."""

    groups: tuple[tuple[nnx.GraphDef, bool], ...]
    schedule: NoiseSchedule
    sampler: str | schedulers.Sampler
    steps: int
    shape: tuple[int, int, int]


class _Inputs(NamedTuple):
    """What may be given to a program or not; `start` is the first step that is taken of image-to-image."""

    latents: jax.Array | None
    start: int | None
    known: jax.Array | None
    mask: jax.Array | None
    control: Control | None


@functools.partial(jax.jit, static_argnums=0)
def _sample(plan, groups, keys, rescale, inputs):
    """One program: the loop over steps, in it one batched forward for each group, then the weighted sum of outputs."""
    first_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    weights = jnp.concatenate([weights for *_, weights in groups], axis=1)  # [steps, k]
    ends = np.cumsum([group_weights.shape[1] for *_, group_weights in groups])
    branches = jnp.split(jnp.arange(weights.shape[1]), ends[:-1])

    def forward(graphdef, frozen, x, t, step, state, text, branch):
        denoiser = nnx.merge(graphdef, state, frozen)
        edit = (
            None
            if inputs.control is None
            else lambda maps, place: inputs.control(maps, place, step, branch)
        )
        return denoiser(x, jnp.broadcast_to(t, len(x)), text.states, control=edit)

    def predict(x, t, step):
        outputs = [
            jax.vmap(
                functools.partial(forward, graphdef, frozen, x, t, step),
                in_axes=(None if shared else 0, 0, 0),
            )(states, text, numbers)
            for (graphdef, shared), (states, frozen, text, _), numbers in zip(
                plan.groups, groups, branches, strict=True
            )
        ]
        outputs = jnp.concatenate(outputs)  # [k, b, h, w, c]
        # fewer bits, which accelerators would take, are seen at a large guidance scale
        guided = jnp.einsum(
            "k,kbhwc->bhwc", weights[step], outputs, precision=jax.lax.Precision.HIGHEST
        )
        return schedulers.guidance(
            outputs[0], guided, 0.0, rescale=rescale
        )  # at scale 0 it only rescales

    return schedulers.sample(
        predict,
        _first(plan, first_keys, inputs),
        plan.schedule,
        steps=plan.steps,
        sampler=plan.sampler,
        keys=step_keys,
        start=0 if inputs.start is None else inputs.start,
        known=inputs.known,
        mask=inputs.mask,
    )


def _first(plan: _Program, keys: jax.Array, inputs: _Inputs) -> jax.Array:
    """What the first step is taken from: noise, the given latents, or those noised to the level of `start`."""
    if inputs.latents is not None and inputs.start is None:
        return inputs.latents
    noise = jax.vmap(lambda key: jax.random.normal(key, plan.shape))(keys)
    if inputs.latents is None:
        return noise
    times = jnp.asarray(schedulers.timesteps(plan.schedule, plan.steps, plan.sampler))
    noised = plan.schedule.add_noise(
        inputs.latents, noise, times[jnp.minimum(inputs.start, plan.steps - 1)]
    )
    return jnp.where(inputs.start < plan.steps, noised, inputs.latents)
