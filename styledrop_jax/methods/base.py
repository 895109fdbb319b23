"""What a method is: which images it trains on under which prompts, and how a prompt of the user's is drawn.

What trains (`config.round_N.adapter`), on which backbone (`config.base`), and in how many rounds are choices of their
own: any of them goes with any method.
"""

import dataclasses
from collections.abc import Mapping

from styledrop_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Images that are trained on under one prompt template.

    Attributes:
        section: of the config, names the images: "reference" holds the user's in round 1, and the selected drawings
            take their place in later rounds; every other section has its own `image`, `weight` and `generate`.
        prompt: template over `{content}` and `{descriptor}` of an image, `{identifier}` and `{noun}` of `config.words`.
        generated: whether images may be drawn by the frozen model, under this stream's prompt, where none are given.
    """

    section: str
    prompt: str
    generated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One published method.

    Attributes:
        streams: the first is of the section "reference".
        draws: template of what is drawn, over the same words; `{content}` is the user's prompt, in which
            `{subject}` stands for `subject`.
        subject: what the streams teach, over the same words; empty for a style.
        pool: the prompts that are drawn between rounds unless the user has others; empty for the built-in pool.
        judged: template of what a drawing is scored against, without words that a scorer cannot know; there
            `{subject}` stands for the noun.
    """

    streams: tuple[Stream, ...]
    draws: str
    judged: str = "{content} {descriptor}"
    subject: str = ""
    pool: tuple[str, ...] = ()

    def caption(self, stream: Stream, words: Mapping[str, str], content: str = "", descriptor: str = "") -> str:
        """The training prompt of one image of a stream; UserError if a word that it needs is empty."""
        return self._fill(stream.prompt, words, self.subject, content, descriptor)

    def prompt(self, words: Mapping[str, str], content: str, descriptor: str = "") -> str:
        """The user's prompt `content` as the model is given it; UserError if a word that it needs is empty."""
        return self._fill(self.draws, words, self.subject, content, "" if descriptor in content else descriptor)

    def judgement(self, words: Mapping[str, str], content: str, descriptor: str = "") -> str:
        """The same prompt as a scorer is given it."""
        return self._fill(self.judged, words, "{noun}", content, "" if descriptor in content else descriptor)

    def _fill(self, template: str, words: Mapping[str, str], subject: str, content: str, descriptor: str) -> str:
        known = {"identifier": words["identifier"], "noun": words["noun"]}
        content = content.replace("{subject}", subject)
        whole = template.replace("{content}", content).replace("{descriptor}", descriptor)
        for name, word in known.items():
            if f"{{{name}}}" in whole and not word:
                raise UserError(f'config.words.{name}: empty; expected a word for the prompt "{whole}"')
            whole = whole.replace(f"{{{name}}}", word)
        return " ".join(whole.split())
