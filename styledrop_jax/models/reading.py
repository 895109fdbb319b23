"""How prompts are read: as plain words, or as people write them for other tools, with weights,
BREAK, and more words than a text tower reads at once.

Weights and chunks are those of A1111's web UI: a token's features are multiplied by its weight, and
those of the chunk then scaled so that their mean is what it was. A chunk is as long as the tower
reads, with tokens of its own that begin and end it; the features of a prompt's chunks stand one
after the other.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.tokenizer import tokenize, warn_of_adapters, warn_of_cut, warn_of_open

SYNTAX = "()[]\\"
"""What means something in a prompt with weights; a backslash before a bracket makes it plain."""
_FACTOR = 1.1  # of a round bracket, and the divisor of a square one
_MOST = 100  # the highest weight
_BACK = 20  # tokens that a chunk may end early, after a comma
_PIECE = re.compile(
    r"\\(?P<plain>[()\[\]\\]?)"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|[()\[\]:]|[^\\()\[\]:]+"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_Piece = tuple[str, float]
_Token = tuple[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How prompts are read.

    Attributes:
        weights: (word:1.3), (word), which is 1.1, [word], which is 1/1.1, and BREAK, which begins a
            new chunk, are read as such and not as words.
        long: what one chunk has no room for goes into further ones; else it is cut.
    """

    weights: bool = False
    long: bool = False

    def plain(self, prompt: str) -> str:
        """The words of a prompt alone."""
        if not self.weights:
            return prompt
        words = []
        for group in parsed(prompt):
            words.append("".join(text for text, _ in group))
        return " ".join(" ".join(words).split())


PLAIN = Reading()


class Tokens(NamedTuple):
    """What a text tower is given of prompts: each of n chunks of t tokens.

    Attributes:
        ids: int32 [b, n, t].
        weights: float32 [b, n, t]; None is 1 everywhere.
    """

    ids: Any
    weights: Any = None

    @property
    def flat(self) -> "Tokens":
        """Those of all chunks, [b·n, t]."""
        t = self.ids.shape[-1]
        return Tokens(*(None if x is None else x.reshape(-1, t) for x in self))


def parsed(prompt: str) -> list[list[_Piece]]:
    """The text between one BREAK and the next, in pieces of one weight each.

    Brackets that are not closed hold to the end; those that nothing opens are words.

    Raises:
        UserError: a weight is beyond ±100.
    """
    groups: list[list[list]] = [[]]
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}

    def weigh(start: tuple[int, int], factor: float) -> None:
        first, place = start
        for number, group in enumerate(groups[first:]):
            for piece in group[place if number == 0 else 0 :]:
                piece[1] *= factor

    for match in _PIECE.finditer(prompt):
        text = match[0]
        if text in opened:
            opened[text].append((len(groups) - 1, len(groups[-1])))
        elif match["weight"] and opened["("]:
            weigh(opened["("].pop(), float(match["weight"]))
        elif text == ")" and opened["("]:
            weigh(opened["("].pop(), _FACTOR)
        elif text == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / _FACTOR)
        elif match["plain"] is not None:
            groups[-1].append([match["plain"], 1.0])
        else:
            first, *others = _BREAK.split(text)
            groups[-1].append([first, 1.0])
            groups += [[[other, 1.0]] for other in others]
    for kind, factor in (("(", _FACTOR), ("[", 1 / _FACTOR)):
        for start in opened[kind]:
            warn_of_open(prompt, kind)
            weigh(start, factor)
    return [_merged(group, prompt) for group in groups]


def _merged(group: Sequence[Sequence], prompt: str) -> list[_Piece]:
    """Neighbours of one weight as one piece, as the tokenizer is to see them."""
    merged: list[_Piece] = []
    for text, weight in group:
        if not abs(weight) <= _MOST:
            raise UserError(
                f"prompt {shown(prompt)}: found the weight {weight:.6g}, expected a number from "
                f"-{_MOST} to {_MOST}"
            )
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """What reads prompts for one text tower.

    Attributes:
        tokenizer: of the tower. length: tokens of a chunk, with those that begin and end it.
        known: ids of the tower's own table; those from there on are of learnt words.
        how: see `Reading`.
        expand: what is done to words before the tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    known: int
    how: Reading
    expand: Callable[[str], str]

    def chunks(self, prompt: str) -> list[list[_Token]]:
        """The tokens of each chunk with their weights, without those that begin and end it; at
        least one chunk.

        A chunk that is full ends after a comma among its last 20 tokens, if there is one, and never
        within a learnt word.
        """
        warn_of_adapters(prompt)
        groups = parsed(prompt) if self.how.weights else [[(prompt, 1.0)]]
        found: list[list[_Token]] = []
        for group in groups:
            tokens = self._tokens(group)
            if self.how.long:
                found += self._cut(tokens)
                continue
            if len(tokens) > self.room:
                lost = str(self.tokenizer.decode([token for token, _ in tokens[self.room :]]))
                warn_of_cut(prompt, len(tokens) + len(self._around), self.length, lost)
            found.append(tokens[: self.room])
        if len(found) > 1 and not found[-1]:  # after a BREAK at the end
            found.pop()
        return found

    def packed(self, chunks: Sequence[Sequence[Sequence[_Token]]], count: int) -> Tokens:
        """The `chunks` of prompts as arrays; those who have fewer than `count` get empty ones."""
        *first, last = self._around
        ids = np.full((len(chunks), count, self.length), self.tokenizer.pad_token_id, np.int32)
        weights = np.ones(ids.shape, np.float32)
        for row, own in enumerate(chunks):
            for place in range(count):
                tokens = own[place] if place < len(own) else []
                named = [*first, *(token for token, _ in tokens), last]
                ids[row, place, : len(named)] = named
                for number, (_, weight) in enumerate(tokens, len(first)):
                    weights[row, place, number] = weight
        return Tokens(ids, weights if self.how.weights else None)

    @property
    def room(self) -> int:
        """Tokens of a chunk, without those that begin and end it."""
        return self.length - len(self._around)

    @functools.cached_property
    def _around(self) -> list[int]:
        """The ids that begin and end every text."""
        return self.tokenizer("", verbose=False)["input_ids"]

    @functools.cached_property
    def _comma(self) -> int | None:
        ids = self.tokenizer(",", add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    def _tokens(self, group: Sequence[_Piece]) -> list[_Token]:
        found = []
        for text, weight in group:
            words = self.expand(text)
            ids = self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
            found += [(token, weight) for token in ids]
        return found

    def _cut(self, tokens: list[_Token]) -> Iterator[list[_Token]]:
        while len(tokens) > self.room:
            end = self._end(tokens)
            yield tokens[:end]
            tokens = tokens[end:]
        yield tokens

    def _end(self, tokens: Sequence[_Token]) -> int:
        """Where the first chunk of `tokens`, which are too many for one, ends."""
        end = self.room
        if tokens[end][0] != self._comma:
            for place in range(end, max(end - _BACK, 0), -1):
                if tokens[place - 1][0] == self._comma:
                    return place
        while end and tokens[end][0] >= self.known and tokens[end - 1][0] >= self.known:
            end -= 1
        return end or self.room


def read(reader: Reader, prompts: Sequence[str], count: int = 1) -> Tokens:
    """Prompts → their tokens, in as many chunks as the longest of them needs, at least `count`."""
    if reader.how == PLAIN:
        expanded = [reader.expand(prompt) for prompt in prompts]
        return Tokens(tokenize(reader.tokenizer, expanded, reader.length)[:, None])
    chunks = [reader.chunks(prompt) for prompt in prompts]
    return reader.packed(chunks, max([count, *map(len, chunks)]))


def weighted(states: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Features [b, t, c] times the weights [b, t] of their tokens, scaled so that the mean of each
    [t, c] is what it was, as A1111's web UI does; None leaves them as they are.
    """
    if weights is None:
        return states
    exact = states.astype(jnp.float32)
    changed = exact * weights[..., None]
    before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (exact, changed))
    nothing = after == 0
    scale = jnp.where(nothing, 1, before / jnp.where(nothing, 1, after))
    return (changed * scale).astype(states.dtype)


def in_a_row(states: jax.Array, count: int) -> jax.Array:
    """Features of chunks [b·n, t, c] → of prompts of n = `count` chunks [b, n·t, c]."""
    _, t, c = states.shape
    return states.reshape(-1, count * t, c)
