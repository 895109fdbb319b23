"""StyO (2303.03231): content and style of a source and a target, told apart by what each prompt
says they are not.

Three streams train with equal weights (the identifier disentanglement learner):

    source     "a drawing with (S_src not S_tgt)×n_s style of (C_src not C_tgt)×n_c portrait"
    target     the same with source and target exchanged
    auxiliary  "a drawing with S_src not S_tgt style of portrait", of 200 faces of FFHQ in the paper

The result's prompt recombines the target's style and the source's content. While it is sampled, the
source's cross-attention is kept at the words of its content (the fine-grained content controller).
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
    Redrawn,
    Worded,
    joined,
    keeping,
    noun,
    teaching,
    word,
)
from styledrop_jax.settings import section, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrasted(Images):
    style: str = setting("", "the word that stands for its style", basic=True)
    content: str = setting("", "the word that stands for what it shows", basic=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Contrasted):
    control: float = setting(
        1.0,
        "share of the steps that take over its cross-attention; 0: sampled by words alone",
        low=0,
        high=1,
    )
    strength: float = setting(
        1.0, "how much of it is noise when it is generated anew, to 1", low=0, high=1, above=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    negator: str = setting(
        "not", "the word between what an image has and has not; empty leaves out the latter"
    )
    style_repeats: int = setting(
        3, "how often the pair of style identifiers is said", low=1, high=100
    )
    content_repeats: int = setting(
        1, "how often the pair of content identifiers is said", low=1, high=100
    )
    repeat_training: bool = setting(True, "say them so often in the prompts of training")
    repeat_drawing: bool = setting(True, "say them so often in the prompts that are sampled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Worded):
    source: Source = section(Source)
    target: Contrasted = section(Contrasted)
    aux: Prior = section(Prior)
    contrast: Contrast = section(Contrast)


def _not(spec: Settings, what: str, other: str) -> str:
    """S_src not S_tgt"""
    return f"{what} {spec.contrast.negator} {other}" if spec.contrast.negator else what


def _style(spec: Settings, of_target: bool) -> str:
    source = word(spec.source.style, "source.style", "a drawing with {source.style} style")
    target = word(spec.target.style, "target.style", "a drawing with {target.style} style")
    return _not(spec, target, source) if of_target else _not(spec, source, target)


def _content(spec: Settings, of_target: bool, *, repeat: bool) -> str:
    source = word(spec.source.content, "source.content", "a drawing of {source.content} {noun}")
    target = word(spec.target.content, "target.content", "a drawing of {target.content} {noun}")
    pair = _not(spec, target, source) if of_target else _not(spec, source, target)
    times = spec.contrast.content_repeats if repeat else 1
    return f"{' '.join([pair] * times)} {noun(spec.words, f'a drawing of {pair} {{noun}}')}"


def _drawing(
    spec: Settings, *, style_of_target: bool, content_of_target: bool, repeat: bool
) -> str:
    times = spec.contrast.style_repeats if repeat else 1
    style = " ".join([_style(spec, style_of_target)] * times)
    content = _content(spec, content_of_target, repeat=repeat)
    return joined(f"a drawing with {style} style of {content}")


def program(spec: Settings, images: Given) -> Program:
    repeat = spec.contrast.repeat_training
    source = _drawing(spec, style_of_target=False, content_of_target=False, repeat=repeat)
    target = _drawing(spec, style_of_target=True, content_of_target=True, repeat=repeat)
    aux = f"a drawing with {_style(spec, False)} style of {spec.words.noun}"
    redrawn = None
    if spec.source.control:
        redrawn = Redrawn(
            section="source",
            prompt=source,
            kept=_content(spec, False, repeat=spec.contrast.repeat_drawing),
            share=spec.source.control,
            strength=spec.source.strength,
        )
    return Program(
        streams=[
            teaching("target", images, lambda content, descriptor: target, judges=True),
            teaching("source", images, lambda content, descriptor: source),
            keeping("aux", spec.aux, images, aux, generated=f"a {spec.words.noun}"),
        ],
        contents=[SUBJECT],
        identifiers={
            "source.style": spec.source.style,
            "source.content": spec.source.content,
            "target.style": spec.target.style,
            "target.content": spec.target.content,
        },
        redrawn=redrawn,
    )


def say(spec: Settings, content: str, descriptor: str) -> Prompt:
    subject = _drawing(
        spec,
        style_of_target=True,
        content_of_target=False,
        repeat=spec.contrast.repeat_drawing,
    )
    text = joined(content.replace(SUBJECT, subject))
    return Prompt(
        content=content,
        text=text,
        judged=joined(content.replace(SUBJECT, spec.words.noun), descriptor),
        unsaid="" if subject in text else subject,
    )


METHOD = Method(settings=Settings, program=program, say=say)
