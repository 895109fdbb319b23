"""Several subjects by SVDiff's Cut-Mix-Unmix (2303.11305): singular values learn each, and pairs of
them side by side.

    styledrop personalize --config cut_mix --config.reference.image pets/ --workdir runs/pets
    styledrop sample --run runs/pets --prompt "a sks dog sitting beside a aug cat"

The images are named by what they show, identifier and class: `a sks dog-1.png`, `a sks dog-2.png`,
`a aug cat-1.png`; or are lines of a JSONL with such a content each. Takes the presets of
`styledrop`: `emoji128` (default) is the shipped Stable Diffusion, `emoji128-muse` the Muse. Sample
with other prompts than those of training ("on the left", "on the right"): a model that overfits
shows the seam, which `--negative-prompt` can help against. On Stable Diffusion `--config.mix.unmix`
above 0 also keeps a subject's words from attending to the half of the other; how much that weighs
in the paper is not stated in its section 3.3.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("svdiff.py")))["get_config"](preset)
    config.method = "cut_mix"
    config.reference.image = ""
    config.mix = ConfigDict({"weight": 1.5, "unmix": 0.0})
    config.round_1.sample.update(guidance="classifier_free")
    return config
