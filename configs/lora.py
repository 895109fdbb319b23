"""LoRA (2106.09685): low-rank additions to the attention of the same pipeline, on StyleDrop's
prompts, in one round.

    styledrop personalize --config lora --workdir runs/lora

Takes the fields of `styledrop`, and its presets: `emoji128` (default) is the shipped Stable
Diffusion, `emoji128-muse` the Muse. `--config.round_1.adapter.targets all` adapts every linear
layer and convolution, `text_encoder true` the text tower too. aMUSEd's published style tuning: rank
16, alpha 32, 4e-4.

On a CPU core: 66 seconds. The style comes whole, and with it some of the reference's shape: cats
with a roof; after the line drawing of a house eight of 30 things were houses. A lower learning rate
has less of both.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    config.round_1.adapter.update(kind="lora", rank=16, alpha=32.0, targets="attention")
    small, sd = preset.startswith("emoji"), preset.startswith("sd")
    config.round_1.train.learning_rate = 2e-4 if small else 1e-4 if sd else 4e-4
    return config
