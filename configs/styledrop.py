"""StyleDrop (arXiv 2306.00983): a style from one image, two rounds of adapters, CLIP feedback between them.

    styledrop personalize --config configs/styledrop.py --workdir runs/first
    styledrop personalize --config configs/styledrop.py --config.reference.image my.png \\
        --config.reference.content "a house" --config.reference.descriptor "in watercolor painting style" \\
        --workdir runs/mine

Presets, as `configs/styledrop.py:PRESET`:
    emoji64 (default)       the shipped 64-pixel Stable Diffusion, two minutes and 1.4 GB on a two-core CPU; chooses by
                            text and style together, since so small a model drifts back to the drawings it knows
    emoji64-muse            the shipped Muse of the same drawings: coarser things; as long, 1.3 GB
    amused-256, amused-512  the public aMUSEd checkpoints, from the Hugging Face cache, the hub or a local diffusers
                            folder (`--config.base FOLDER`); for a GPU
    sd15, sd21              Stable Diffusion 1.5 and 2.1, likewise, or a single .safetensors file; for a GPU

Any field is overridden by `--config.FIELD VALUE`, a scorer's weight too (`--config.round_1.select.scorers.clip_style
0.5`). Round N takes `round_N`; rounds beyond the last one reuse it. The result is `report.html` in the run folder.

The aMUSEd presets hold the paper's values for its 3B Muse: adapters of rank 4, shared, then 32, unshared; Adam 3e-5,
batch 8, 1000 steps; 36 decoding steps, temperature 4.5, lambda 2 and 5; 30 prompts x 64 images, the best one of each.
The paper does not state the share of dropped prompts (Muse's 10% is taken) nor whether lambda ramps (it does not here).
"""

from ml_collections import ConfigDict

from styledrop_jax.errors import UserError, did_you_mean

_BASES = {
    "emoji64": "emoji64/sd",
    "emoji64-muse": "emoji64",
    "amused-256": "amused/amused-256",
    "amused-512": "amused/amused-512",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
}


def get_config(preset: str = "emoji64") -> ConfigDict:
    if preset not in _BASES:
        hint = did_you_mean(preset, _BASES)
        raise UserError(f"config: unknown preset '{preset}'{hint} (one of {', '.join(_BASES)})")
    small = preset.startswith("emoji64")
    config = ConfigDict()
    config.base = _BASES[preset]
    config.clip = "emoji64/clip" if small else "openai/clip-vit-large-patch14"
    config.method = "styledrop"
    config.dtype = "float32" if small else "bfloat16"
    config.seed = 0
    # Words that are empty come with the bundled image; an image of your own needs both.
    config.reference = ConfigDict(
        {"image": "bundled:house-papercut", "content": "", "descriptor": ""}
    )
    config.words = ConfigDict({"identifier": "", "noun": ""})
    config.prompts = ""
    config.truth = ""
    config.rounds = 2
    config.round_1 = _round(small)
    config.round_2 = _round(small)
    config.round_2.adapter.update(rank=16 if small else 32, shared=False)
    config.round_2.sample.images_per_prompt = (
        4 if small else 8
    )  # to be looked at; no later round chooses among them
    if preset == "emoji64":
        for settings in (config.round_1, config.round_2):
            settings.train.update(steps=250, learning_rate=1e-3)
            settings.sample.update(images_per_prompt=2, steps=20, lambda_b=2.0)
    elif preset.startswith(
        "sd"
    ):  # not the paper's: guidance scale 7.5, and far fewer drawings, which take longer
        for settings in (config.round_1, config.round_2):
            settings.sample.update(images_per_prompt=8, batch_size=4, steps=30, lambda_b=6.5)
    return config


def _round(small: bool) -> ConfigDict:
    return ConfigDict(
        {
            "adapter": {
                "kind": "styledrop",
                "rank": 16 if small else 4,
                "shared": not small,
                "alpha": 16.0,
                "targets": "all",
                "text_encoder": False,
                "vectors": 1,
                "initializer": "style",
                "norm": False,
            },
            "train": {
                "steps": 150 if small else 1000,
                "learning_rate": 5e-4 if small else 3e-5,
                "batch_size": 8,
                "random_crop": False,
                "text_dropout": 0.1,
                "checkpoint_every": 100,
                "min_snr_gamma": 0.0,
                "noise_offset": 0.0,
                "ema_decay": 0.0,
                "accumulate": 1,
                "remat": False,
            },
            "sample": {
                "images_per_prompt": 4 if small else 64,
                "batch_size": 8,
                "steps": 12 if small else 36,
                "guidance": "two_scale",
                "temperature": 1.0 if small else 4.5,
                "sampler": "ddim",
                "guidance_rescale": 0.0,
                "lambda_a": 0.5 if small else 2.0,
                "lambda_b": 0.75 if small else 5.0,
                "lambda_ramp": False,
                "negative_prompt": "",
            },
            "select": {
                "scorers": {"clip_text": 1.0, "clip_style": 1.0 if small else 0.0, "random": 0.0},
                "by": "prompt",
                "k": 1,
                "threshold": 0.0,
            },
        }
    )
