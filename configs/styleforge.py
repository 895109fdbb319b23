"""StyleForge (2404.05256), and StyleBoost before it: every weight learns "[identifier] style" from
15 to 20 images of a style, beside given images of "style".

    styledrop personalize --config styleforge --config.reference.image style/ \\
        --config.aux.image paintings/ --config.words.identifier sks --workdir runs/forge

Takes the presets of `styledrop`: `emoji128` (default) is the shipped Stable Diffusion,
`emoji128-muse` the Muse. Aux images are yours: a poor Aux can be worse than none, so the model
makes none itself unless told how many (`--config.aux.generate 20`). The authors train the text
encoder too (`--config.round_1.adapter.text_encoder true`).

On a CPU core, 15 images and 30 Aux: 65 seconds, 1.7 GB. Paper and ink come, simple shapes stay,
others become lumps: nothing says what the images show. At 1e-4 and 400 steps things last better,
with half of the style.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    small = preset.startswith("emoji")
    config.method = "styleforge"
    config.reference.image = ""
    config.aux = ConfigDict({"image": "", "weight": 1.0, "generate": 0})
    config.round_1.adapter.kind = "full"
    config.round_1.train.update(
        steps=150 if small else 1000, learning_rate=3e-4 if small else 1e-6, batch_size=4
    )
    config.round_1.sample.update(guidance="classifier_free")
    return config
