"""The smallest whole run: two rounds of StyleDrop in seconds, to see that everything works; the
pictures are poor.

    styledrop personalize --config debug --workdir runs/debug

Takes the presets of `styledrop`, and a two-core CPU for the small ones.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["two_rounds"](preset)
    for settings in (config.round_1, config.round_2):
        settings.train.update(steps=4, batch_size=2, accumulate=1, checkpoint_every=2)
        settings.sample.update(images_per_prompt=2, steps=2, batch_size=2)
    config.round_1.adapter.update(rank=4, shared=True)  # both kinds of generator
    return config
