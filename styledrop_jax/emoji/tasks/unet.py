"""Stable Diffusion's U-Net, over the latents of `vae` and under the text tower of `clip`."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import UnetSettings
from styledrop_jax.emoji.tasks import base
from styledrop_jax.emoji.tasks.denoiser import Conditioned, denoiser_task, load_text
from styledrop_jax.io import hub
from styledrop_jax.io.files import write_json
from styledrop_jax.models import unet, vae
from styledrop_jax.pipelines import stable_diffusion, stable_diffusion_files
from styledrop_jax.pipelines.base import SampleSettings, TrainSettings
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

SAMPLE = SampleSettings(steps=20, lambda_b=2.0, batch_size=16)
# Predicts v up to the last timestep, where nothing of the drawing is left (2305.08891). Without
# that there are no plain backgrounds.
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


def task(settings: UnetSettings, data: Corpus, workdir: Path) -> base.Task[Conditioned]:
    """Trains the U-Net on `settings.codec` and `settings.clip`.

    It starts from random weights, or from those in `settings.init`.
    """
    codec = stable_diffusion_files.VAE.load(Path(settings.codec))
    text, tokenizer = load_text(Path(settings.clip))
    if settings.init:
        denoiser = stable_diffusion_files.UNET.load(Path(settings.init))
    else:
        config = unet.Config.emoji(width=settings.width, text_width=text.config.hidden_size)
        denoiser = unet.UNet(config, rngs=nnx.Rngs(settings.seed))
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
        latents = model.encode_images(images)
        return {
            "mean": np.asarray(latents.mean, np.float16),
            "logvar": np.asarray(latents.logvar, np.float16),
        }

    def targets(batch: dict[str, jax.Array]) -> vae.Posterior:
        return vae.Posterior(
            mean=batch["mean"].astype(np.float32), logvar=batch["logvar"].astype(np.float32)
        )

    def export(trained: Conditioned, out: Path) -> None:
        folder = out / "sd"
        base.save_component(
            folder / "unet", trained.denoiser, unet.RULES, denoiser.config.to_dict()
        )
        base.save_component(folder / "vae", codec, vae.RULES, codec.config.to_dict())
        base.save_text(text, tokenizer, folder, projection=False)
        write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULE.to_dict())
        hub.save_index(folder, "StableDiffusionPipeline", _PARTS)
        base.save_vocabulary(data, settings, out / "vocabulary.json")

    return denoiser_task(
        model,
        settings,
        data,
        workdir,
        encode=encode,
        targets=targets,
        train=TrainSettings(min_snr_gamma=settings.min_snr_gamma),
        sample=SAMPLE,
        export=export,
    )
