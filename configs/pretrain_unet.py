"""The U-Net of the shipped Stable Diffusion, conditioned on the text tower of the CLIP.

styledrop pretrain --config pretrain_vae --workdir pretrain/vae
styledrop pretrain --config pretrain_vae:128 --workdir pretrain/vae128
styledrop pretrain --config pretrain_clip --workdir pretrain/clip
styledrop pretrain --config pretrain_unet --workdir pretrain/unet
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "unet",
            "size": 128,
            "codec": "pretrain/vae128/export/vae",
            "clip": "pretrain/clip/export/clip",
            "vocabulary": "starter",
            "pack": 48000,
            "text_dropout": 0.1,
            "width": 48,
            "min_snr_gamma": 5.0,
            "batch_size": 64,
            "steps": 8000,
            "optimizer": "muon",
            "learning_rate": 1.2e-3,
            "warmup": 200,
            "weight_decay": 0.0,
            "b2": 0.99,
            "precision": "bfloat16",
            "checkpoint_every": 250,
        }
    )
