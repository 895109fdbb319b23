"""The CLIP of emoji64: 64-pixel drawings and captions of up to 32 tokens; its text tower conditions Muse.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config configs/pretrain_clip.py --workdir pretrain/clip
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "clip",
            "corpus": "corpus",
            "init": "",
            "vocabulary": "core",
            "seed": 0,
            "batch_size": 128,
            "steps": 500,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "warmup": 50,
            "weight_decay": 0.1,
            "b2": 0.98,
            "steps_per_call": 1,
            "precision": "float32",
            "checkpoint_every": 100,
            "vocab_size": 2048,
            "max_length": 32,
            "width": 192,
            "text_layers": 3,
            "vision_layers": 4,
        }
    )
