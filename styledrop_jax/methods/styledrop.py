"""StyleDrop (2306.00983): a style from one reference under its content and a descriptor, in rounds with feedback."""

from styledrop_jax.methods.base import Method, Stream

STYLEDROP = Method(
    streams=(Stream(section="reference", prompt="{content} {descriptor}"),),
    draws="{content} {descriptor}",
)
