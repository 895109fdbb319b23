"""A style under a word that stands for it, as Textual Inversion and Custom Diffusion do
(2208.01618, 2212.04488).
"""

from styledrop_jax.methods.base import (
    Given,
    Method,
    Program,
    Prompt,
    Referenced,
    described,
    identifier,
    joined,
    no_subject,
    teaching,
)


def _style(spec: Referenced, content: str) -> str:
    word = identifier(spec.words, f"{content} in {{identifier}} style")
    return joined(f"{content} in {word} style")


def program(spec: Referenced, images: Given) -> Program:
    def caption(content: str, descriptor: str) -> str:
        return _style(spec, content)

    return Program(
        streams=[teaching("reference", images, caption, judges=True)],
        identifiers={"words.identifier": spec.words.identifier},
    )


def say(spec: Referenced, content: str, descriptor: str) -> Prompt:
    text = _style(spec, no_subject(content))
    return Prompt(content=content, text=text, judged=described(content, descriptor))


METHOD = Method(settings=Referenced, program=program, say=say, needs=("content",))
