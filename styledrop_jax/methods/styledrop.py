"""StyleDrop (2306.00983): a style from one image under its content and a descriptor, in rounds with
feedback.

The paper trains on "{content} in {style descriptor}", samples prompts of the same form, and trains
a new adapter on the samples that CLIP or a person chose.
"""

from styledrop_jax.methods.base import (
    Given,
    Method,
    Program,
    Prompt,
    Referenced,
    described,
    no_subject,
    teaching,
)


def program(spec: Referenced, images: Given) -> Program:
    return Program(streams=[teaching("reference", images, described, judges=True)])


def say(spec: Referenced, content: str, descriptor: str) -> Prompt:
    text = described(no_subject(content), descriptor)
    return Prompt(content=content, text=text, judged=text)


METHOD = Method(settings=Referenced, program=program, say=say, needs=("content", "descriptor"))
