"""The built-in pool of contents to draw, and the check of a prompt's words against what a model
knows.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

POOL = (
    "a cat",
    "a dog",
    "a rabbit",
    "an elephant",
    "a penguin",
    "a panda",
    "a fish",
    "a bee",
    "a turtle",
    "a snail",
    "a tree",
    "a sunflower",
    "a mushroom",
    "a cactus",
    "an apple",
    "a banana",
    "a strawberry",
    "a pizza",
    "a birthday cake",
    "a hamburger",
    "a car",
    "a bus",
    "a bicycle",
    "a rocket",
    "a sailboat",
    "a castle",
    "a guitar",
    "an umbrella",
    "a key",
    "a star",
)
"""30 everyday contents, as many as StyleDrop's pool has (2306.00983 §3.3; the paper's own list is
not published).
"""

VOCABULARY = "vocabulary.json"
"""The file of a shipped model that lists what it was taught."""


def noun(content: str) -> str:
    """What a content names, without its article: "a cat" → "cat"."""
    return re.sub(r"^(?:an?|the)\s+", "", content.strip(), flags=re.IGNORECASE)


def unknown(prompts: Sequence[str], model: Path) -> list[str]:
    """The prompts that name nothing in the model's `vocabulary.json`; none if it has no such
    file.
    """
    names = _names(model)
    return [prompt for prompt in dict.fromkeys(prompts) if names and not names.search(prompt)]


def known(words: Sequence[str], model: Path) -> list[str]:
    """The words that are names in the model's `vocabulary.json`; none if it has no such file."""
    names = _names(model)
    return [word for word in words if names and names.fullmatch(word)]


def _names(model: Path) -> re.Pattern | None:
    path = model / VOCABULARY
    if not path.is_file():
        return None
    names = json.loads(path.read_text(encoding="utf-8"))
    return re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")(?:e?s)?\b", re.IGNORECASE)
