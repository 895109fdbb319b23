"""StyleBoost (ICTC 2023) and StyleForge (2404.05256): a style under a rare word, beside "style".

StyleRef are 15 to 20 images of the style, people and backgrounds, under "[V] style". Aux are images
of "style" that keep what the word means; they are better given than made by the model itself.
"""

import dataclasses

from styledrop_jax.methods.base import (
    Given,
    Method,
    Prior,
    Program,
    Prompt,
    Referenced,
    described,
    identifier,
    joined,
    keeping,
    no_subject,
    teaching,
)
from styledrop_jax.settings import section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Referenced):
    aux: Prior = section(Prior)


def program(spec: Settings, images: Given) -> Program:
    style = f"{identifier(spec.words, '{identifier} style')} style"
    return Program(
        streams=[
            teaching("reference", images, lambda content, descriptor: style, judges=True),
            keeping("aux", spec.aux, images, "style"),
        ],
        identifiers={"words.identifier": spec.words.identifier},
    )


def say(spec: Settings, content: str, descriptor: str) -> Prompt:
    word = identifier(spec.words, f"{content} in {{identifier}} style")
    text = joined(f"{no_subject(content)} in {word} style")
    return Prompt(content=content, text=text, judged=described(content, descriptor))


METHOD = Method(settings=Settings, program=program, say=say)
