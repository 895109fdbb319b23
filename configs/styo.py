"""StyO (2303.03231): draws a source picture in the style of a target, from one image of each.

    styledrop personalize --config styo --config.source.image face.png \\
        --config.target.image art.png --workdir runs/styo

Takes the presets of `styledrop`: `emoji128` (default) is the shipped Stable Diffusion,
`emoji128-muse` the Muse. Leaves the source, or every image of a folder of sources, in the target's
style among the run's samples and in report.html. The auxiliary images are made by the frozen
model from "a portrait" unless `--config.aux.image` names some, such as the paper's 200 faces; the
word is `--config.words.noun`, which both images should show. `--config.source.control` is the
share of the steps that keep the source's cross-attention; 0 samples by the words alone, which is
also all that Muse can do, and what `styledrop sample --prompt "{subject}"` does.

`--config.source.strength` is how much of the source is noise when its sampling begins: less keeps
more of it. At 1 a schedule that ends in pure noise, as the shipped model's, forgets the source, and
makes the target again; at 0.8 some seeds keep the source, some draw the target, and some the
source's shape in the target's ink, more of them without the negator (`--config.contrast.negator=`):
draw several (`--config.round_1.sample.images_per_prompt 8`) and choose. On a CPU core: a minute,
1.8 GB.

From the paper: Adam 1e-6, 400 steps, the style said 3 times, the content once. It does not state
the batch size, nor the steps of the control, and sources differ on whether the repeats hold in
training, in drawing or in both, as here; with different ones the prompts do not align, and the
control must be 0.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("styledrop.py")))["common"](preset)
    small = preset.startswith("emoji")
    config.method = "styo"
    del config.reference
    config.words.noun = "face" if small else "portrait"
    # one token each, of the small vocabulary
    words = ("ged", "gry", "xi", "ney") if small else ("ak47", "aug", "sks", "m4a1")
    config.source = ConfigDict(
        {
            "image": "",
            "style": words[0],
            "content": words[2],
            "control": 1.0,
            "strength": 0.8 if small else 1.0,
        }
    )
    config.target = ConfigDict({"image": "", "style": words[1], "content": words[3]})
    config.aux = ConfigDict({"image": "", "weight": 1.0, "generate": 32 if small else 200})
    config.contrast = ConfigDict(
        {
            "negator": "not",
            "style_repeats": 3,
            "content_repeats": 1,
            "repeat_training": True,
            "repeat_drawing": True,
        }
    )
    config.round_1.adapter.kind = "full"
    config.round_1.train.update(
        steps=150 if small else 400,
        learning_rate=5e-5 if small else 1e-6,
        batch_size=4 if small else 1,
        accumulate=1,
    )
    config.round_1.sample.update(guidance="classifier_free")
    if preset not in ("emoji128", "sd15", "sd21", "sdxl"):  # Muse
        config.source.control = 0.0
    return config
