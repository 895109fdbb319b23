"""The reference's side of sd_vs_reference.py: modules of diffusers and transformers, in the loops of its own trainers.

Those trainers, `examples/dreambooth/train_dreambooth.py` and `train_dreambooth_lora.py`, need accelerate, torchvision
and peft, so they cannot be called here.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from sides import torch_loops
from sides.job import RANK, Job
from sides.torch_loops import LOCAL, WHOLE

_MISSING: dict[str, Any] = dict(
    safety_checker=None, feature_extractor=None, requires_safety_checker=False
)
_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


def prepare(
    job: Job, task: str, *, cached: bool, guidance: float, captions: tuple[str, str]
) -> Callable[[], int]:
    """Loads the model; each call of the result does one turn's work, to the end, and returns its units."""
    if task == "sample":
        return torch_loops.sampling(job, _pipeline(job, job.device == "gpu"), guidance=guidance)
    return _training(job, task, cached=cached, captions=captions)


def check(job: Job, *, guidance: float, captions: tuple[str, str]) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32, with our side's `adapter.npz` and `first.npy`."""
    torch.backends.cudnn.allow_tf32 = False
    model, inputs = _Model(job, captions), np.load(job.work / "check.npz")
    adapter = _attach(model.unet.requires_grad_(False))
    torch_loops.set_values(adapter, job.work / "adapter.npz")
    t = torch.from_numpy(inputs["timesteps"]).to(model.device)
    noise, first = (
        torch.from_numpy(array).permute(0, 3, 1, 2).to(model.device)
        for array in (inputs["noise"], np.load(job.work / "first.npy"))
    )
    rows = np.concatenate([np.arange(len(first)) + start for start in (0, job.batch)])
    with torch.no_grad():
        states = model.encode_text(model.ids[rows])
        latents = model.encode_images(model.pixels[rows]).mode() * model.scale
        output = model.unet(noise, t, states).sample
    loss = model.loss(latents, states, t, noise)
    gradient = torch_loops.flat_gradient(loss, adapter)
    pipeline = _pipeline(job, half=False)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(job.prompts[: len(first)]),
        latents=first,
        num_inference_steps=job.steps,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    found = {"loss": loss, "gradient": gradient, "text": states}
    grids = {"output": output, "latents": latents, "images": images}
    return torch_loops.numpy(
        found | {name: grid.permute(0, 2, 3, 1) for name, grid in grids.items()}
    )


def _pipeline(job: Job, half: bool) -> StableDiffusionPipeline:
    """The whole pipeline with DDIM, in bfloat16 if `half`."""
    dtype = torch.bfloat16 if half else torch.float32
    pipeline = StableDiffusionPipeline.from_pretrained(job.folder, dtype=dtype, **_MISSING, **WHOLE)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline.to(torch_loops.setup(job))


class _Model:
    """The three parts in float32 on the device, and both streams: the subject's images, then those of its class."""

    def __init__(self, job: Job, captions: tuple[str, str]):
        self.device = torch_loops.setup(job)
        unet = UNet2DConditionModel.from_pretrained(
            job.folder / "unet", dtype=torch.float32, **WHOLE
        )
        codec = AutoencoderKL.from_pretrained(job.folder / "vae", dtype=torch.float32, **WHOLE)
        tower = CLIPTextModel.from_pretrained(
            job.folder / "text_encoder", dtype=torch.float32, **LOCAL
        )
        self.schedule = DDPMScheduler.from_pretrained(job.folder / "scheduler", **LOCAL)
        self.unet = unet.to(self.device).train()
        self.autoencoder = codec.to(self.device).requires_grad_(False)
        self.tower = tower.to(self.device).train(False).requires_grad_(False)
        self.scale = codec.config.scaling_factor
        prompts = [caption for caption in captions for _ in range(job.batch)]
        ids = torch_loops.token_ids(job.folder, prompts, tower.config.max_position_embeddings)
        self.ids = ids.to(self.device)  # [2 b, t]
        self.pixels = (
            torch.from_numpy(2 * job.images() - 1).permute(0, 3, 1, 2).contiguous()
        )  # [2 b, 3, r, r], on host

    @torch.no_grad()
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tower(ids).last_hidden_state

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor):
        """Pixels [n, 3, r, r] → the distribution of their latents [n, c, h, w], not scaled."""
        return self.autoencoder.encode(pixels.to(self.device, self.autoencoder.dtype)).latent_dist

    def loss(self, latents, states, t, noise) -> torch.Tensor:
        """DreamBooth's: the subject's error, and its class's with weight 1."""
        noisy = self.schedule.add_noise(latents, noise, t)
        with torch.autocast("cuda", torch.bfloat16, enabled=states.dtype == torch.bfloat16):
            output = self.unet(noisy, t, states).sample
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, t) if velocity else noise
        pairs = zip(output.float().chunk(2), target.float().chunk(2), strict=True)
        return sum(functional.mse_loss(found, wanted) for found, wanted in pairs)


def _attach(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """LoRA on every attention, as hooks; returns {the name in our files: parameter}, sorted."""

    def adapter(down: nn.Parameter, up: nn.Parameter, _module, inputs, out):
        return out + (inputs[0] @ down) @ up

    named = {}
    for name, module in unet.named_modules():
        if name.endswith(_ADAPTED):
            down = nn.Parameter(torch.randn(module.in_features, RANK, device=unet.device) / RANK)
            up = nn.Parameter(torch.zeros(RANK, module.out_features, device=unet.device))
            module.register_forward_hook(functools.partial(adapter, down, up))
            named |= {f"{name}.adapter.down": down, f"{name}.adapter.up": up}
    return dict(sorted(named.items()))


def _training(job: Job, task: str, *, cached: bool, captions: tuple[str, str]) -> Callable[[], int]:
    model = _Model(job, captions)
    if task == "lora":
        parameters = list(_attach(model.unet.requires_grad_(False)).values())
    else:
        parameters = list(model.unet.parameters())
    if job.device == "gpu":  # what the trainers do under `--mixed_precision bf16`
        for frozen in (model.tower, model.autoencoder, *([model.unet] if task == "lora" else [])):
            frozen.to(torch.bfloat16)

    if cached:
        moments = model.encode_images(model.pixels)
        mean, std, kept_states = moments.mean, moments.std, model.encode_text(model.ids)

    def encoded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not cached:
            return model.encode_images(model.pixels[rows]).sample(), model.encode_text(
                model.ids[rows]
            )
        return mean[rows] + std[rows] * torch.randn_like(std[rows]), kept_states[rows]

    def loss() -> torch.Tensor:
        rows = torch.cat([torch.randperm(job.batch) + start for start in (0, job.batch)])
        latents, states = encoded(rows)
        latents = latents * model.scale
        t = torch.randint(
            0, model.schedule.config.num_train_timesteps, (len(rows),), device=model.device
        )
        return model.loss(latents, states, t, torch.randn_like(latents))

    return torch_loops.training(job, parameters, loss)


# ---------------------------------------------------------------------------------------------------- random weights


def _configs(name: str) -> dict[str, dict[str, Any]]:
    """The `config.json` of each part."""
    from styledrop_jax.models import clip, unet, vae

    small = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    denoiser, codec, text = {
        "tiny": (
            dataclasses.replace(
                unet.Config.emoji64(), sample_size=8, cross_attention_dim=32, **small
            ),
            vae.Config(layers_per_block=1, sample_size=16, **small),
            clip.ClipConfig.emoji64(vocab_size=514, width=32, text_layers=1).text,
        ),
        "emoji64": (
            unet.Config.emoji64(),
            vae.Config.emoji64(),
            clip.ClipConfig.emoji64(vocab_size=2048).text,
        ),
        "sd15": (unet.Config.sd15(), vae.Config.sd(), clip.TextConfig.vit_l_14(projection=False)),
    }[name]
    return {"unet": denoiser.to_dict(), "vae": codec.to_dict(), "text_encoder": text.to_dict()}


def write_random(folder: Path, name: str) -> None:
    """A model of the size "tiny", "emoji64" or "sd15" with random weights, in the diffusers layout."""
    from styledrop_jax.models.tokenizer import train_tokenizer

    torch.manual_seed(0)
    configs = _configs(name)
    unet, codec = (
        UNet2DConditionModel.from_config(configs["unet"]),
        AutoencoderKL.from_config(configs["vae"]),
    )
    tower = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    torch_loops.enliven(unet, codec, tower)
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=codec,
        text_encoder=tower,
        tokenizer=train_tokenizer([], 514, tower.config.max_position_embeddings),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        **_MISSING,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
