"""Multi-StyleForge (2404.05256): a style's components, as people and backgrounds, each under a rare word of its own.

Every component has its StyleRef and its Aux, and all of them train together. The paper's own way of joining the words
in a prompt is not stated: here they are said one after the other.
"""

from styledrop_jax.methods.base import Method, Stream

MULTI_STYLEFORGE = Method(
    streams=(
        Stream(section="component_*", prompt="{component_*.identifier} style"),
        Stream(section="component_*.aux", prompt="style", generated="style"),
    ),
    draws="{content} in {subject}",
    subject="{component_*.identifier} style",
    learns=("component_*.identifier",),
)
