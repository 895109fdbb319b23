"""A style by words alone, found from the pictures (hard prompts, arXiv 2302.03668).

The base model draws "{content} {found words}", in StyleDrop's form; nothing trains. Before the
first round it draws the contents under the words that were given, if any were.
"""

from styledrop_jax.methods import styledrop
from styledrop_jax.methods.base import Method, Referenced

METHOD = Method(
    settings=Referenced, program=styledrop.program, say=styledrop.say, needs=("content",)
)
