"""The tokenizer of emoji64: 64-pixel images → 16×16 tokens of 512 codes.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_vq --workdir pretrain/vq
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "vq",
            "vocabulary": "full",
            "width": 8,
            "batch_size": 16,
            "steps": 6000,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "warmup": 100,
            "weight_decay": 0.0,
            "b2": 0.99,
            "precision": "float32",
            "checkpoint_every": 500,
            "revive_every": 50,
        }
    )
