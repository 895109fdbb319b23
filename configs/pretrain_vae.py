"""The autoencoder of emoji64's Stable Diffusion: 64-pixel images → 16×16 latents of 4 channels.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_vae --workdir pretrain/vae
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "vae",
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
