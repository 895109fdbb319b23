"""Prompts to token ids: the CLIP and T5 tokenizers of a model folder, and the one that is trained for a new model."""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from styledrop_jax.errors import UserError

_BOS, _EOS, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_CLASSES = {"BPE": CLIPTokenizer, "Unigram": T5Tokenizer}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The CLIP or T5 tokenizer that `folder` holds, whichever files it is made of; never reaches for the network.

    CLIP: `tokenizer.json`, or `vocab.json` and `merges.txt`. T5: `tokenizer.json`, or `spiece.model` (which needs the
    package sentencepiece). `model_max_length` is the file's, or 77 (CLIP) or 512 (T5) when no file says.

    Raises:
        UserError: no such files, or they cannot be read.
    """
    whole = folder / "tokenizer.json"
    has_parts = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not (whole.is_file() or has_parts or (folder / "spiece.model").is_file()):
        raise UserError(
            f"{folder}: no tokenizer, expected tokenizer.json, vocab.json with merges.txt, or spiece.model"
        )
    try:
        if whole.is_file():
            kind = json.loads(whole.read_text(encoding="utf-8"))["model"]["type"]
        else:
            kind = "BPE" if has_parts else "Unigram"
        tokenizer = _CLASSES[kind].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise UserError(
            f"{folder}: not a readable CLIP (BPE) or T5 (Unigram) tokenizer ({error!r})"
        ) from error
    if tokenizer.model_max_length > 1_000_000:  # transformers' mark for "no file says"
        tokenizer.model_max_length = 77 if kind == "BPE" else 512
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which `load_tokenizer` and transformers read."""
    tokenizer.save_pretrained(folder)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> np.ndarray:
    """Token ids, int32 [b, length]: special tokens included, padded with the tokenizer's own padding token.

    The empty prompt is a valid one: special tokens and padding, the unconditional text. A longer prompt is cut, keeps
    its end token, and a warning shows the words that are lost.
    """
    rows = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    every = tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else []
    for row, prompt, ids in zip(rows, prompts, every, strict=True):
        if len(ids) > length:
            offsets = tokenizer(prompt, return_offsets_mapping=True, verbose=False)[
                "offset_mapping"
            ]
            lost = prompt[offsets[length - 1][0] :].strip()
            warnings.warn(
                f"prompt {prompt[:40]!r}… is {len(ids)} tokens, the text encoder reads {length}; cut: {lost!r}",
                stacklevel=2,
            )
            ids = [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = ids
    return rows


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's order: 256 bytes, 256 bytes that end a word, merges, BOS, EOS.

    Any script tokenizes without unknowns, byte by byte where the captions taught nothing better. The same captions give
    the same tokenizer.

    Args:
        captions: the training text.
        vocab_size: in all; fewer when the captions run out of pairs to merge.
        max_length: the `model_max_length` to save.
    """
    letters = sorted(ByteLevel.alphabet())  # by code point, which is CLIP's order
    if vocab_size < 2 * len(letters) + 2:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {2 * len(letters) + 2}")
    # The library numbers the word-ending bytes in a random order, and ties between pairs are broken by number. With one
    # private character for each, they are plain letters of a fixed order.
    ends = {letter: chr(0xE000 + i) for i, letter in enumerate(letters)}
    written = str.maketrans({end: letter + _WORD_END for letter, end in ends.items()})
    symbols = [*letters, *(letter + _WORD_END for letter in letters)]

    splitter = _clip_tokenizer(symbols, [], max_length).backend_tokenizer
    words = (
        word[:-1] + ends[word[-1]]
        for caption in captions
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(
            splitter.normalizer.normalize_str(caption)
        )
    )
    learner = Tokenizer(BPE())
    alphabet = [*letters, *ends.values()]
    learner.train_from_iterator(
        words, BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)
    )
    merges = [
        tuple(part.translate(written) for part in pair)
        for pair in json.loads(learner.to_str())["model"]["merges"]
    ]
    return _clip_tokenizer(symbols, merges, max_length)


def _clip_tokenizer(
    symbols: list[str], merges: list[tuple[str, str]], max_length: int
) -> CLIPTokenizer:
    tokens = dict.fromkeys([*symbols, *("".join(pair) for pair in merges), _BOS, _EOS])
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=_BOS, eos_token=_EOS, model_max_length=max_length
    )
