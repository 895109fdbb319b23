"""What StyleDrop's adapter starts from on the shipped Stable Diffusion, learnt over many styles.

styledrop pretrain --config pretrain_start --workdir pretrain/start
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": "start",
            "size": 128,
            "base": "emoji128",
            "vocabulary": "starter",
            "rank": 16,
            "blocks": "all",
            "things": 24,
            "inner_steps": 50,
            "inner_batch_size": 8,
            "inner_learning_rate": 1e-3,
            "batch_size": 2,
            "steps": 240,
            "learning_rate": 3e-3,
            "warmup": 10,
            "checkpoint_every": 50,
        }
    )
