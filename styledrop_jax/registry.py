"""What a run can be made of, by the names that configs give: one line for each, in the order that
`--help` shows.
"""

from styledrop_jax.adapters import (
    custom_diffusion,
    full,
    hard_prompt,
    lora,
    styledrop,
    svdiff,
    textual_inversion,
)
from styledrop_jax.adapters.base import AdapterKind
from styledrop_jax.feedback import scorers, select
from styledrop_jax.methods import (
    cut_mix,
    dreambooth,
    multi_styleforge,
    style_word,
    styleforge,
    styo,
)
from styledrop_jax.methods import hard_prompt as hard_prompt_method
from styledrop_jax.methods import styledrop as styledrop_method
from styledrop_jax.methods.base import Method
from styledrop_jax.pipelines import load as pipelines
from styledrop_jax.sampling import schedulers

METHODS: dict[str, Method] = {
    "styledrop": styledrop_method.METHOD,
    "dreambooth": dreambooth.METHOD,
    "styleforge": styleforge.METHOD,
    "multi_styleforge": multi_styleforge.METHOD,
    "style_word": style_word.METHOD,
    "styo": styo.METHOD,
    "cut_mix": cut_mix.METHOD,
    "hard_prompt": hard_prompt_method.METHOD,
}

ADAPTERS: dict[str, AdapterKind] = {
    "styledrop": styledrop.KIND,
    "lora": lora.KIND,
    "textual_inversion": textual_inversion.KIND,
    "custom_diffusion": custom_diffusion.KIND,
    "svdiff": svdiff.KIND,
    "full": full.KIND,
    "hard_prompt": hard_prompt.KIND,
}

SCORERS: dict[str, scorers.Scorer] = {
    "clip_text": scorers.clip_text,
    "clip_style": scorers.clip_style,
    "clip_content": scorers.clip_content,
    "clip_sameness": scorers.clip_sameness,
    "clip_leakage": scorers.clip_leakage,
    "random": scorers.random,
}

SELECTORS: dict[str, select.Selector] = {
    "prompt": select.best_of_each_prompt,
    "top_k": select.best_of_all,
    "top_prompts": select.best_prompts,
    "threshold": select.above_threshold,
    "human": select.human,
}

PIPELINES = pipelines.LOADERS

SCHEDULERS = schedulers.SAMPLERS
