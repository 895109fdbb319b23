"""The autoencoder of emoji64's Stable Diffusion, or of one of 128 pixels: images → 16×16 latents.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_vae --workdir pretrain/vae
styledrop pretrain --config pretrain_vae:128 --workdir pretrain/vae128

Presets: 64 (default), 4 channels of latents; 128, 8 channels, of which the first four learn
to be the former's latents of the image at half the size: a U-Net that knows these goes on.
"""

from ml_collections import ConfigDict

from styledrop_jax.errors import UserError


def get_config(preset: str = "64") -> ConfigDict:
    if preset not in ("64", "128"):
        raise UserError(f"config: unknown preset '{preset}' (one of 64, 128)")
    config = ConfigDict(
        {
            "task": "vae",
            "size": int(preset),
            "init": "styledrop_jax/assets/emoji64/muse/vqvae",
            "vocabulary": "full",
            "width": 8,
            "kl_weight": 1e-3,
            "batch_size": 16,
            "steps": 4000,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "warmup": 100,
            "weight_decay": 0.0,
            "b2": 0.99,
            "precision": "float32",
            "checkpoint_every": 500,
        }
    )
    if preset == "128":
        config.channels = 8
        config.init = config.like = "styledrop_jax/assets/emoji64/sd/vae"
        config.kl_weight = 5e-4
    return config
