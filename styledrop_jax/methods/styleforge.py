"""StyleBoost (ICTC 2023) and StyleForge (2404.05256): a style under a rare word, beside "style".

StyleRef are images of the style; Aux keep what "style" means, and are better given than drawn by the model itself.
"""

from styledrop_jax.methods.base import Method, Stream

STYLEFORGE = Method(
    streams=(
        Stream(section="reference", prompt="{identifier} style"),
        Stream(section="aux", prompt="style", generated="style"),
    ),
    draws="{content} in {identifier} style",
)
