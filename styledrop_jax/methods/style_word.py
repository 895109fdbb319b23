"""A style under a word that stands for it, as Textual Inversion and Custom Diffusion do (2208.01618, 2212.04488)."""

from styledrop_jax.methods.base import Method, Stream

STYLE_WORD = Method(
    streams=(Stream(section="reference", prompt="{content} in {identifier} style"),),
    draws="{content} in {identifier} style",
)
