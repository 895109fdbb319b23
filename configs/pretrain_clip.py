"""The CLIP of emoji64: 64-pixel drawings and captions of up to 32 tokens; the judge, and a text
tower for Muse.

bash launch/fetch_corpus.sh corpus
styledrop pretrain --config pretrain_clip --workdir pretrain/clip
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
            "steps": 4400,
            "optimizer": "muon",
            "learning_rate": 1.5e-3,
            "warmup": 100,
            "weight_decay": 0.1,
            "b2": 0.98,
            "steps_per_call": 1,
            "precision": "bfloat16",
            "checkpoint_every": 200,
            "vocab_size": 2048,
            "max_length": 32,
            "width": 128,
            "text_layers": 2,
            "vision_layers": 6,
            "seen": 0.5,
        }
    )
