"""StyleDrop (arXiv 2306.00983): a style from one image, two rounds of adapters, CLIP feedback
between them.

    styledrop personalize --config styledrop --workdir runs/first
    styledrop personalize --config styledrop --config.reference.image my.png \\
        --config.reference.content "a house" \\
        --config.reference.descriptor "in watercolor painting style" --workdir runs/mine

Presets, as `--config styledrop:PRESET`:
    emoji128 (default)      the shipped 128-pixel Stable Diffusion: minutes, 1.4 GB, two cores; a
                            round starts from what many styles taught, the better of two states of
                            it goes on, and ten samples, each of another prompt, that have most
                            style and content train the next
    emoji128-muse           the shipped Muse of the same drawings: coarser things; one round, for a
                            second makes them coarser still; 1.5 GB. `--config.rounds 2` makes both,
                            `styledrop extend --run RUN --rounds 1` the second afterwards
    amused-256, amused-512  the public aMUSEd checkpoints, from the Hugging Face cache, the hub or a
                            local diffusers folder (`--config.base FOLDER`); for a GPU
    sd15, sd21              Stable Diffusion 1.5 and 2.1, likewise, or a single .safetensors file;
                            for a GPU
    sdxl                    Stable Diffusion XL 1.0's base model, likewise, 1024 pixels; for a GPU
                            or TPU: a step's four images are computed one after the other, which
                            several devices share better with `train.accumulate 1`

Any field is overridden by `--config.FIELD VALUE`, a scorer's weight too
(`--config.round_1.select.scorers.clip_style 0.5`). A field that is not here has its default, which
`styledrop personalize --config styledrop --help` shows. Round N takes `round_N`; rounds beyond the
last one reuse it. The result is `report.html` in the run folder.

What a preset does not set is the paper's for its 3B Muse, as the aMUSEd presets are: adapters of
rank 4, shared, then 32, unshared; Adam 3e-5, batch 8, 1000 steps; 36 decoding steps, temperature
4.5, lambda 2 and 5; 30 prompts x 64 images, the best one of each. The paper does not state the
share of dropped prompts (Muse's 10% is taken) nor whether lambda ramps (it does not here).
"""

from ml_collections import ConfigDict

from styledrop_jax.errors import UserError, did_you_mean

_BASES = {
    "emoji128": "emoji128",
    "emoji128-muse": "emoji128-muse",
    "amused-256": "amused/amused-256",
    "amused-512": "amused/amused-512",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def get_config(preset: str = "emoji128") -> ConfigDict:
    config = two_rounds(preset)
    if preset.startswith("emoji"):
        # Few steps, and the best of several states: a reference leaks the longer it trains. What
        # round 2 learns from asks for the style first.
        for settings in (config.round_1, config.round_2):
            settings.keep = 4
            settings.train.steps = 200
            settings.select.update(by="top_prompts", k=10)
            settings.select.scorers.update(clip_text=0.0, clip_style=2.0, clip_content=1.0)
        config.round_2.own_share = 0.1
    if preset == "emoji128":
        for settings in (config.round_1, config.round_2):
            settings.start = "learnt"
            settings.keep = 2
            settings.train.steps = 80
            settings.sample.lambda_a = 1.5
        # Those that round 2 learns from are guided more strongly: it shows less than they.
        config.round_1.sample.images_per_prompt = 1
        config.round_1.select.update(images_per_prompt=4, lambda_a=2.0)
    if preset == "emoji128-muse":
        config.rounds = 1
        config.round_2.left_out = (
            "on this model a round that learns from samples makes things coarser and comes no "
            "nearer to true drawings (docs/rounds.md)"
        )
    return config


def two_rounds(preset: str) -> ConfigDict:
    """Two rounds of StyleDrop, before what `get_config` does for the small models."""
    config = common(preset)
    config.rounds = 2
    config.round_2 = ConfigDict(config.round_1.to_dict())
    config.round_2.adapter.update(rank=16 if preset.startswith("emoji") else 32, shared=False)
    if preset.startswith("amused"):
        config.round_2.sample.images_per_prompt = 8  # to be looked at; no later round chooses
    return config


def common(preset: str) -> ConfigDict:
    """What the configs of other methods start from: one round."""
    if preset not in _BASES:
        hint = did_you_mean(preset, _BASES)
        if preset.startswith("emoji64"):
            hint = ": the shipped Stable Diffusion is 'emoji128', the Muse 'emoji128-muse'"
        raise UserError(f"config: unknown preset '{preset}'{hint} (one of {', '.join(_BASES)})")
    small = preset.startswith("emoji")
    config = ConfigDict()
    config.base = _BASES[preset]
    config.clip = "emoji64/clip" if small else "openai/clip-vit-large-patch14"
    config.method = "styledrop"
    config.dtype = "float32" if small else "bfloat16"
    # Words that are empty come with the bundled image; an image of your own needs both.
    reference = {"image": "bundled:house-papercut", "content": "", "descriptor": ""}
    config.reference = ConfigDict(reference)
    config.words = ConfigDict({"identifier": "", "noun": ""})
    config.rounds = 1
    config.round_1 = _small() if small else _paper()
    if preset == "emoji128":
        config.round_1.train.update(steps=250, learning_rate=1e-3)
        config.round_1.sample.update(images_per_prompt=2, steps=20, lambda_b=2.0)
    elif preset.startswith("sd"):
        config.reference.fit = "keep"
        # Not the paper's: guidance scale 7.5, and far fewer samples, which take longer.
        config.round_1.sample.update(images_per_prompt=8, batch_size=4, steps=30, lambda_b=6.5)
    if preset == "sdxl":
        config.round_1.train.update(batch_size=4, accumulate=4, remat=True)
        config.round_1.sample.update(images_per_prompt=4, batch_size=1, lambda_b=5.0)
    return config


def _paper() -> ConfigDict:
    """The defaults, with the sections that presets and other configs change."""
    adapter = {"kind": "styledrop", "rank": 4, "shared": True, "alpha": 16.0, "targets": "all"}
    return ConfigDict({"adapter": adapter, "train": {}, "sample": {}, "select": {}})


def _small() -> ConfigDict:
    """For models of a few million parameters, which learn faster and are guided less."""
    return ConfigDict(
        {
            "adapter": {
                "kind": "styledrop",
                "rank": 16,
                "shared": False,
                "alpha": 16.0,
                "targets": "all",
            },
            "train": {"steps": 150, "learning_rate": 5e-4},
            "sample": {
                "images_per_prompt": 4,
                "steps": 12,
                "temperature": 1.0,
                "lambda_a": 0.5,
                "lambda_b": 0.75,
            },
            "select": {
                "scorers": {
                    "clip_text": 1.0,
                    "clip_style": 1.0,
                    "clip_content": 0.0,
                    "clip_sameness": 0.0,
                    "clip_leakage": 0.0,
                    "random": 0.0,
                }
            },
        }
    )
