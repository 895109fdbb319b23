"""What the user gave, read and checked before anything is loaded."""

from collections.abc import Sequence
from typing import NamedTuple

from styledrop_jax import settings
from styledrop_jax.errors import UserError
from styledrop_jax.io import captions
from styledrop_jax.io.captions import Reference, read_references
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods.base import (
    Captioned,
    Given,
    Images,
    Prior,
    Program,
    Prompt,
    Stream,
    joined,
)
from styledrop_jax.registry import METHODS
from styledrop_jax.spec import RunSpec, check_rounds
from styledrop_jax.stages.job import Taught


class Read(NamedTuple):
    """What is known before anything is loaded: see the fields of `Job` of the same names."""

    program: Program
    given: list[Taught]
    contents: list[str]
    said: list[Prompt]
    by_round: dict[int, list[Prompt]]


def read(spec: RunSpec) -> Read:
    """Reads what the user gave, and checks all that can be checked without a model.

    Raises:
        UserError: anything in the settings, the images or the prompts that is not right.
    """
    images = read_images(spec)
    program = METHODS[spec.method].program(spec, images)
    check_words(program)
    given = taught(program, images)
    descriptor = given[0].reference.descriptor
    contents = _contents(spec.prompts) or list(program.contents)
    said = _said(spec, contents, descriptor)
    by_round = _said_by_round(spec, descriptor)
    check_rounds(spec)
    return Read(program, given, contents, said, by_round)


def read_images(spec: RunSpec) -> dict[str, list[Reference]]:
    """The user's images by the section that names them; an empty list of a prior that names none.

    Raises:
        UserError: images are missing, cannot be read, or lack words that the method needs.
    """
    found = {}
    for name, section in settings.sections(spec):
        if not isinstance(section, Images):
            continue
        if isinstance(section, Prior) and not section.image:
            found[name] = []
            continue
        content = ""
        descriptor = ""
        needs: tuple[str, ...] = ()
        if isinstance(section, Captioned):
            content = section.content
            descriptor = section.descriptor
            needs = METHODS[spec.method].needs
        found[name] = read_references(
            section.image,
            content,
            descriptor,
            fit=section.fit,
            needs=needs,
            field=f"config.{name}",
        )
    return found


def taught(program: Program, images: Given) -> list[Taught]:
    """The user's images that teach something, in the order of the streams."""
    found = []
    for stream in program.streams:
        if not stream.teaches or stream.section not in images:
            continue
        for reference in images[stream.section]:
            found.append(
                Taught(
                    section=stream.section,
                    reference=reference,
                    caption=stream.caption(reference.content, reference.descriptor),
                    file=f"references/{len(found):03d}.png",
                )
            )
    return found


def check_words(program: Program) -> None:
    """UserError if an identifier stands for two things, or two streams that differ train under one
    prompt.
    """
    known: dict[str, str] = {}
    for field, given in program.identifiers.items():
        word = joined(given)
        other = known.setdefault(word.lower(), field)
        if word and other != field:
            raise UserError(
                f"config.{field}: {word!r}, as config.{other}; expected a word of its own"
            )
    first: dict[str, Stream] = {}
    for stream in sorted(program.streams, key=lambda stream: stream.section):
        for prompt in _prompts(stream):
            other = first.setdefault(prompt, stream)
            if other is not stream and (other.teaches or stream.teaches):
                raise UserError(
                    f"config.{stream.section}: trains under {prompt!r}, as config.{other.section} "
                    "does; expected an identifier of its own"
                )


def _prompts(stream: Stream) -> set[str]:
    if not stream.teaches:
        return {stream.caption("", "")}
    return {example.prompt for example in stream.examples}


def check_inputs(run: Run, given: Sequence[Taught], contents: Sequence[str]) -> None:
    """UserError if images, words or prompts are not those that the run began with: a file may
    change under its path.
    """
    if not run.manifest:
        return
    found: dict[str, list] = {"prompts": list(contents)}
    before: dict[str, list] = {"prompts": run.prompts}
    for item in given:
        reference = item.reference
        words = [reference.sha256, reference.content, reference.descriptor, reference.ground]
        found.setdefault(item.section, []).append(words)
    for entry in run.references:
        words = [entry.get(name, "") for name in ("sha256", "content", "descriptor", "ground")]
        before.setdefault(str(entry.get("section")), []).append(words)
    changed = [f"config.{name}" for name in found if found[name] != before.get(name)]
    if changed:
        raise UserError(
            f"{run.workdir}: what {' and '.join(changed)} names has changed since this run began; "
            "expected the same files, or another --workdir"
        )


def _contents(file: str) -> list[str]:
    return captions.read_prompts(file) if file else []


def _said(spec: RunSpec, contents: Sequence[str], descriptor: str) -> list[Prompt]:
    """The contents as the method says them."""
    say = METHODS[spec.method].say
    return [say(spec, content, descriptor) for content in contents]


def _said_by_round(spec: RunSpec, descriptor: str) -> dict[int, list[Prompt]]:
    """The prompts of the rounds that have their own."""
    found = {}
    for number in range(1, spec.rounds + 1):
        if contents := _contents(spec.round(number).prompts):
            found[number] = _said(spec, contents, descriptor)
    return found
