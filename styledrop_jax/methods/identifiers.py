"""Rare words to stand for a subject or a style (DreamBooth, 2208.12242 §3.2), and what is wrong
with a given one.
"""

import numpy as np
from transformers import PreTrainedTokenizerBase

from styledrop_jax.errors import UserError

_LONGEST = 3  # characters
_BYTES = 512  # single bytes, with which a byte-pair vocabulary begins
_T5 = (5_000, 10_000)  # the paper's range of ids, of T5-XXL's 32,100


def rare_words(
    tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int, tokens: int = 1
) -> list[str]:
    """Words that a tokenizer knows but has seldom seen, for a model to learn a new meaning of.

    The paper draws ids at random from a range of rare ones and keeps those that decode to at most
    three characters without spaces. Ids of a byte-pair vocabulary, as CLIP's, are in the order of
    their frequency too: there the range is the last half.

    Args:
        tokenizer: the model's.
        count: how many words.
        seed: of the draw.
        tokens: of which a word is joined, 1 to 3 in the paper.

    Raises:
        UserError: the vocabulary has too few.
    """
    size = len(tokenizer)
    low, high = (size // 2, size)
    if size > 30_000 and tokenizer.bos_token_id is None:
        low, high = _T5
    ids = np.random.default_rng(seed).permutation(np.arange(low, min(high, size)))
    pieces: list[str] = []
    for i in ids:
        word = str(tokenizer.decode([i])).strip()
        # Some pieces differ by a space alone.
        if word not in pieces and _fits(tokenizer, word, low):
            pieces.append(word)
    words = []
    for first in range(0, tokens * count, tokens):
        words.append("".join(pieces[first : first + tokens]))
    if len(pieces) < tokens * count:
        raise UserError(
            f"rare words: found {len(pieces)} rare tokens of the kind, "
            f"expected at least {tokens * count}"
        )
    return words


def _fits(tokenizer: PreTrainedTokenizerBase, word: str, low: int) -> bool:
    """Short, and one rare token where it stands alone too, which a piece of longer words need not
    be.
    """
    if not (0 < len(word) <= _LONGEST and word.isalnum()):
        return False
    ids = _ids(tokenizer, word)
    return len(ids) == 1 and ids[0] >= low


def _ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False)["input_ids"]


def remark(tokenizer: PreTrainedTokenizerBase, identifier: str) -> str:
    """What is wrong with an identifier, one line; empty if nothing is."""
    ids = _ids(tokenizer, identifier)
    advice = "`styledrop rare-tokens` finds others"
    if len(ids) > _LONGEST:
        return (
            f"{identifier!r} is {len(ids)} tokens to this model, "
            f"which dilutes what it learns; {advice}"
        )
    if len(ids) == 1 and ids[0] < _BYTES + (len(tokenizer) - _BYTES) // 4:
        return (
            f"{identifier!r} is a common word, whose meaning the model must forget first; {advice}"
        )
    return ""
