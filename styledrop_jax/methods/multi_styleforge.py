"""Multi-StyleForge (2404.05256): a style's components, as people and backgrounds, each under a rare
word of its own.

Every component has its StyleRef and its Aux, and all of them train together. The paper's own way of
joining the words in a prompt is not stated: here they are said one after the other.
"""

import dataclasses

from styledrop_jax.methods.base import (
    SUBJECT,
    Given,
    Images,
    Method,
    Prior,
    Program,
    Prompt,
    Worded,
    described,
    joined,
    keeping,
    teaching,
    word,
)
from styledrop_jax.settings import numbered, section, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component(Images):
    identifier: str = setting("", "the word that stands for what is learnt")
    aux: Prior = section(Prior)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Worded):
    components: tuple[Component, ...] = numbered(Component, "component_", lambda: (Component(),))


def _styles(spec: Settings) -> dict[str, str]:
    """{section: the style of that component as prompts say it}"""
    styles = {}
    for number, component in enumerate(spec.components, 1):
        name = f"component_{number}"
        prompt = "{identifier} style"
        styles[name] = f"{word(component.identifier, f'{name}.identifier', prompt)} style"
    return styles


def program(spec: Settings, images: Given) -> Program:
    taught = []
    kept = []
    identifiers = {}
    for component, (name, style) in zip(spec.components, _styles(spec).items(), strict=True):
        caption = lambda content, descriptor, style=style: style  # noqa: E731
        taught.append(teaching(name, images, caption, judges=True))
        kept.append(keeping(f"{name}.aux", component.aux, images, "style"))
        identifiers[f"{name}.identifier"] = component.identifier
    return Program(streams=taught + kept, identifiers=identifiers)


def say(spec: Settings, content: str, descriptor: str) -> Prompt:
    subject = " and ".join(_styles(spec).values())
    text = joined(f"{content.replace(SUBJECT, subject)} in {subject}")
    return Prompt(content=content, text=text, judged=described(content, descriptor))


METHOD = Method(settings=Settings, program=program, say=say)
