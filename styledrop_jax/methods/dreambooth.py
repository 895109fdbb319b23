"""DreamBooth (2208.12242): a subject under a rare word and its class, and images of the class that keep the prior."""

from styledrop_jax.methods.base import Method, Stream

DREAMBOOTH = Method(
    streams=(
        Stream(section="reference", prompt="a {identifier} {noun}"),
        Stream(section="prior", prompt="a {noun}", generated="a {noun}"),
    ),
    draws="{content}",
    subject="{identifier} {noun}",
    pool=(
        "a {subject}",
        "a small {subject} at the top left",
        "a large {subject}",
        "a {subject} on a blue background",
        "a {subject} on a yellow background",
        "a {subject} and a tree",
        "a cat and a {subject}",
        "a {subject} in pencil sketch style",
        "a {subject} in watercolor painting style",
        "a {subject} in neon light style",
    ),
)
