"""The reference's side of sd_vs_reference.py.

Modules of diffusers and transformers run in the loops of diffusers' own trainers. Those trainers,
`examples/dreambooth/train_dreambooth.py` and `train_dreambooth_lora.py`, need accelerate,
torchvision and peft, so they cannot be called here.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from sides import torch_loops
from sides.job import RANK, Job

_MISSING: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


def prepare(
    job: Job, task: str, *, cached: bool, guidance_scale: float, captions: tuple[str, str]
) -> Callable[[], int]:
    """Loads the model.

    Returns:
        what does one turn's work, to the end, and returns its units.
    """
    if task == "sample":
        pipeline = _pipeline(job, getattr(torch, job.dtype))
        return torch_loops.sampling(job, pipeline, guidance_scale=guidance_scale)
    return _training(job, task, cached=cached, captions=captions)


def check(job: Job, *, guidance_scale: float, captions: tuple[str, str]) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32, with our side's `adapter.npz` and `first.npy`."""
    torch.backends.cudnn.allow_tf32 = False
    model = _Model(job, captions)
    adapter = _attach(model.unet.requires_grad_(False))
    torch_loops.set_values(adapter, job.work / "adapter.npz")
    inputs = np.load(job.work / "check.npz")
    t = torch.from_numpy(inputs["timesteps"]).to(model.device)
    noise = _channels_first(inputs["noise"]).to(model.device)
    first = _channels_first(np.load(job.work / "first.npy")).to(model.device)
    k = len(first)  # images of a stream
    rows = np.concatenate([np.arange(k), job.batch + np.arange(k)])
    with torch.no_grad():
        states = model.encode_text(model.ids[rows])
        latents = model.encode_images(model.pixels[rows]).mode() * model.scale
        output = model.unet(noise, t, states).sample
    loss = model.loss(latents, states, t, noise)
    pipeline = _pipeline(job, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(job.prompts[:k]),
        latents=first,
        num_inference_steps=job.steps,
        guidance_scale=guidance_scale,
        output_type="pt",
    ).images
    found = {
        "output": output.permute(0, 2, 3, 1),
        "loss": loss,
        "gradient": torch_loops.flat_gradient(loss, adapter),
        "text": states,
        "latents": latents.permute(0, 2, 3, 1),
        "images": images.permute(0, 2, 3, 1),
    }
    return torch_loops.numpy(found)


def _channels_first(array: np.ndarray) -> torch.Tensor:
    """[n, h, w, c] → [n, c, h, w]."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _pipeline(job: Job, dtype: torch.dtype) -> Any:
    """The whole pipeline with DDIM, with weights of `dtype`."""
    pipeline = torch_loops.load(StableDiffusionPipeline, job.folder, dtype, **_MISSING)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline.to(torch_loops.setup(job))


class _Model:
    """The three parts in float32 on the device, and both streams.

    Attributes:
        unet, autoencoder, tower: modules; the U-Net alone trains.
        schedule: of the noise.
        scale: of the latents.
        ids: token ids [2 b, t], of the subject's images and then of those of its class.
        pixels: of the same images in [-1, 1], [2 b, 3, r, r], on the host.
    """

    def __init__(self, job: Job, captions: tuple[str, str]):
        self.device = torch_loops.setup(job)
        unet = torch_loops.load(UNet2DConditionModel, job.folder / "unet")
        codec = torch_loops.load(AutoencoderKL, job.folder / "vae")
        tower = torch_loops.load(CLIPTextModel, job.folder / "text_encoder")
        self.schedule: Any = DDPMScheduler.from_pretrained(
            job.folder / "scheduler", local_files_only=True
        )
        self.unet = unet.to(self.device).train()
        self.autoencoder = codec.to(self.device).requires_grad_(False)
        self.tower = tower.to(self.device).train(False).requires_grad_(False)
        self.scale = codec.config.scaling_factor
        prompts = np.repeat(captions, job.batch).tolist()
        ids = torch_loops.token_ids(job.folder, prompts, tower.config.max_position_embeddings)
        self.ids = ids.to(self.device)
        self.pixels = _channels_first(2 * (job.images() / np.float32(255)) - 1).contiguous()

    @torch.no_grad()
    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [n, t] → states [n, t, c]."""
        return self.tower(ids).last_hidden_state

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> Any:
        """Pixels [n, 3, r, r] → the distribution of their latents [n, c, h, w], not scaled."""
        return self.autoencoder.encode(pixels.to(self.device, self.autoencoder.dtype)).latent_dist

    def loss(
        self, latents: torch.Tensor, states: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """DreamBooth's loss: the subject's error, and that of its class with weight 1."""
        noisy = self.schedule.add_noise(latents, noise, t)
        with torch.autocast("cuda", torch.bfloat16, enabled=states.dtype == torch.bfloat16):
            output = self.unet(noisy, t, states).sample
        target = noise
        if self.schedule.config.prediction_type == "v_prediction":
            target = self.schedule.get_velocity(latents, noise, t)
        subject, of_class = output.float().chunk(2)
        subject_target, class_target = target.float().chunk(2)
        error = functional.mse_loss(subject, subject_target)
        return error + functional.mse_loss(of_class, class_target)


def _attach(unet: Any) -> dict[str, nn.Parameter]:
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
        model.tower.to(torch.bfloat16)
        model.autoencoder.to(torch.bfloat16)
        if task == "lora":
            model.unet.to(torch.bfloat16)
    encode = _cached(model) if cached else functools.partial(_encoded, model)

    def loss() -> torch.Tensor:
        rows = torch.cat([torch.randperm(job.batch), job.batch + torch.randperm(job.batch)])
        latents, states = encode(rows)
        latents = latents * model.scale
        last = model.schedule.config.num_train_timesteps
        t = torch.randint(0, last, (len(rows),), device=model.device)
        return model.loss(latents, states, t, torch.randn_like(latents))

    return torch_loops.training(job, parameters, loss)


def _encoded(model: _Model, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, not scaled, and states of rows of the batch, computed anew."""
    latents = model.encode_images(model.pixels[rows]).sample()
    return latents, model.encode_text(model.ids[rows])


def _cached(model: _Model) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The same from a cache: latents are sampled from each image's own distribution."""
    moments = model.encode_images(model.pixels)
    states = model.encode_text(model.ids)

    def rows_of(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        std = moments.std[rows]
        return moments.mean[rows] + std * torch.randn_like(std), states[rows]

    return rows_of


# ---------------------------------------------------------------------------------- random weights


def _configs(name: str) -> dict[str, dict[str, Any]]:
    """The `config.json` of each part."""
    from styledrop_jax.models import clip, unet, vae

    small: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    if name == "tiny":
        size = unet.Config.emoji()
        denoiser = dataclasses.replace(size, sample_size=8, cross_attention_dim=32, **small)
        codec = vae.Config(layers_per_block=1, sample_size=16, **small)
        text = clip.ClipConfig.emoji64(vocab_size=514, width=32, text_layers=1).text
    elif name == "emoji128":
        denoiser = unet.Config.emoji()
        codec = vae.Config.emoji(width=16, size=128)
        text = clip.ClipConfig.emoji64(vocab_size=2048).text
    else:
        denoiser = unet.Config.sd15()
        codec = vae.Config.sd()
        text = clip.TextConfig.vit_l_14(projection=False)
    return {"unet": denoiser.to_dict(), "vae": codec.to_dict(), "text_encoder": text.to_dict()}


def write_random(folder: Path, name: str) -> None:
    """Writes a model with random weights, in the diffusers layout.

    Args:
        folder: is made.
        name: its size: "tiny", "emoji128" or "sd15".
    """
    from styledrop_jax.models.tokenizer import train_tokenizer

    torch.manual_seed(0)
    configs = _configs(name)
    unet: Any = UNet2DConditionModel.from_config(configs["unet"])
    codec: Any = AutoencoderKL.from_config(configs["vae"])
    tower = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    torch_loops.randomize_constants(unet, codec, tower)
    schedule: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer: Any = train_tokenizer([], 514, tower.config.max_position_embeddings)
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=codec,
        text_encoder=tower,
        tokenizer=tokenizer,
        scheduler=schedule,
        **_MISSING,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
