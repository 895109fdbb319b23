"""What a method is: a function from its settings and the user's images to the program that a run
carries out.

What trains (`config.round_N.adapter`), on which pipeline (`config.base`), and in how many rounds
are choices of their own: any of them goes with any method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.captions import Reference
from styledrop_jax.io.fit import FITS, Size
from styledrop_jax.io.image_files import to_square
from styledrop_jax.methods.halves import halves
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.settings import section, setting

SUBJECT = "{subject}"
"""Stands for what a run learnt in the prompts of a user."""


# -------------------------------------------------------------- sections of a config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A section that names images of the user's."""

    image: str = setting(
        "", "images of this part: a file, folder, JSONL or bundled:NAME", path="file", basic=True
    )
    fit: str = setting(
        "auto",
        "how an image that is no square becomes one: cut to its middle, padded with the colour of "
        "its ground, or (auto) padded where that is plain or transparent, else cut; keep: as auto, "
        "but what would be cut keeps about its shape in training (Stable Diffusion)",
        choices=FITS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned(Images):
    """Images with the words for what they show and how."""

    content: str = setting("", 'what it shows, "a house"', basic=True)
    descriptor: str = setting("", 'how it is drawn, "in watercolor painting style"', basic=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(Images):
    """Images that keep what the model knows."""

    image: str = setting(
        "",
        "images that keep what the model knows, a file or folder; empty: the frozen model's own",
        path="file",
    )
    weight: float = setting(1.0, "of the loss of these images beside that of what is taught", low=0)
    generate: int = setting(
        0,
        "how many there are to be: the frozen model makes what the given ones lack",
        low=0,
        high=100_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Words that methods put into prompts."""

    identifier: str = setting("", "the word that stands for what is learnt", basic=True)
    noun: str = setting("", "the class of a subject, such as dog", basic=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worded:
    """The settings of every method."""

    words: Words = section(Words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referenced(Worded):
    """The settings of a method that learns from one set of images."""

    reference: Captioned = section(Captioned)


# -------------------------------------------------------------- what a run carries out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of the user's, in the words of a method.

    Attributes:
        content: as the user wrote it.
        text: as the model is given it.
        judged: as a scorer is given it, without words that a scorer cannot know.
        unsaid: what training teaches and the prompt does not say; empty if nothing.
    """

    content: str
    text: str
    judged: str
    unsaid: str = ""

    @property
    def remark(self) -> str:
        """What is wrong with it, one line; empty if nothing is."""
        if not self.unsaid:
            return ""
        return (
            f"prompt {self.content!r} does not say {self.unsaid!r}, which training teaches; "
            f"{SUBJECT} stands for it"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image that trains, and its prompt.

    Attributes:
        image: uint8 [h, w, 3], any size. prompt: that it trains under.
        content: what it shows.
        ground: "#rrggbb", which pads the image to a square; empty if it is cut to one.
        right: an image of another content; then the halves of both train side by side.
        keeps: whether it keeps its shape.
    """

    image: np.ndarray
    prompt: str
    content: str = ""
    ground: str = ""
    right: "Example | None" = None
    keeps: bool = False

    @property
    def shape(self) -> Size | None:
        """Its own height and width, if it keeps them; None of a square."""
        h, w = self.image.shape[:2]
        return (h, w) if self.keeps and self.right is None else None

    def cut(self, size: Size, crop: tuple[float, float, float] | None = None) -> np.ndarray:
        """uint8 [h, w, 3] of a height and width; see `at`."""
        height, width = size
        return self.at(height, crop) if height == width else image_files.cut(self.image, size, crop)

    def at(self, resolution: int, crop: tuple[float, float, float] | None = None) -> np.ndarray:
        """uint8 [resolution, resolution, 3]; see `to_square` for `crop`, which is for whole
        images.
        """
        if self.right is not None:
            left = to_square(self.image, resolution, ground=self.ground)
            return halves(left, self.right.at(resolution))
        return to_square(self.image, resolution, ground=self.ground, crop=crop)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Images that train together, and whose loss has one weight.

    Attributes:
        section: of the config that names them, dotted.
        examples: the images, each under its prompt.
        caption: (content, descriptor) → the prompt of an image of this stream.
        weight: of its loss.
        teaches: whether it teaches something new; else it keeps what the model knows.
        judges: whether samples are compared with its images, and take their place in later rounds.
        generated: the prompt and the number of images of the frozen model's that are to be added.
        unmix: weight of the attention of each half's words to the other half.
    """

    section: str
    examples: Sequence[Example]
    caption: Callable[[str, str], str]
    weight: float = 1.0
    teaches: bool = True
    judges: bool = False
    generated: tuple[str, int] | None = None
    unmix: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Redrawn:
    """A stream whose images are generated anew, each beside its own reconstruction.

    Attributes:
        section: of the stream. prompt: of the reconstruction.
        kept: the words at which the source's cross-attention is kept.
        share: of the steps that take it over. strength: how much of the image is noise first.
    """

    section: str
    prompt: str
    kept: str
    share: float
    strength: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """What a run carries out.

    Attributes:
        streams: what trains; at least one teaches and judges.
        contents: prompts to sample between rounds, unless the user has others.
        identifiers: {field of the config: word that stands for something new}.
        redrawn: None if samples come from prompts alone.
    """

    streams: Sequence[Stream]
    contents: Sequence[str] = POOL
    identifiers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redrawn: Redrawn | None = None


Given = Mapping[str, Sequence[Reference]]
"""The user's images by the section of the config that names them, dotted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One published method.

    Attributes:
        settings: the dataclass of its own sections of a config.
        program: (settings, images of the user's) → what the run carries out.
        say: (settings, content, descriptor) → the prompt as training taught to say it.
        needs: the words that every image that teaches must have, of "content" and "descriptor".
    """

    settings: type
    program: Callable[[Any, Given], Program]
    say: Callable[[Any, str, str], Prompt]
    needs: tuple[str, ...] = ()


# -------------------------------------------------------------- what methods are made of


def word(value: str, field: str, prompt: str) -> str:
    """`value` as prompts say it; UserError if it is empty, which `prompt` cannot do without."""
    if said := joined(value):
        return said
    advice = ", such as `styledrop rare-tokens` finds" if field.endswith("identifier") else ""
    raise UserError(f'config.{field}: empty; expected a word for the prompt "{prompt}"{advice}')


def identifier(words: Words, prompt: str) -> str:
    """`config.words.identifier`, which `prompt` cannot do without."""
    return word(words.identifier, "words.identifier", prompt)


def noun(words: Words, prompt: str) -> str:
    """`config.words.noun`, which `prompt` cannot do without."""
    return word(words.noun, "words.noun", prompt)


def joined(*parts: str) -> str:
    """The words of all parts with single spaces between them."""
    return " ".join(" ".join(parts).split())


def described(content: str, descriptor: str) -> str:
    """A content with the words of its style, once."""
    return joined(content) if descriptor in content else joined(content, descriptor)


def no_subject(content: str) -> str:
    """`content`; UserError if it says `{subject}`, of which the method knows none."""
    if SUBJECT in content:
        raise UserError(
            f"prompt {content!r}: {SUBJECT} stands for nothing here; say what to sample"
        )
    return content


def teaching(
    section: str,
    images: Given,
    caption: Callable[[str, str], str],
    *,
    judges: bool = False,
) -> Stream:
    """The stream of a section's images, each under its caption."""
    examples = []
    for image in images[section]:
        prompt = caption(image.content, image.descriptor)
        examples.append(_example(image, prompt))
    return Stream(section=section, examples=examples, caption=caption, judges=judges)


def _example(image: Reference, prompt: str) -> Example:
    return Example(
        image=image.image,
        prompt=prompt,
        content=image.content,
        ground=image.ground,
        keeps=image.keeps,
    )


def keeping(section: str, prior: Prior, images: Given, prompt: str, generated: str = "") -> Stream:
    """The stream of images that keep what the model knows: the user's, and the frozen model's where
    those are too few.

    Args:
        section: of the config. prior: its settings.
        images: of the user's; none in that section if the frozen model is to make them.
        prompt: that they train under.
        generated: the prompt that the frozen model is given; empty for the same.

    Raises:
        UserError: there are no images, and none are to be generated.
    """
    given = images[section]
    lacking = max(0, prior.generate - len(given))
    if not given and not lacking:
        raise UserError(
            f"config.{section}.image: empty; expected images of {prompt!r}, a file or folder, or "
            f"config.{section}.generate above 0 for the frozen model to make them"
        )
    return Stream(
        section=section,
        examples=[_example(image, prompt) for image in given],
        caption=lambda content, descriptor: prompt,
        weight=prior.weight,
        teaches=False,
        generated=(generated or prompt, lacking) if lacking else None,
    )
