"""Stable Diffusion's U-Net, over the latents of `vae` and under the text tower of `clip`."""

from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks import base
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.files import write_json
from styledrop_jax.models import unet, vae
from styledrop_jax.pipelines import stable_diffusion, stable_diffusion_files
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

# Predicts v to the last timestep, where nothing of the drawing is left (2305.08891): plain backgrounds need that.
_SCHEDULE = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)
_PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> base.Task:
    """Trains the U-Net, from `config.init` if that names a folder of one, on `config.codec` and `config.clip`."""
    codec = stable_diffusion_files.VAE.load(Path(config.codec))
    text, tokenizer = base.load_text(Path(config.clip))
    if config.init:
        denoiser = stable_diffusion_files.UNET.load(Path(config.init))
    else:
        sizes = unet.Config.emoji64(width=config.width, text_width=text.config.hidden_size)
        denoiser = unet.UNet(sizes, rngs=nnx.Rngs(config.seed))
    model = stable_diffusion.StableDiffusion(
        name="pretraining",
        base_hash="",
        autoencoder=codec,
        text=text,
        tokenizer=tokenizer,
        denoiser=denoiser,
        schedule=_SCHEDULE,
    )

    def encode(images: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: x.astype(np.float16) for name, x in model.encode_images(images)._asdict().items()
        }

    def targets(batch: dict) -> vae.Posterior:
        return vae.Posterior(*(batch[name].astype(np.float32) for name in vae.Posterior._fields))

    def export(trained: base.Conditioned, out: Path) -> None:
        folder = out / "sd"
        tensors = pretrained.export(trained.denoiser, unet.RULES, dtype=np.float16)
        hub.save_component(folder / "unet", denoiser.config.to_dict(), tensors)
        autoencoder = pretrained.export(codec, vae.RULES, dtype=np.float16)
        hub.save_component(folder / "vae", codec.config.to_dict(), autoencoder)
        base.save_text(text, tokenizer, folder, projection=False)
        write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULE.to_dict())
        hub.save_index(folder, "StableDiffusionPipeline", _PARTS)
        base.save_vocabulary(data, config, out / "vocabulary.json")

    return base.of_denoiser(
        model,
        config,
        data,
        workdir,
        encode=encode,
        targets=targets,
        hyper={"min_snr_gamma": config.min_snr_gamma, "noise_offset": 0.0, "remat": False},
        settings=SampleSettings(steps=20, lambda_b=2.0),
        export=export,
    )
