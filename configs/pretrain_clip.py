"""The shipped CLIP, the judge and a text tower: 64-pixel images, captions of up to 32 tokens.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_clip --workdir pretrain/clip
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "clip",
            "vocabulary": "core",
            "vocab_size": 2048,
            "max_length": 32,
            "width": 128,
            "text_layers": 2,
            "vision_layers": 6,
            "seen": 0.5,
            "batch_size": 128,
            "steps": 4400,
            "optimizer": "muon",
            "learning_rate": 1.5e-3,
            "warmup": 100,
            "weight_decay": 0.1,
            "b2": 0.98,
            "precision": "bfloat16",
            "checkpoint_every": 200,
        }
    )
