"""Textual Inversion (arXiv 2208.01618): new words for a frozen text tower; their embeddings train.

The tower's table and its rows stay as they are. The new rows stand beside it, under ids that follow
the vocabulary's. What trains is their difference to the rows of a word to start from.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.clip import ClipText, towers
from styledrop_jax.settings import setting

_LONGEST_WORD = 100  # letters
_UNSPACED = (
    "\u0e00-\u109f"  # Thai, Lao, Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
    "\uac00-\ud7af"  # Korean, whose particles follow a word at once
)
_SPACED = rf"[^\W{_UNSPACED}]"
"""The regular expression of a letter, digit or _ of a script that has spaces between words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """One new word.

    Attributes:
        word: what stands for it in prompts, such as "<painter>".
        initializer: the words it starts as, of at most `vectors` tokens of the tokenizer; with
            fewer they repeat.
        vectors: how many rows it has, and places it takes in a prompt.
    """

    word: str
    initializer: str
    vectors: int = 1

    def __post_init__(self) -> None:
        is_word = isinstance(self.word, str) and 0 < len(self.word) <= _LONGEST_WORD
        if not is_word or re.search(r"\s", self.word):
            raise UserError(
                f"token: found {shown(self.word)}, expected a word without spaces of at most "
                f"{_LONGEST_WORD} letters, such as '<painter>'"
            )
        if not isinstance(self.initializer, str):
            raise UserError(
                f"token {shown(self.word)}: found the initializer {shown(self.initializer)}, "
                "expected text"
            )
        if not (type(self.vectors) is int and self.vectors > 0):
            raise UserError(
                f"token {shown(self.word)}: found {shown(self.vectors)} vectors, "
                "expected a positive whole number"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What the tokenizer knows its rows by, as in diffusers: the word, word_1, word_2, …"""
        return (self.word, *(f"{self.word}_{i}" for i in range(1, self.vectors)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """The new words.

    Attributes:
        tokens: at least one.
        norm: the new rows are scaled to the mean length of the table's, whatever they train to. The
            paper does not do this.
    """

    kind: ClassVar[str] = "textual_inversion"
    tokens: tuple[Token, ...]
    norm: bool = False

    def __post_init__(self) -> None:
        tokens: list[Token] = []
        fields: Any
        for fields in self.tokens:
            # A file holds a token as a mapping of its fields.
            tokens.append(fields if isinstance(fields, Token) else Token(**fields))
        object.__setattr__(self, "tokens", tuple(tokens))
        if not tokens:
            raise UserError("textual inversion tokens: found none, expected at least one")
        known = set()
        for token in tokens:
            for name in token.names:
                if name in known:
                    raise UserError(
                        f"textual inversion tokens: found {shown(name)} twice, "
                        "expected different words"
                    )
                known.add(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`; Custom Diffusion learns a word too and has them."""

    vectors: int = setting(1, "tokens of the new word", low=1, high=64)
    initializer: str = setting(
        "style", "what the new word starts as, words of at most `vectors` tokens"
    )
    norm: bool = setting(False, "the new word's rows keep the length of the table's")


def new_words(settings: Settings, identifiers: Sequence[str], *, kind: str = Config.kind) -> Config:
    """The words that stand for `identifiers`; UserError if there are none."""
    if not identifiers:
        raise UserError(
            f"config.words.identifier: empty; {kind} learns a new word, such as '<style>'"
        )
    tokens = []
    for word in identifiers:
        tokens.append(Token(word=word, initializer=settings.initializer, vectors=settings.vectors))
    return Config(tokens=tuple(tokens), norm=settings.norm)


class Rows(nnx.Module):
    """The rows of the new tokens: initial + δ, scaled to length `norm` if there is one."""

    def __init__(self, initial: jax.Array, *, first: int, norm: jax.Array | None):
        """initial: [n, d]. first: the id of the first row. norm: a number."""
        self.initial = nnx.Variable(initial)
        self.delta = AdapterParam(jnp.zeros_like(initial))
        self.first = first
        self.norm = None if norm is None else nnx.Variable(norm)

    def rows(self) -> jax.Array:
        """[n, d], float32"""
        rows = self.initial[...] + self.delta[...]
        if self.norm is None:
            return rows
        return rows * (self.norm[...] / jnp.linalg.norm(rows, axis=-1, keepdims=True))

    def __call__(self, ids: jax.Array, x: jax.Array) -> jax.Array:
        """The rows to use, [b, t, d] in x's dtype.

        Args:
            ids: [b, t].
            x: the table's rows [b, t, d], anything for ids that it has no row for.
        """
        rows = self.rows().astype(x.dtype)
        place = ids - self.first
        new = (place >= 0) & (place < len(rows))
        return jnp.where(new[..., None], rows[jnp.where(new, place, 0)], x)


def extend(tokenizer: PreTrainedTokenizerBase, config: Config) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that knows the new words, where `expand` finds them.

    Raises:
        UserError: it knows one of them already.
    """
    names = [name for token in config.tokens for name in token.names]
    vocabulary = tokenizer.get_vocab()
    added = []
    for name in names:
        if name in vocabulary or len(tokenizer.tokenize(name)) == 1:
            expected = f"a new one, such as '<{name}>'"
            raise UserError(f"token {name!r}: the tokenizer knows this word; expected {expected}")
        in_letters = bool(re.match(r"\w", name) or re.search(r"\w$", name))
        added.append(AddedToken(name, single_word=in_letters, normalized=False))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(added)
    return tokenizer


def expand(prompt: str, config: Config) -> str:
    """The prompt with every new word followed by the names of its other vectors, for the tokenizer.

    A word is found where it is written just so and stands alone: not within letters and digits of a
    script that has spaces between words. Chinese, Japanese or Thai may stand right beside it, and
    anything beside the brackets of a word such as "<painter>".
    """
    tokens = {token.word: token for token in config.tokens}
    longest_first = sorted(tokens, key=len, reverse=True)
    alone = "|".join(map(_standing_alone, longest_first))

    def spelt_out(match: re.Match[str]) -> str:
        before = prompt[: match.start()]
        after = prompt[match.end() :]
        # The tokenizer looks for spaces, whatever the script.
        left = " " if re.search(r"\w$", before) else ""
        right = " " if re.match(r"\w", after) else ""
        return left + " ".join(tokens[match[0]].names) + right

    return re.sub(alone, spelt_out, prompt)


def _standing_alone(word: str) -> str:
    """The regular expression of `word` where it is a word of its own."""
    before = rf"(?<!{_SPACED})" if re.match(_SPACED, word) else ""
    after = rf"(?!{_SPACED})" if re.search(f"{_SPACED}$", word) else r"(?!_\d)"
    return before + re.escape(word) + after


def attach(
    text: nnx.Module, config: Config, *, rngs: nnx.Rngs, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Sets the rows of the new tokens beside the table, in place of any that were there.

    Touches no weight.

    Args:
        text: a CLIP text tower, or a pair of them: each has rows of its own.
        config: the new words.
        rngs: not used: every row starts as a word's.
        tokenizer: the tower's own; encode prompts with that of `extend`.

    Raises:
        UserError: the tokenizer is not the tower's, or a word to start from is too long.
    """
    ids: list[int] = []
    for token in config.tokens:
        start = tokenizer(token.initializer, add_special_tokens=False)["input_ids"]
        if not 0 < len(start) <= token.vectors:
            raise UserError(
                f"token {shown(token.word)}: its initializer {shown(token.initializer)} is "
                f"{len(start)} tokens, expected 1 to {token.vectors}, its vectors"
            )
        for i in range(token.vectors):
            ids.append(start[i % len(start)])
    for tower in towers(text).values():
        first = tower.config.vocab_size
        if len(tokenizer) != first:
            raise UserError(
                f"textual inversion: the tokenizer has {len(tokenizer)} tokens, "
                f"expected the tower's {first}"
            )
        embeddings: Any = tower.text_model.embeddings
        table = embeddings.token_embedding.embedding[...].astype(jnp.float32)
        norm = jnp.linalg.norm(table, axis=-1).mean() if config.norm else None
        embeddings.adapter = nnx.data(Rows(table[jnp.array(ids)], first=first, norm=norm))


def trained_rows(text: ClipText, config: Config) -> dict[str, np.ndarray]:
    """{word: its rows, float32 [n, d]}, of one tower with `config` attached."""
    rows = np.asarray(_rows(text).rows(), np.float32)
    found = {}
    start = 0
    for token in config.tokens:
        found[token.word] = rows[start : start + token.vectors]
        start += token.vectors
    return found


def set_rows(text: ClipText, config: Config, rows: Mapping[str, np.ndarray]) -> None:
    """Puts given rows in place of the trained ones; `config.norm` scales them too.

    Args:
        text: one tower, with `config` attached.
        config: its words.
        rows: {word: [n, d]} for exactly these words.

    Raises:
        UserError: other words, or other shapes.
    """
    found = {word: np.shape(part) for word, part in rows.items()}
    expected = {}
    for token in config.tokens:
        expected[token.word] = (token.vectors, text.config.hidden_size)
    if found != expected:
        raise UserError(
            f"textual inversion rows: found {shown(found, 100)}, expected {shown(expected, 100)}"
        )
    given = np.concatenate([np.asarray(rows[word], np.float32) for word in expected])
    adapter = _rows(text)
    adapter.delta[...] = given - adapter.initial[...]


def _rows(text: ClipText) -> Rows:
    embeddings: Any = text.text_model.embeddings
    return embeddings.adapter


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    return Trainable(words=new_words(settings, identifiers))


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
