"""Textual Inversion (arXiv 2208.01618): new words for a frozen text tower, whose embeddings are all that trains.

The tower's table and its rows stay as they are; the new rows stand beside it, under ids that follow the vocabulary's.
What trains is their difference to the rows of a word to start from.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.models.clip import ClipText
from styledrop_jax.settings import setting

_KOHYA = "emb_params"
_TWO_TOWERS = {"clip_l", "clip_g"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """One new word.

    Attributes:
        word: what stands for it in prompts, such as "<painter>".
        initializer: the words it starts as, of at most `vectors` tokens of the tokenizer; with fewer they repeat.
        vectors: how many rows it has, and places it takes in a prompt.
    """

    word: str
    initializer: str
    vectors: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.word, str) and self.word and not re.search(r"\s", self.word)):
            raise UserError(
                f"token: found {self.word!r}, expected a word without spaces, such as '<painter>'"
            )
        if not (isinstance(self.vectors, int) and self.vectors > 0):
            raise UserError(
                f"token {self.word!r}: found {self.vectors!r} vectors, expected a positive whole number"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What the tokenizer knows its rows by, as in diffusers: the word, then word_1, word_2, …"""
        return (self.word, *(f"{self.word}_{i}" for i in range(1, self.vectors)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """The new words.

    Attributes:
        tokens: at least one.
        norm: the new rows are scaled to the mean length of the table's, whatever they train to. The paper does not.
    """

    kind: ClassVar[str] = "textual_inversion"
    tokens: tuple[Token, ...]
    norm: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(token, Token) for token in self.tokens):  # as a file holds them
            object.__setattr__(self, "tokens", tuple(Token(**token) for token in self.tokens))
        names = [name for token in self.tokens for name in token.names]
        if not names:
            raise UserError("textual inversion tokens: found none, expected at least one")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"textual inversion tokens: found {', '.join(twice)} twice, expected different words"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`; Custom Diffusion, whose word is learnt so, has them too."""

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
        """ids: [b, t]. x: the table's rows [b, t, d], anything where it has none. Returns [b, t, d] in x's dtype."""
        rows = self.rows().astype(x.dtype)
        place = ids - self.first
        new = (place >= 0) & (place < len(rows))
        return jnp.where(new[..., None], rows[jnp.where(new, place, 0)], x)


def extend(tokenizer: PreTrainedTokenizerBase, config: Config) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that knows the new words, where they stand alone and are written just so.

    Raises:
        UserError: it knows one of them already.
    """
    names = [name for token in config.tokens for name in token.names]
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if name in vocabulary or len(tokenizer.tokenize(name)) == 1:
            raise UserError(
                f"token {name!r}: the tokenizer knows this word; expected a new one, such as '<{name}>'"
            )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(name, single_word=True, normalized=False) for name in names])
    return tokenizer


def expand(prompt: str, config: Config) -> str:
    """The prompt with every word of several vectors followed by the names of the others, ready for the tokenizer."""
    for token in config.tokens:
        prompt = re.sub(
            rf"(?<!\w){re.escape(token.word)}(?!\w)", lambda _, t=token: " ".join(t.names), prompt
        )
    return prompt


def attach(
    text: ClipText, config: Config, *, rngs: nnx.Rngs, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Sets the rows of the new tokens beside the table, in place of any that were there; touches no weight.

    Args:
        text: a CLIP text tower.
        config: the new words.
        rngs: not drawn from: every row starts as a word's.
        tokenizer: the tower's own; encode prompts with that of `extend`.

    Raises:
        UserError: the tokenizer is not the tower's, or a word to start from is not as long as it may be.
    """
    first = text.config.vocab_size
    if len(tokenizer) != first:
        raise UserError(
            f"textual inversion: the tokenizer has {len(tokenizer)} tokens, expected the tower's {first}"
        )
    ids = []
    for token in config.tokens:
        start = tokenizer(token.initializer, add_special_tokens=False)["input_ids"]
        if not 0 < len(start) <= token.vectors:
            raise UserError(
                f"token {token.word!r}: its initializer {token.initializer!r} is {len(start)} tokens, "
                f"expected 1 to {token.vectors}, its vectors"
            )
        ids += [start[i % len(start)] for i in range(token.vectors)]
    table = text.text_model.embeddings.token_embedding.embedding[...]
    norm = jnp.linalg.norm(table, axis=-1).mean() if config.norm else None
    text.text_model.embeddings.adapter = nnx.data(
        Rows(table[jnp.array(ids)], first=first, norm=norm)
    )


def export(text: ClipText, config: Config) -> dict[str, np.ndarray]:
    """{word: rows [n, d]}, as diffusers has them in its `learned_embeds.safetensors`, one word a file."""
    ends = np.cumsum([token.vectors for token in config.tokens])
    rows = np.split(np.asarray(text.text_model.embeddings.adapter.rows(), np.float32), ends[:-1])
    return {token.word: part for token, part in zip(config.tokens, rows, strict=True)}


def set_rows(text: ClipText, config: Config, rows: Mapping[str, np.ndarray]) -> None:
    """Puts given rows, such as `read`'s, in place of the trained ones; `config.norm` scales them too.

    Args:
        text: with `config` attached.
        config: its words.
        rows: {word: [n, d]} for exactly these words.

    Raises:
        UserError: other words, or other shapes.
    """
    adapter = text.text_model.embeddings.adapter
    expected = {token.word: (token.vectors, text.config.hidden_size) for token in config.tokens}
    if (found := {word: np.shape(part) for word, part in rows.items()}) != expected:
        raise UserError(f"textual inversion rows: found {found}, expected {expected}")
    given = np.concatenate([np.asarray(rows[token.word], np.float32) for token in config.tokens])
    adapter.delta[...] = given - adapter.initial[...]


def read(path: Path | str) -> dict[str, np.ndarray]:
    """{word: rows [n, d]} of an embedding file: diffusers' {word: rows}, or what A1111's and kohya's tools write.

    The latter do not hold their word: the file's name is it. Only safetensors are read: nothing is ever executed.

    Raises:
        UserError: no such file, a pickle, a damaged file, one for the two towers of SDXL, or no table of rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such embedding file")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: a {path.suffix or 'nameless'} file may be a pickle, which is never opened; expected .safetensors"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); pickles are never opened"
        ) from None
    shapes = ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items())
    if _TWO_TOWERS & set(tensors):
        raise UserError(
            f"{path}: found {shapes}, the rows of SDXL's two text towers, expected those of one"
        )
    if not tensors or any(tensor.ndim not in (1, 2) for tensor in tensors.values()):
        raise UserError(
            f"{path}: found {shapes or 'nothing'}, expected tensors of one or two axes, one for each word"
        )
    if set(tensors) == {_KOHYA}:
        tensors = {path.stem: tensors[_KOHYA]}
    return {name: np.atleast_2d(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    return Trainable(words=new_words(settings, identifiers))


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
