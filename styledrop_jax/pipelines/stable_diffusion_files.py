"""A Stable Diffusion 1.x, 2.x or XL from the files of a diffusers folder, or from a single file."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io import hub, identity, prediction_type
from styledrop_jax.io.files import read_object
from styledrop_jax.io.identity import Part
from styledrop_jax.io.paths import shown_path
from styledrop_jax.io.pretrained import Tensors
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.clip_config import PairConfig
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer
from styledrop_jax.pipelines import autoencoders, inpainting
from styledrop_jax.pipelines.autoencoders import VAE
from styledrop_jax.pipelines.components import DIFFUSERS, TRANSFORMERS, Component, Source
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.sampling import schedulers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

_LOG = logging.getLogger(__name__)

UNET = Component(
    folder="unet",
    config=unet.Config.from_dict,
    module=unet.UNet,
    rules=unet.RULES,
    stem=DIFFUSERS,
)
TEXT = Component(
    folder="text_encoder",
    config=clip.TextConfig.from_dict,
    module=clip.ClipText,
    rules=clip.RULES,
    stem=TRANSFORMERS,
)
TEXT_2 = dataclasses.replace(TEXT, folder="text_encoder_2")
_SCHEDULER = "scheduler/scheduler_config.json"
_INDEX = "model_index.json"
LAYOUT = hub.Layout(
    weights={part.folder: part.stem for part in (UNET, VAE, TEXT)},
    tokenizers=("tokenizer",),
    others=(_SCHEDULER,),
)
LAYOUT_XL = hub.Layout(
    weights={part.folder: part.stem for part in (UNET, VAE, TEXT, TEXT_2)},
    tokenizers=("tokenizer", "tokenizer_2"),
    others=(_SCHEDULER, _INDEX),
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
XL = "xl"
PRESETS: dict[int | str, dict[str, Any]] = {
    1: {"unet": unet.Config.sd15(), "vae": vae.Config.sd(), "text_encoder": _TEXT_1},
    2: {"unet": unet.Config.sd21(), "vae": vae.Config.sd(), "text_encoder": _TEXT_2},
    XL: {
        "unet": unet.Config.sdxl(),
        "vae": vae.Config.sdxl(),
        "text_encoder": _TEXT_1,
        "text_encoder_2": clip.TextConfig.open_clip_big_g(),
    },
}
"""Configs by version: a single file has none."""
NAMED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": PRESETS[1],
    "stabilityai/stable-diffusion-2-1": PRESETS[2],
}
NAMED_XL = {"stabilityai/stable-diffusion-xl-base-1.0": PRESETS[XL]}
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
_FIRST = "conv_in.weight"  # of the U-Net, which tells how many channels that takes
_PADDING_2 = "!"  # 2.x, and XL's second tower, were trained on texts padded with the token 0


def shapes(
    source: Source, configs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> StableDiffusion:
    """A Stable Diffusion without its weights: every array is a shape. Its schedule is that of 1.x.

    Args:
        source: see `load_folder`.
        configs: of its components, by their folders.
        tokenizer: its own, or a stand-in.
    """
    codec = autoencoders.config(source, configs[VAE.folder])
    text: clip.ClipText | clip.TextPair = source.shapes(TEXT, configs[TEXT.folder])
    if TEXT_2.folder in configs:
        second = source.shapes(TEXT_2, configs[TEXT_2.folder])
        text = clip.TextPair(text, second, _pair(tokenizer))
    return StableDiffusion(
        name=source.name,
        base_hash="",
        denoiser=source.shapes(UNET, configs[UNET.folder]),
        autoencoder=source.shapes(VAE, codec),
        text=text,
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
    return _assemble(source, parts, tokenizer, _schedule(source.path / _SCHEDULER))


def load_folder_xl(source: Source) -> StableDiffusion:
    """Loads a Stable Diffusion XL from its folder; of `model_index.json`, if it is there, whether
    an empty prompt is zeros.

    Raises:
        UserError: a file is missing or damaged, or does not fit, or it is the refiner.
    """
    parts = {}
    for component in (UNET, VAE, TEXT, TEXT_2):  # of which the refiner has no first tower
        parts[component.folder] = source.open(component)
    tokenizer = load_tokenizer(source.path / "tokenizer")
    second = load_tokenizer(source.path / "tokenizer_2")
    if tokenizer.get_vocab() != second.get_vocab():
        raise UserError(
            f"{source.path / 'tokenizer_2'}: found another vocabulary than that of tokenizer, "
            "expected the same, as Stable Diffusion XL has it"
        )
    check_tokenizer(second, parts["text_encoder_2"].config, source=f"tokenizer_2 of {source.name}")
    index = source.path / _INDEX
    values = read_object(index) if index.is_file() else {}
    zeros = values.get("force_zeros_for_empty_prompt", True)
    if not isinstance(zeros, bool):
        raise UserError(
            f"{index}: force_zeros_for_empty_prompt is {shown(zeros)}, expected true or false"
        )
    pair = _pair(tokenizer, str(second.pad_token), zero_empty=zeros)
    return _assemble(source, parts, tokenizer, _schedule(source.path / _SCHEDULER), pair)


def _schedule(file: Path) -> NoiseSchedule:
    """The noise schedule of a scheduler's config; says so if its way of sampling is not ours."""
    config = read_object(file)
    schedule = NoiseSchedule.from_dict(config)
    if config["_class_name"] not in schedulers.OF_CLASSES:
        _LOG.warning(
            f"{shown_path(file)}: a {config['_class_name']}, which is no sampler here: its noise "
            "schedule is taken, and config.round_1.sample.sampler samples"
        )
    return schedule


def _pair(
    tokenizer: PreTrainedTokenizerBase, padding: str = _PADDING_2, *, zero_empty: bool = True
) -> PairConfig:
    """`padding` is the second tower's."""
    ids: Any = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids.append(tokenizer.convert_tokens_to_ids(padding))
    end, first, second = ids
    return PairConfig(end=end, first_padding=first, second_padding=second, zero_empty=zero_empty)


def load_file(source: Source) -> StableDiffusion:
    """Loads a Stable Diffusion that is a single safetensors file.

    With such a file `tuned.safetensors` comes no tokenizer: it is taken from `tuned/tokenizer`
    beside it if that is there, else CLIP's from the Hugging Face cache or hub. What it predicts is
    that of `tuned/scheduler` and of the marks that `prediction_type.read` knows. Without any, a
    1.x, an XL and an inpainting model predict the noise, and another 2.x is refused. An XL's second
    tower is padded, and its empty prompts are zeros, as in the public model.

    Raises:
        UserError: the file or the tokenizer is missing or damaged, or it is no such model.
    """
    version, parts, schedule = _of_file(source.path)
    tokenizer = _tokenizer_of_file(source.path, version)
    pair = None
    if version == XL:
        pair = _pair(tokenizer)
    return _assemble(source, parts, tokenizer, schedule, pair)


def configs_of_file(file: Path) -> dict[str, Any]:
    """The configs of a single file's components, by the folders of the diffusers layout; see
    `load_file`."""
    _, parts, _ = _of_file(file)
    return {folder: part.config for folder, part in parts.items()}


def _of_file(file: Path) -> tuple[int | str, dict[str, Part], NoiseSchedule]:
    """The version of a single file, its components, of which no data is read yet, and its
    schedule."""
    tensors = Tensors.of_single_file(file)
    is_2 = "text_model.encoder.layers.12.layer_norm1.weight" in tensors["text_encoder"]
    version = XL if TEXT_2.folder in tensors else 2 if is_2 else 1
    first = tensors["unet"].places.get(_FIRST)
    channels = PRESETS[version]["unet"].in_channels
    if first is not None and len(first.shape) == 4:
        channels = first.shape[1]
    inpaints = channels == inpainting.channels(PRESETS[version]["vae"].latent_channels)
    schedule = schedule_of_file(file, version, inpaints=inpaints)
    parts = {}
    for folder, config in PRESETS[version].items():
        if folder == "unet":
            config = dataclasses.replace(config, in_channels=channels)
            if version == 2 and schedule.prediction_type == "epsilon":
                config = dataclasses.replace(config, sample_size=_BASE_2_SAMPLE_SIZE)
        parts[folder] = Part(config, tensors[folder])
    return version, parts, schedule


def _tokenizer_of_file(file: Path, version: int | str) -> PreTrainedTokenizerBase:
    beside = file.with_suffix("") / "tokenizer"
    if beside.is_dir():
        return load_tokenizer(beside)
    try:
        folder = hub.resolve(_TOKENIZER, (hub.Layout(tokenizers=("",)),))
    except UserError as error:
        raise UserError(f"{beside}: no tokenizer there, and {error}") from None
    tokenizer = load_tokenizer(folder)
    if version == 2:
        tokenizer.pad_token = _PADDING_2
    return tokenizer


def schedule_of_file(file: Path, version: int | str, *, inpaints: bool = False) -> NoiseSchedule:
    """The noise schedule of a single file of Stable Diffusion `version`, 1, 2 or `XL`, an
    inpainting model's or not; see `load_file`.

    Raises:
        UserError: its marks contradict each other, or it is a 2.x that has none.
    """
    marks = prediction_type.read(file, version=version)
    beside = f"{file.stem}/{_SCHEDULER}"
    schedule = None
    if (file.parent / beside).parent.is_dir():
        schedule = _schedule(file.parent / beside)
        marks.prediction[beside] = schedule.prediction_type
        marks.zero_snr[beside] = schedule.rescale_betas_zero_snr
    prediction, zero_snr = marks.agreed()
    if schedule is not None:
        return schedule
    if prediction is None and version == 2 and not inpaints:
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
    pair: PairConfig | None = None,
) -> StableDiffusion:
    """Loads the components, once it is known that they fit each other; `pair` is of an XL."""
    denoiser = parts["unet"]
    codec, autoencoder = autoencoders.build(source, parts["vae"])
    has_projection = "text_projection.weight" in parts["text_encoder"].tensors
    config = dataclasses.replace(parts["text_encoder"].config, projection=has_projection)
    roles = {"denoiser": denoiser, "autoencoder": codec}
    roles["text"] = Part(config, parts["text_encoder"].tensors)
    if pair is not None:
        roles["text_2"] = parts["text_encoder_2"]
    _check_sizes(source.name, {name: part.config for name, part in roles.items()})
    # Nothing is read at the end token, so that the projection does not matter.
    unprojected = dataclasses.replace(config, projection=False)
    check_tokenizer(tokenizer, unprojected, source=f"tokenizer of {source.name}")
    text: clip.ClipText | clip.TextPair = source.build(TEXT, roles["text"])
    if pair is not None:
        text = clip.TextPair(text, source.build(TEXT_2, roles["text_2"]), pair)
    return StableDiffusion(
        name=source.name,
        base_hash=identity.of_base(roles, tokenizer, schedule, pair),
        denoiser=source.build(UNET, denoiser),
        autoencoder=autoencoder,
        text=text,
        tokenizer=tokenizer,
        schedule=schedule,
    )


def _check_sizes(name: str, configs: Mapping[str, Any]) -> None:
    """UserError unless the configs of an `_assemble`'s roles fit each other."""
    denoiser: unet.Config = configs["denoiser"]
    second: clip.TextConfig | None = configs.get("text_2")
    if second is not None and not second.projection:
        raise UserError(
            f"{name}: text_encoder_2 is a CLIPTextModel, expected CLIPTextModelWithProjection"
        )
    pooled = 0 if second is None else second.projection_dim
    if denoiser.pooled_dim != pooled:
        whose = "as there is no text_encoder_2" if second is None else "as text_encoder_2 gives it"
        raise UserError(
            f"{name}: unet takes a pooled text of width {denoiser.pooled_dim}, expected {pooled}, "
            f"{whose}"
        )
    width = configs["text"].hidden_size + (0 if second is None else second.hidden_size)
    if denoiser.cross_attention_dim != width:
        towers = "text_encoder" if second is None else "text_encoder and text_encoder_2 together"
        raise UserError(
            f"{name}: unet has cross_attention_dim {denoiser.cross_attention_dim}, expected the "
            f"hidden_size {width} of {towers}"
        )
    channels = configs["autoencoder"].latent_channels
    inpaints = inpainting.channels(channels)
    if denoiser.in_channels not in (channels, inpaints):
        raise UserError(
            f"{name}: unet has in_channels {denoiser.in_channels}, expected the latent_channels "
            f"{channels} of vae, or {inpaints} of an inpainting model"
        )
    if denoiser.out_channels != channels:
        raise UserError(
            f"{name}: unet has out_channels {denoiser.out_channels}, expected the latent_channels "
            f"{channels} of vae"
        )
