"""Multi-StyleForge (2404.05256): every weight learns the components of a style, each under a word
of its own.

    styledrop personalize --config multi_styleforge \\
        --config.component_1.image people/ --config.component_1.aux.image portraits/ \\
        --config.component_2.image backgrounds/ --config.component_2.aux.image landscapes/ \\
        --workdir runs/multi

Takes the presets of `styledrop`: `emoji128` (default) is the shipped Stable Diffusion,
`emoji128-muse` the Muse. The components train together, each with images of "[identifier] style"
and of "style". Prompts say all of them, "a cat in sks style and aug style"; a third is a
`component_3` in a config file of your own. Settings beside these are those of `styleforge`.

On a CPU core, two components of 7 and 8 images: 79 seconds, 1.8 GB. More of the style than
StyleForge, and more lumps.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styleforge.py")))["get_config"](preset)
    config.method = "multi_styleforge"
    del config.reference, config.aux
    for number, identifier in enumerate(("sks", "aug"), start=1):
        aux = {"image": "", "weight": 1.0, "generate": 0}
        config[f"component_{number}"] = ConfigDict(
            {"image": "", "identifier": identifier, "aux": aux}
        )
    return config
