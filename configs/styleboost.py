"""StyleBoost (ICTC 2023): StyleForge's first form, of the same streams, loss and settings.

    styledrop personalize --config styleboost --config.reference.image style/ \\
        --config.aux.image paintings/ --config.words.identifier sks --workdir runs/boost

The fields and presets are those of `styleforge`, where they are described.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    return runpy.run_path(str(Path(__file__).with_name("styleforge.py")))["get_config"](preset)
