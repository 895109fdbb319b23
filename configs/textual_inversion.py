"""Textual Inversion (2208.01618): a new word of the text tower, and nothing else, learns the style.

    styledrop personalize --config textual_inversion --workdir runs/word

Takes the fields of `styledrop`, and its presets: `emoji128` (default) is the shipped Stable
Diffusion, `emoji128-muse` the Muse. `--config.round_1.adapter.vectors` sets how many tokens the
word has, `initializer` what they start as, `norm true` keeps their length.

On a CPU core: 70 seconds. 768 numbers turn colours towards the reference's and leave things as they
were.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    config.method = "style_word"
    config.words.identifier = "<style>"
    config.round_1.adapter.update(kind="textual_inversion", vectors=4, initializer="style")
    config.round_1.train.learning_rate = 2e-2 if preset.startswith("emoji") else 5e-3
    return config
