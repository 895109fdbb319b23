"""SVDiff (2303.11305): shifts of the singular values of all weights, one number a value, on
StyleDrop's prompts.

    styledrop personalize --config svdiff --workdir runs/svdiff

Takes the fields of `styledrop`, and its presets: `emoji128` (default) is the shipped Stable
Diffusion, `emoji128-muse` the Muse. The paper's learning rate is 1e-3.

On a CPU core: 105 seconds. Less of the style than LoRA, and the lines inside things last.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    config.round_1.adapter.update(kind="svdiff", targets="all")
    config.round_1.train.learning_rate = 3e-3 if preset.startswith("emoji") else 1e-3
    return config
