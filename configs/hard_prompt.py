"""Hard prompts (PEZ, 2302.03668): words for a style are found from its picture, and draw; nothing
trains.

    styledrop personalize --config hard_prompt --config.reference.image my.png \\
        --config.reference.content "a house" --workdir runs/words

Takes the fields of `styledrop`, and its presets: `emoji128` (default) is the shipped Stable
Diffusion, `emoji128-muse` the Muse. The words are of the vocabulary of `config.clip`, the CLIP that
scores, which has both towers: also where the base model has a text tower of its own (Stable
Diffusion 1.5: the same one, openai/clip-vit-large-patch14). `--config.round_1.adapter.words` says
how many are searched for, `by phrases` takes those of `styledrop describe` instead.

The words are in the manifest, in the report, and in every prompt of `styledrop sample`. The base
model's own samples, to compare with, are of the contents under the words that you give, if any.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    config.method = "hard_prompt"
    config.round_1.adapter = ConfigDict({"kind": "hard_prompt"})
    config.round_1.train.update(steps=500, learning_rate=0.1)
    return config
