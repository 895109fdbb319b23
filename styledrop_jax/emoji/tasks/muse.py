"""Muse, over the tokens of `vq` and under the text tower of `clip`."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import MuseSettings
from styledrop_jax.emoji.tasks import base
from styledrop_jax.emoji.tasks.denoiser import Conditioned, denoiser_task, load_text
from styledrop_jax.io import hub
from styledrop_jax.io.files import write_json
from styledrop_jax.models import uvit, vqgan
from styledrop_jax.pipelines import muse, muse_files
from styledrop_jax.pipelines.base import SampleSettings, TrainSettings

SAMPLE = SampleSettings(steps=12, temperature=2.0, lambda_b=1.0, batch_size=16)
_SCHEDULER = {"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}
_PARTS = {
    "transformer": ("diffusers", "UVit2DModel"),
    "vqvae": ("diffusers", "VQModel"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "AmusedScheduler"),
}


def task(settings: MuseSettings, data: Corpus, workdir: Path) -> base.Task[Conditioned]:
    """Trains the transformer on `settings.codec` and `settings.clip`.

    It starts from random weights, or from those in `settings.init`.
    """
    codec = muse_files.VQVAE.load(Path(settings.codec))
    text, tokenizer = load_text(Path(settings.clip))
    if settings.init:
        denoiser = muse_files.TRANSFORMER.load(Path(settings.init) / "transformer")
    else:
        config = uvit.Config.emoji(
            width=settings.width, layers=settings.layers, text_width=text.config.hidden_size
        )
        denoiser = uvit.UVit(config, rngs=nnx.Rngs(settings.seed))
    model = muse.Muse(
        name="pretraining",
        base_hash="",
        autoencoder=codec,
        text=text,
        tokenizer=tokenizer,
        denoiser=denoiser,
    )
    to_tokens = nnx.jit(lambda codec, images: codec.encode(base.to_floats(images)))

    def encode(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": np.asarray(to_tokens(codec, images), np.uint16)}

    def targets(batch: dict[str, jax.Array]) -> jax.Array:
        return batch["tokens"].astype(np.int32)

    def export(trained: Conditioned, out: Path) -> None:
        folder = out / "muse"
        base.save_component(
            folder / "transformer", trained.denoiser, uvit.RULES, denoiser.config.to_dict()
        )
        base.save_component(folder / "vqvae", codec, vqgan.RULES, codec.config.to_dict())
        base.save_text(text, tokenizer, folder, projection=True)
        scheduler = _SCHEDULER | {"mask_token_id": denoiser.config.mask_token_id}
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        hub.save_index(folder, "AmusedPipeline", _PARTS)
        base.save_vocabulary(data, settings, out / "vocabulary.json")

    return denoiser_task(
        model,
        settings,
        data,
        workdir,
        encode=encode,
        targets=targets,
        train=TrainSettings(),
        sample=SAMPLE,
        export=export,
    )
