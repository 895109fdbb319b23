"""A Stable Diffusion 1.x or 2.x from the files of a diffusers folder, or from a single file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, identity, prediction_type
from styledrop_jax.io.files import read_object
from styledrop_jax.io.identity import Part
from styledrop_jax.io.pretrained import Tensors
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer
from styledrop_jax.pipelines.components import DIFFUSERS, TRANSFORMERS, Component, Source
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

UNET = Component(
    folder="unet",
    config=unet.Config.from_dict,
    module=unet.UNet,
    rules=unet.RULES,
    stem=DIFFUSERS,
)
VAE = Component(
    folder="vae",
    config=vae.Config.from_dict,
    module=vae.AutoencoderKL,
    rules=vae.RULES,
    stem=DIFFUSERS,
    upcasts=True,
)
TEXT = Component(
    folder="text_encoder",
    config=clip.TextConfig.from_dict,
    module=clip.ClipText,
    rules=clip.RULES,
    stem=TRANSFORMERS,
)
_SCHEDULER = "scheduler/scheduler_config.json"
LAYOUT = hub.Layout(
    kind="sd",
    weights={part.folder: part.stem for part in (UNET, VAE, TEXT)},
    tokenizer="tokenizer",
    others=(_SCHEDULER,),
)

_TEXT_1 = clip.TextConfig.vit_l_14(projection=False)
_TEXT_2 = dataclasses.replace(
    _TEXT_1,
    hidden_act="gelu",
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=23,
)
PRESETS = {
    1: {"unet": unet.Config.sd15(), "vae": vae.Config.sd(), "text_encoder": _TEXT_1},
    2: {"unet": unet.Config.sd21(), "vae": vae.Config.sd(), "text_encoder": _TEXT_2},
}
"""Configs by major version: a single file has none."""
NAMED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": PRESETS[1],
    "stabilityai/stable-diffusion-2-1": PRESETS[2],
}
"""Configs by the hub's name of the model."""
_BASE_2_SAMPLE_SIZE = 64  # of the 2.x that predict the noise; those that predict v have 768 pixels
_SCHEDULE = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
)
_TOKENIZER = "openai/clip-vit-large-patch14"
_PADDING_2 = "!"  # 2.x was trained on texts padded with the token 0


def shapes(
    source: Source, configs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> StableDiffusion:
    """A Stable Diffusion without its weights: every array is a shape. Its schedule is that of 1.x.

    Args:
        source: see `load_folder`.
        configs: of its components, by their folders.
        tokenizer: its own, or a stand-in.
    """
    return StableDiffusion(
        name=source.name,
        base_hash="",
        denoiser=source.shapes(UNET, configs[UNET.folder]),
        autoencoder=source.shapes(VAE, configs[VAE.folder]),
        text=source.shapes(TEXT, configs[TEXT.folder]),
        tokenizer=tokenizer,
        schedule=_SCHEDULE,
    )


def load_folder(source: Source) -> StableDiffusion:
    """Loads a Stable Diffusion from its folder.

    Raises:
        UserError: a file is missing or damaged, or does not fit.
    """
    parts = {}
    for component in (UNET, VAE, TEXT):
        parts[component.folder] = source.open(component)
    tokenizer = load_tokenizer(source.path / "tokenizer")
    schedule = NoiseSchedule.from_dict(read_object(source.path / _SCHEDULER))
    return _assemble(source, parts, tokenizer, schedule)


def load_file(source: Source) -> StableDiffusion:
    """Loads a Stable Diffusion that is a single safetensors file.

    With such a file `tuned.safetensors` comes no tokenizer: it is taken from `tuned/tokenizer`
    beside it if that is there, else CLIP's from the Hugging Face cache or hub. What it predicts is
    that of `tuned/scheduler` and of the marks that `prediction_type.read` knows. Without any, a 1.x
    predicts the noise, and a 2.x is refused.

    Raises:
        UserError: the file or the tokenizer is missing or damaged, or it is no such model.
    """
    version, parts, schedule = _of_file(source.path)
    return _assemble(source, parts, _tokenizer_of_file(source.path, version), schedule)


def configs_of_file(file: Path) -> dict[str, Any]:
    """The configs of a single file's components, by the folders of the diffusers layout; see
    `load_file`."""
    _, parts, _ = _of_file(file)
    return {folder: part.config for folder, part in parts.items()}


def _of_file(file: Path) -> tuple[int, dict[str, Part], NoiseSchedule]:
    """The major version of a single file, its components, of which no data is read yet, and its
    schedule."""
    tensors = Tensors.of_single_file(file)
    is_2 = "text_model.encoder.layers.12.layer_norm1.weight" in tensors["text_encoder"]
    version = 2 if is_2 else 1
    schedule = schedule_of_file(file, version)
    parts = {}
    for folder, config in PRESETS[version].items():
        if folder == "unet" and version == 2 and schedule.prediction_type == "epsilon":
            config = dataclasses.replace(config, sample_size=_BASE_2_SAMPLE_SIZE)
        parts[folder] = Part(config, tensors[folder])
    return version, parts, schedule


def _tokenizer_of_file(file: Path, version: int) -> PreTrainedTokenizerBase:
    beside = file.with_suffix("") / "tokenizer"
    if beside.is_dir():
        return load_tokenizer(beside)
    try:
        folder = hub.resolve(_TOKENIZER, (hub.Layout(tokenizer=""),))
    except UserError as error:
        raise UserError(f"{beside}: no tokenizer there, and {error}") from None
    tokenizer = load_tokenizer(folder)
    if version == 2:
        tokenizer.pad_token = _PADDING_2
    return tokenizer


def schedule_of_file(file: Path, version: int) -> NoiseSchedule:
    """The noise schedule of a single file of Stable Diffusion `version`, 1 or 2; see `load_file`.

    Raises:
        UserError: its marks contradict each other, or it is a 2.x that has none.
    """
    marks = prediction_type.read(file, version=version)
    beside = f"{file.stem}/{_SCHEDULER}"
    schedule = None
    if (file.parent / beside).parent.is_dir():
        schedule = NoiseSchedule.from_dict(read_object(file.parent / beside))
        marks.prediction[beside] = schedule.prediction_type
        marks.zero_snr[beside] = schedule.rescale_betas_zero_snr
    prediction, zero_snr = marks.agreed()
    if schedule is not None:
        return schedule
    if prediction is None and version == 2:
        raise UserError(
            f"{file}: a 2.x model that does not say whether it predicts the noise or v; expected "
            f"modelspec.prediction_type in its metadata, or {beside} beside it"
        )
    schedule = dataclasses.replace(_SCHEDULE, prediction_type=prediction or "epsilon")
    if not zero_snr:
        return schedule
    # Such a model has to begin at the last timestep, the only one of pure noise (2305.08891 §3.3).
    return dataclasses.replace(schedule, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def _assemble(
    source: Source,
    parts: Mapping[str, Part],
    tokenizer: PreTrainedTokenizerBase,
    schedule: NoiseSchedule,
) -> StableDiffusion:
    """Loads the components, once it is known that they fit each other."""
    denoiser = parts["unet"]
    autoencoder = parts["vae"]
    has_projection = "text_projection.weight" in parts["text_encoder"].tensors
    config = dataclasses.replace(parts["text_encoder"].config, projection=has_projection)
    text = Part(config, parts["text_encoder"].tensors)
    _check_sizes(source.name, denoiser.config, autoencoder.config, config)
    # Nothing is read at the end token, so that the projection does not matter.
    unprojected = dataclasses.replace(config, projection=False)
    check_tokenizer(tokenizer, unprojected, source=f"tokenizer of {source.name}")
    roles = {"denoiser": denoiser, "autoencoder": autoencoder, "text": text}
    return StableDiffusion(
        name=source.name,
        base_hash=identity.of_base(roles, tokenizer, schedule),
        denoiser=source.build(UNET, denoiser),
        autoencoder=source.build(VAE, autoencoder),
        text=source.build(TEXT, text),
        tokenizer=tokenizer,
        schedule=schedule,
    )


def _check_sizes(
    name: str, denoiser: unet.Config, autoencoder: vae.Config, text: clip.TextConfig
) -> None:
    if denoiser.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{name}: unet has cross_attention_dim {denoiser.cross_attention_dim}, expected the "
            f"hidden_size {text.hidden_size} of text_encoder"
        )
    channels = autoencoder.latent_channels
    for field in ("in_channels", "out_channels"):
        if (found := getattr(denoiser, field)) != channels:
            raise UserError(
                f"{name}: unet has {field} {found}, expected the latent_channels {channels} of vae"
            )
