"""Prompts to token ids: the tokenizers of a model's folder, and the one trained for a new model."""

import functools
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from styledrop_jax.errors import UserError, one_line, shown
from styledrop_jax.models.clip import TextConfig

_LOG = logging.getLogger(__name__)
_BOS = "<|startoftext|>"
_EOS = "<|endoftext|>"
_WORD_END = "</w>"
_CLASSES = {"BPE": CLIPTokenizer, "Unigram": T5Tokenizer}
_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_ADAPTERS = r"<(?:lora|lyco|hypernet):[^<>]*>"
_COMMANDS = re.compile(rf"\([^()]*:\s*[\d.]+\s*\)|{_ADAPTERS}|\bBREAK\b")
"""What other tools read as commands: weights, adapters, and where a new group of tokens begins."""


def choose_tokenizer(names: Collection[str], *, source: str) -> list[str]:
    """Of the names of a folder's files, those that `load_tokenizer` opens.

    Raises:
        UserError: they are no tokenizer; names `source`, the folder.
    """
    for form in _FORMS:
        if set(form).issubset(names):
            chosen = list(form)
            for name in _SETTINGS:
                if name in names:
                    chosen.append(name)
            return chosen
    expected = "tokenizer.json, vocab.json with merges.txt, or spiece.model"
    raise UserError(f"{source}: no tokenizer, expected {expected}")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The CLIP or T5 tokenizer that `folder` holds; never reaches for the network.

    CLIP: `tokenizer.json`, or `vocab.json` and `merges.txt`. T5: `tokenizer.json`, or
    `spiece.model`, which needs the package sentencepiece. `model_max_length` is the file's, or 77
    (CLIP) or 512 (T5) when no file says.

    Raises:
        UserError: no such files, or they cannot be read.
    """
    files = []
    if os.path.isdir(folder):
        files = [path for path in folder.iterdir() if not path.is_dir()]
    for path in files:
        if not path.is_file():  # the library opens several, and would wait for a pipe
            raise UserError(f"{path}: found a pipe, a device or a dead link; expected a file")
    names = [path.name for path in files]
    first = choose_tokenizer(names, source=str(folder))[0]
    kind = "Unigram" if first == "spiece.model" else "BPE"
    try:
        if first == "tokenizer.json":
            kind = json.loads((folder / first).read_text(encoding="utf-8"))["model"]["type"]
        tokenizer = _CLASSES[kind].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises bare Exception for a malformed file
        reason = shown(error, 120)
        raise UserError(
            f"{folder}: not a readable CLIP (BPE) or T5 (Unigram) tokenizer ({reason})"
        ) from error
    length = tokenizer.model_max_length
    if type(length) not in (int, float) or length < 2:
        raise UserError(
            f"{folder}: model_max_length of the tokenizer is {shown(length)}, "
            "expected a whole number of at least 2"
        )
    if length > 1_000_000:  # transformers' mark for "no file says"
        tokenizer.model_max_length = 77 if kind == "BPE" else 512
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, text: TextConfig, *, source: str) -> None:
    """Finds a tokenizer that was made for another text tower.

    Args:
        tokenizer: of a model.
        text: of the model's text tower. With a projection it is read at the end token.
        source: the tokenizer's folder or file, for errors.

    Raises:
        UserError: it has ids that the tower's table does not, no padding or end token, or another
            end token than the tower reads its pooled features at.
    """
    last = max(tokenizer.get_vocab().values(), default=0)
    # What stands around every prompt has ids of its own in the file.
    around = tokenizer("", verbose=False)["input_ids"]
    for highest in (last, *around):
        if highest >= text.vocab_size:
            raise UserError(
                f"{source}: the tokenizer has ids up to {highest}, expected at most "
                f"{text.vocab_size - 1}, the last row of the text tower's table"
            )
    for kind, found in (("end", tokenizer.eos_token_id), ("padding", tokenizer.pad_token_id)):
        if found is None:
            raise UserError(f"{source}: the tokenizer has no {kind} token, expected one")
    end = last if text.eos_token_id == 2 else text.eos_token_id
    if text.projection and tokenizer.eos_token_id != end:
        raise UserError(
            f"{source}: the tokenizer's end token is {tokenizer.eos_token_id}, expected {end}, "
            f"where the text tower reads its pooled features"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers reads too."""
    tokenizer.save_pretrained(folder)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> np.ndarray:
    """Token ids, int32 [b, length], with special tokens, padded with the tokenizer's padding token.

    The empty prompt is a valid one: special tokens and padding, the unconditional text. A longer
    prompt is cut, keeps its end token, and a warning shows the words that are lost. What other
    tools read as commands, such as (cat:1.3), is words here, of which a warning tells.
    """
    rows = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    every = tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else []
    for row, prompt, ids in zip(rows, prompts, every, strict=True):
        _warn_of_commands(prompt)
        if len(ids) > length:
            whole = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
            lost = prompt[whole["offset_mapping"][length - 1][0] :].strip()
            warn_of_cut(prompt, len(ids), length, lost)
            ids = [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = ids
    return rows


def warn_of_cut(prompt: str, count: int, length: int, lost: str) -> None:
    """Warns that of the `count` tokens of a prompt the words `lost` are not read."""
    _warn_once(
        f"prompt {prompt[:40]!r}… is {count} tokens, the text encoder reads {length}; "
        f"cut: {one_line(lost, 100)!r}; the option long_prompts has the base model read them too"
    )


def _warn_of_commands(prompt: str) -> None:
    found = dict.fromkeys(_COMMANDS.findall(prompt))
    if found:
        adapters = "; nothing reads adapters" if re.search(_ADAPTERS, prompt) else ""
        _warn_once(
            f"prompt {shown(prompt, 40)}: read as plain words: {shown(', '.join(found), 100)}; "
            f"the option prompt_weights reads weights and BREAK{adapters}"
        )


def warn_of_adapters(prompt: str) -> None:
    """Warns of adapters in a prompt whose weights are read."""
    found = dict.fromkeys(re.findall(_ADAPTERS, prompt))
    if found:
        _warn_once(
            f"prompt {shown(prompt, 40)}: read as plain words: {shown(', '.join(found), 100)}; "
            f"nothing reads adapters in a prompt"
        )


def warn_of_open(prompt: str, bracket: str) -> None:
    """Warns of a bracket in a prompt whose weights are read that nothing closes."""
    _warn_once(
        f"prompt {shown(prompt, 40)}: nothing closes a {bracket!r}; it holds to the end, and "
        f"\\{bracket} is the bracket itself"
    )


@functools.cache
def _warn_once(text: str) -> None:
    """A run tokenizes a prompt many times."""
    _LOG.warning("%s", text)


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's order: 256 bytes, 256 bytes that end a word, merges, BOS, EOS.

    Any script tokenizes without unknowns, byte by byte where the captions taught nothing better.
    The same captions give the same tokenizer.

    Args:
        captions: the training text.
        vocab_size: in all; fewer when the captions run out of pairs to merge.
        max_length: the `model_max_length` to save.
    """
    letters = sorted(ByteLevel.alphabet())  # by code point, which is CLIP's order
    if vocab_size < 2 * len(letters) + 2:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {2 * len(letters) + 2}")
    # The library numbers the word-ending bytes in a random order, and ties between pairs are broken
    # by number. With one private character for each, they are plain letters of a fixed order.
    ends = {}
    written = {}
    for number, letter in enumerate(letters):
        ends[letter] = chr(0xE000 + number)
        written[0xE000 + number] = letter + _WORD_END
    learner = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=[*letters, *ends.values()],
        show_progress=False,
    )
    learner.train_from_iterator(_words(captions, letters, ends), trainer)
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        merges.append((left.translate(written), right.translate(written)))
    return _clip_tokenizer(letters, merges, max_length)


def _words(captions: Iterable[str], letters: list[str], ends: Mapping[str, str]) -> Iterator[str]:
    """The words of the captions as CLIP splits them, in bytes; the last byte is that of `ends`."""
    splitter = _clip_tokenizer(letters, [], 0).backend_tokenizer
    for caption in captions:
        clean = splitter.normalizer.normalize_str(caption)
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(clean):
            yield word[:-1] + ends[word[-1]]


def _clip_tokenizer(
    letters: list[str], merges: list[tuple[str, str]], max_length: int
) -> CLIPTokenizer:
    tokens = list(letters)
    for letter in letters:
        tokens.append(letter + _WORD_END)
    for left, right in merges:
        tokens.append(left + right)
    vocab: dict[str, int] = {}
    for token in [*tokens, _BOS, _EOS]:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,  # pyright: ignore[reportArgumentType]  pairs, whatever its annotation says
        bos_token=_BOS,
        eos_token=_EOS,
        model_max_length=max_length,
    )
