"""Several subjects that do not blend, by Cut-Mix-Unmix (SVDiff, 2303.11305 section 3.3).

Each content of the references, "a sks dog" and "a aug cat", is a subject. Beside each alone, the
model sees two of them cut and put next to each other, under a prompt that says where which is. The
paper shows such an example with probability 0.6 at each step; here they are a stream whose weight,
0.6 / 0.4, is the same in the mean. Its mixed images of the class prior are left out.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from styledrop_jax.errors import UserError
from styledrop_jax.methods.base import (
    Example,
    Given,
    Method,
    Program,
    Prompt,
    Referenced,
    Stream,
    joined,
    no_subject,
    teaching,
)
from styledrop_jax.settings import section, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    weight: float = setting(
        1.5, "of the loss of two subjects side by side beside that of each alone", low=0
    )
    unmix: float = setting(
        0.0, "of the attention of a subject's words to the other's half, in that (diffusion)", low=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Referenced):
    mix: Mix = section(Mix)


def _photo(content: str, descriptor: str = "") -> str:
    return joined(f"photo of {content}")


def _side_by_side(left: str, right: str) -> str:
    return joined(f"photo of {left} on the left and {right} on the right")


def _pairs(examples: Sequence[Example]) -> list[Example]:
    """Every two examples of different contents."""
    pairs = []
    for left, right in itertools.permutations(examples, 2):
        if left.content != right.content:
            prompt = _side_by_side(left.content, right.content)
            pairs.append(dataclasses.replace(left, prompt=prompt, right=right))
    if not pairs:
        raise UserError(
            f"config.reference: all images show {examples[0].content!r}; "
            "expected two subjects, named by content"
        )
    return pairs


def _contents(examples: Sequence[Example]) -> list[str]:
    """Each subject alone, and with each other one."""
    alone = list(dict.fromkeys(example.content for example in examples))
    contents = list(alone)
    for left, right in itertools.permutations(alone, 2):
        contents.append(f"{left} sitting beside {right}")
        contents.append(f"{left} and {right} on a blue background")
    return contents


def program(spec: Settings, images: Given) -> Program:
    alone = teaching("reference", images, _photo, judges=True)
    together = Stream(
        section="mix",
        examples=_pairs(alone.examples),
        caption=_side_by_side,
        weight=spec.mix.weight,
        unmix=spec.mix.unmix,
    )
    return Program(streams=[alone, together], contents=_contents(alone.examples))


def say(spec: Settings, content: str, descriptor: str) -> Prompt:
    text = _photo(no_subject(content))
    return Prompt(content=content, text=text, judged=joined(content))


METHOD = Method(settings=Settings, program=program, say=say, needs=("content",))
