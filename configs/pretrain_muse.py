"""The shipped Muse: a U-ViT over 16×16 tokens, conditioned on the text tower of the CLIP.

styledrop pretrain --config pretrain_vq --workdir pretrain/vq
styledrop pretrain --config pretrain_vq:128 --workdir pretrain/vq128
styledrop pretrain --config pretrain_clip --workdir pretrain/clip
styledrop pretrain --config pretrain_muse --workdir pretrain/muse
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "muse",
            "size": 128,
            "codec": "pretrain/vq128/export/vqvae",
            "clip": "pretrain/clip/export/clip",
            "vocabulary": "starter",
            "pack": 48000,
            "text_dropout": 0.1,
            "width": 192,
            "layers": 6,
            "batch_size": 64,
            "steps": 6000,
            "optimizer": "muon",
            "learning_rate": 2e-3,
            "warmup": 100,
            "weight_decay": 0.03,
            "b2": 0.98,
            "precision": "bfloat16",
            "checkpoint_every": 250,
        }
    )
