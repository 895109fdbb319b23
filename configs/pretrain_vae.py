"""The autoencoder of the shipped Stable Diffusion: images → 16×16 latents.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_vq --workdir pretrain/vq
styledrop pretrain --config pretrain_vae --workdir pretrain/vae
styledrop pretrain --config pretrain_vae:128 --workdir pretrain/vae128

Presets: 64 (default); 128, which ships: an encoder and a decoder of 128 pixels for the latents of
the former, which it begins as.
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
            "init": "pretrain/vq/export/vqvae",
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
        config.width = 16
        config.init = config.like = "pretrain/vae/export/vae"
        config.batch_size = 4
        config.steps = 5600
        config.learning_rate = 1e-3
        config.optimizer = "muon"
    return config
