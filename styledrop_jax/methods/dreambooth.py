"""DreamBooth (2208.12242): a subject under a rare word and its class, and images of the class that
keep the prior.

The paper trains "a [V] [class]" on 3 to 5 images beside about 1000 images of "a [class]" that the
frozen model made, with the same weight.
"""

import dataclasses

from styledrop_jax.methods.base import (
    SUBJECT,
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
    noun,
    teaching,
)
from styledrop_jax.settings import section

_CONTENTS = (
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
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Referenced):
    prior: Prior = section(Prior)


def _subject(spec: Settings) -> str:
    prompt = "a {identifier} {noun}"
    return f"{identifier(spec.words, prompt)} {noun(spec.words, prompt)}"


def program(spec: Settings, images: Given) -> Program:
    subject = f"a {_subject(spec)}"
    return Program(
        streams=[
            teaching("reference", images, lambda content, descriptor: subject, judges=True),
            keeping("prior", spec.prior, images, f"a {spec.words.noun}"),
        ],
        contents=_CONTENTS,
        identifiers={"words.identifier": spec.words.identifier},
    )


def say(spec: Settings, content: str, descriptor: str) -> Prompt:
    subject = _subject(spec)
    text = joined(content.replace(SUBJECT, subject))
    judged = content.replace(SUBJECT, spec.words.noun)
    return Prompt(
        content=content,
        text=text,
        judged=described(judged, descriptor),
        unsaid="" if subject in text else subject,
    )


METHOD = Method(settings=Settings, program=program, say=say)
