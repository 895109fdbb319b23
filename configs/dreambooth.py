"""DreamBooth (2208.12242): every weight learns a subject under a rare word and its class, beside
images of the class.

    styledrop personalize --config dreambooth --config.reference.image photos/ \\
        --config.words.identifier sks --config.words.noun dog --workdir runs/dog
    styledrop sample --run runs/dog --prompt "a {subject} on a blue background"

Takes the presets of `styledrop`: `emoji128` (default) is the shipped Stable Diffusion,
`emoji128-muse` the Muse. In prompts `{subject}` stands for identifier and noun. The frozen model
makes `--config.prior.generate` images of the class, kept for other runs, unless
`--config.prior.image` names some. Guidance is classifier-free, of scale 1 + lambda_b.

On a CPU core: 46 seconds, 1.7 GB, more when the class images are made for the first
time. The subject in the middle, on backgrounds and in known styles; small ones and pairs fail.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    small = preset.startswith("emoji")
    config.method = "dreambooth"
    config.reference.image = ""
    config.prior = ConfigDict({"image": "", "weight": 1.0, "generate": 32 if small else 200})
    config.round_1.adapter.kind = "full"
    config.round_1.train.update(
        steps=150 if small else 1000, learning_rate=2e-4 if small else 5e-6, batch_size=4
    )
    config.round_1.sample.update(guidance="classifier_free")
    return config
