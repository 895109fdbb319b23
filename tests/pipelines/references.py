"""The parts of a Stable Diffusion of the reference libraries, tiny and random."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from styledrop_jax.models.tokenizer import train_tokenizer
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

_Model = TypeVar("_Model", bound=torch.nn.Module)
LENGTH = 12  # tokens that the text tower reads
SCHEDULER = "scheduler/scheduler_config.json"
_SCHEDULE = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
)


def schedule(prediction: str) -> NoiseSchedule:
    """Of the public models, "epsilon" or "v_prediction"."""
    return dataclasses.replace(_SCHEDULE, prediction_type=prediction)


def noisy(model: _Model) -> _Model:
    """Every weight random: at their initial zeros, norms and biases would hide what they do."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            param.copy_(torch.randn_like(param) * 0.2 + is_scale)
    return model.train(False)


def tower(
    tokenizer: CLIPTokenizer, *, layers: int, hidden_act: str = "quick_gelu"
) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=layers,
        max_position_embeddings=LENGTH,
        hidden_act=hidden_act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return noisy(CLIPTextModel(config))


def parts() -> dict[str, Any]:
    """{folder: part} but for the scheduler."""
    torch.manual_seed(0)
    captions = ["a cat in watercolor painting style", "a red house", "a dog"]
    tokenizer = train_tokenizer(captions, 530, LENGTH)
    denoiser = UNet2DConditionModel(
        sample_size=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = tower(tokenizer, layers=2)
    return {
        "unet": noisy(denoiser),
        "vae": noisy(autoencoder),
        "text_encoder": text,
        "tokenizer": tokenizer,
    }


def save(parts: Mapping[str, Any], folder: Path, prediction: str) -> None:
    """Writes a diffusers folder, as the reference libraries do."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    save_scheduler(folder, schedule(prediction))


def save_scheduler(folder: Path, schedule: NoiseSchedule) -> None:
    DDIMScheduler(**without_class(schedule)).save_pretrained(folder / "scheduler")


def without_class(schedule: NoiseSchedule) -> dict[str, Any]:
    """The arguments of the reference's DDIM scheduler."""
    values = schedule.to_dict()
    del values["_class_name"]
    return values
