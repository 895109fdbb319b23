"""The methods by the names that configs give them."""

from styledrop_jax.methods.cut_mix import CUT_MIX
from styledrop_jax.methods.dreambooth import DREAMBOOTH
from styledrop_jax.methods.multi_styleforge import MULTI_STYLEFORGE
from styledrop_jax.methods.style_word import STYLE_WORD
from styledrop_jax.methods.styledrop import STYLEDROP
from styledrop_jax.methods.styleforge import STYLEFORGE
from styledrop_jax.methods.styo import STYO

METHODS = {
    "styledrop": STYLEDROP,
    "dreambooth": DREAMBOOTH,
    "styleforge": STYLEFORGE,
    "multi_styleforge": MULTI_STYLEFORGE,
    "style_word": STYLE_WORD,
    "styo": STYO,
    "cut_mix": CUT_MIX,
}
