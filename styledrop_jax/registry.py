"""What a run can be made of, by the names that configs give: one line for each, in the order that `--help` shows."""

from styledrop_jax.adapters import (
    custom_diffusion,
    full,
    lora,
    styledrop,
    svdiff,
    textual_inversion,
)
from styledrop_jax.adapters.base import AdapterKind

ADAPTERS: dict[str, AdapterKind] = {
    "styledrop": styledrop.KIND,
    "lora": lora.KIND,
    "textual_inversion": textual_inversion.KIND,
    "custom_diffusion": custom_diffusion.KIND,
    "svdiff": svdiff.KIND,
    "full": full.KIND,
}
