"""The U-Net of emoji64's Stable Diffusion, conditioned on the text tower of the CLIP.

styledrop pretrain --config pretrain_vae --workdir pretrain/vae
styledrop pretrain --config pretrain_clip --workdir pretrain/clip
styledrop pretrain --config pretrain_unet --workdir pretrain/unet
styledrop pretrain --config pretrain_unet:128 --workdir pretrain/unet128

Presets: 64 (default); 128, over the autoencoder that pretrain_vae:128 trains: from the shipped
U-Net, which knows half of its channels already, and under the same text tower.
"""

from ml_collections import ConfigDict

from styledrop_jax.errors import UserError


def get_config(preset: str = "64") -> ConfigDict:
    if preset not in ("64", "128"):
        raise UserError(f"config: unknown preset '{preset}' (one of 64, 128)")
    config = ConfigDict(
        {
            "task": "unet",
            "size": int(preset),
            "codec": "pretrain/vae/export/vae",
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
    if preset == "128":
        config.codec = "pretrain/vae128/export/vae"
        config.clip = "styledrop_jax/assets/emoji64/sd"
        config.init = "styledrop_jax/assets/emoji64/sd/unet"
    return config
