"""Muse, over the tokens of `vq` and under the text tower of `clip`."""

from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks import base
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.files import write_json
from styledrop_jax.models import uvit, vqgan
from styledrop_jax.pipelines import muse, muse_files
from styledrop_jax.pipelines.base import SampleSettings

_SCHEDULER = {"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}
_PARTS = {
    "transformer": ("diffusers", "UVit2DModel"),
    "vqvae": ("diffusers", "VQModel"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "AmusedScheduler"),
}


def task(config: ConfigDict, data: corpus.Corpus, workdir: Path) -> base.Task:
    """Trains the transformer, from `config.init` if that names a folder of one, on `config.codec` and `config.clip`."""
    codec = muse_files.VQVAE.load(Path(config.codec))
    text, tokenizer = base.load_text(Path(config.clip))
    if config.init:
        denoiser = muse_files.TRANSFORMER.load(Path(config.init) / "transformer")
    else:
        sizes = uvit.Config.emoji64(
            width=config.width, layers=config.layers, text_width=text.config.hidden_size
        )
        denoiser = uvit.UVit(sizes, rngs=nnx.Rngs(config.seed))
    model = muse.Muse(
        name="pretraining",
        base_hash="",
        autoencoder=codec,
        text=text,
        tokenizer=tokenizer,
        denoiser=denoiser,
    )
    to_tokens = nnx.jit(lambda codec, images: codec.encode(base.unit(images)))

    def export(trained: base.Conditioned, out: Path) -> None:
        folder = out / "muse"
        transformer = pretrained.export(trained.denoiser, uvit.RULES, dtype=np.float16)
        hub.save_component(folder / "transformer", denoiser.config.to_dict(), transformer)
        vqvae = pretrained.export(codec, vqgan.RULES, dtype=np.float16)
        hub.save_component(folder / "vqvae", codec.config.to_dict(), vqvae)
        base.save_text(text, tokenizer, folder, projection=True)
        scheduler = _SCHEDULER | {"mask_token_id": denoiser.config.mask_token_id}
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        hub.save_index(folder, "AmusedPipeline", _PARTS)
        base.save_vocabulary(data, config, out / "vocabulary.json")

    return base.of_denoiser(
        model,
        config,
        data,
        workdir,
        encode=lambda images: {"tokens": np.asarray(to_tokens(codec, images), np.uint16)},
        targets=lambda batch: batch["tokens"].astype(np.int32),
        hyper={"remat": False},
        settings=SampleSettings(steps=12, temperature=2.0, lambda_b=1.0),
        export=export,
    )
