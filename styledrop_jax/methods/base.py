"""What a method is: which images it trains on under which prompts, and how a prompt of the user's is drawn.

What trains (`config.round_N.adapter`), on which pipeline (`config.base`), and in how many rounds are choices of their
own: any of them goes with any method.

Templates are over fields of the config: `{identifier}` is `config.words.identifier`, `{source.style}` is
`config.source.style`. `(…)×{contrast.style_repeats}` says the words in brackets so often; `[…]` says them unless a
field in them is empty. A template or a section with `component_*` in it stands for those of component_1, component_2,
… that the config has.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from styledrop_jax.errors import UserError
from styledrop_jax.methods.prompts import POOL

_MANY = "component_*"
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_REPEATED = re.compile(r"\(([^()]*)\)×\{(\w+)\.(\w+)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Images that are trained on under one prompt template.

    Attributes:
        section: of the config, dotted, names the images.
        prompt: template over the words of an image, and fields of the config. The words are `{content}` and
            `{descriptor}`; of a mixed image `{left}` and `{right}`, two contents.
        generated: template of what the frozen model draws where the user gives no images; such a stream keeps what the
            model knows. Empty for images that teach something, which are always the user's.
    """

    section: str
    prompt: str
    generated: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One published method.

    Attributes:
        streams: the first teaches what drawings are judged by; in later rounds those that are selected take the place
            of its images.
        draws: template of what is drawn, over the same fields; `{content}` is the user's prompt, `{subject}`, also in
            the user's prompt, is `subject`.
        subject: what the streams teach, over the same fields; that of several components is joined by "and".
        pool: the prompts that are drawn between rounds unless the user has others; empty for the built-in pool. In
            them `{left}` and `{right}` stand for every two contents of the user's images.
        judged: template of what a drawing is scored against, without words that a scorer cannot know; there
            `{subject}` stands for the noun.
        learns: the fields of the words that stand for something new.
        redraws: the stream each of whose images is drawn anew, beside its own reconstruction under its own prompt, for
            `control` of its section of the steps; None draws from prompts alone.
        keeps: the words of both prompts at which a redrawn image's cross-attention is kept.
        mixed: the stream of every two images of different contents, cut and put side by side; None if there is none.
    """

    streams: tuple[Stream, ...]
    draws: str
    judged: str = "{content} {descriptor}"
    subject: str = ""
    pool: tuple[str, ...] = ()
    learns: tuple[str, ...] = ("identifier",)
    redraws: Stream | None = None
    keeps: str = ""
    mixed: Stream | None = None

    def caption(self, stream: Stream, config: Mapping[str, Any], **words: str) -> str:
        """The training prompt of one image of a stream, by its words; UserError if one that it needs is empty."""
        return _fill(stream.prompt, config, "repeat_training", **words)

    def prompt(self, config: Mapping[str, Any], content: str, descriptor: str = "") -> str:
        """The user's prompt `content` as the model is given it; UserError if a word that it needs is empty, or there is
        no subject that it could name."""
        if "{subject}" in content and not self.subject:
            raise UserError(
                f"prompt {content!r}: {{subject}} stands for nothing here; say what to draw"
            )
        return self._drawn(self.draws, config, self._subject(config), content, descriptor)

    def judgement(self, config: Mapping[str, Any], content: str, descriptor: str = "") -> str:
        """The same prompt as a scorer is given it."""
        return self._drawn(self.judged, config, "{noun}", content, descriptor)

    def prompts(self, contents: Iterable[str]) -> list[str]:
        """What is drawn between rounds, from the contents of the user's images."""
        two = list(itertools.permutations(dict.fromkeys(contents), 2)) or [("", "")]
        filled = (
            text.replace("{left}", a).replace("{right}", b)
            for text in self.pool or POOL
            for a, b in two
        )
        return list(dict.fromkeys(filled))

    def remark(self, config: Mapping[str, Any], content: str) -> str:
        """What is wrong with a prompt of the user's, one line; empty if nothing is."""
        subject = self._drawn(self._subject(config), config, "", "", "")
        if subject in self.prompt(config, content):
            return ""
        return f"prompt {content!r} does not say {subject!r}, which training teaches; {{subject}} stands for it"

    def _subject(self, config: Mapping[str, Any]) -> str:
        return " and ".join(_shortened(template, config) for template in each(self.subject, config))

    def _drawn(
        self, template: str, config: Mapping[str, Any], subject: str, content: str, descriptor: str
    ) -> str:
        words = {
            "content": content,
            "subject": subject,
            "descriptor": "" if descriptor in content else descriptor,
        }
        return _fill(template, config, "repeat_drawing", **words)

    def kept(self, config: Mapping[str, Any]) -> str:
        """`keeps` as the model is given it."""
        return _fill(self.keeps, config, "repeat_drawing")

    def identifiers(self, config: Mapping[str, Any]) -> list[str]:
        """The words that stand for something new, without those that are empty; UserError if two are the same."""
        known, found = _words(config), {}
        for name in (name for template in self.learns for name in each(template, config)):
            word = known[name]
            if word and (other := found.setdefault(word.lower(), name)) != name:
                raise UserError(
                    f"{_field(name)}: {word!r}, as {_field(other)}; expected a word of its own"
                )
        return [known[name] for name in found.values()]


def spread(streams: Sequence[Stream], config: Mapping[str, Any]) -> list[Stream]:
    """The streams, those with `component_*` once for every component."""
    return [
        dataclasses.replace(
            stream, section=section, prompt=stream.prompt.replace(_MANY, section.partition(".")[0])
        )
        for stream in streams
        for section in each(stream.section, config)
    ]


def each(template: str, config: Mapping[str, Any]) -> list[str]:
    """The template, or if it is over `component_*`, that of every component of the config; at least the first's."""
    if _MANY not in template:
        return [template]
    numbers = sorted(
        int(match[1]) for key in config if (match := re.fullmatch(r"component_(\d+)", key))
    )
    return [template.replace(_MANY, f"component_{number}") for number in numbers or [1]]


def _fill(template: str, config: Mapping[str, Any], switch: str, **words: str) -> str:
    """The template with its words; what it repeats is said once if `switch` of the section of the number is off."""

    def repeat(match: re.Match) -> str:
        section = config[match[2]]
        return " ".join([match[1]] * (section[match[3]] if section[switch] else 1))

    whole = _shortened(template, config)
    for name, word in words.items():
        whole = whole.replace(f"{{{name}}}", word)
    whole = _REPEATED.sub(repeat, whole)
    for name, word in _words(config).items():
        if f"{{{name}}}" in whole and not word:
            advice = (
                ", such as `styledrop rare-tokens` finds" if name.endswith("identifier") else ""
            )
            raise UserError(
                f'{_field(name)}: empty; expected a word for the prompt "{whole}"{advice}'
            )
        whole = whole.replace(f"{{{name}}}", word)
    return " ".join(whole.split())


def _shortened(template: str, config: Mapping[str, Any]) -> str:
    """The template without its `[…]` in which a field is empty."""
    known = _words(config)

    def said(match: re.Match) -> str:
        return match[1] if all(known[name] for name in re.findall(r"{([\w.]+)}", match[1])) else ""

    return _OPTIONAL.sub(said, template)


def _words(config: Mapping[str, Any]) -> dict[str, str]:
    """Every text of a section by its name in templates."""
    texts = {
        f"{name}.{field}": value
        for name, section in config.items()
        if isinstance(section, Mapping)
        for field, value in section.items()
        if isinstance(value, str)
    }
    return {name.removeprefix("words."): text for name, text in texts.items()}


def _field(name: str) -> str:
    return f"config.{name}" if "." in name else f"config.words.{name}"
