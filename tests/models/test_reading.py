"""Prompts as people write them for other tools: weights, BREAK, chunks."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPTokenizer

from styledrop_jax.errors import UserError
from styledrop_jax.models.reading import PLAIN, Reader, Reading, parsed, read, weighted
from styledrop_jax.models.tokenizer import tokenize, train_tokenizer

LENGTH = 12  # tokens of a chunk, ten of which are words
BOTH = Reading(weights=True, long=True)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["a red cat and a blue dog, big"] * 3, 560, LENGTH)


def _reader(tokenizer, how: Reading = BOTH, **changed) -> Reader:
    values = {"length": LENGTH, "known": len(tokenizer), "how": how, "expand": str}
    return Reader(tokenizer=tokenizer, **values | changed)


def _words(reader: Reader, prompt: str) -> list[str]:
    """Of each chunk."""
    found = []
    for chunk in reader.chunks(prompt):
        found.append(reader.tokenizer.decode([token for token, _ in chunk]))
    return found


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:1.5) cat:2)", [("a ", 2), ("red", 3), (" cat", 2)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("[red:1.5)", [("red:1.5)", 1 / 1.1)]),
        ("(red cat", [("red cat", 1.1)]),
        ("a red) cat]: 3:2", [("a red) cat]: 3:2", 1)]),
        (r"a \(red\) \[cat\] \\", [("a (red) [cat] \\", 1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:)", [("red:", 1.1)]),
        ("daybreak BREAKFAST", [("daybreak BREAKFAST", 1)]),
    ],
)
def test_weights_are_those_of_a1111(prompt, pieces):
    (found,) = parsed(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


def test_break_begins_a_group_also_within_brackets():
    assert parsed("a cat BREAK a dog") == [[("a cat", 1)], [("a dog", 1)]]
    assert parsed("a (cat BREAK dog:2) sat") == [
        [("a ", 1), ("cat", 2)],
        [("dog", 2), (" sat", 1)],
    ]


@pytest.mark.parametrize("prompt", ["(cat:101)", "(" * 60 + "cat", "(cat:" + "9" * 400 + ")"])
def test_weights_without_bound_are_refused(prompt):
    with pytest.raises(UserError, match=r"^prompt .*, expected a number from -100 to 100$"):
        parsed(prompt)


def test_a_prompt_of_nothing_but_brackets_is_empty(tokenizer):
    assert read(_reader(tokenizer), ["()[](:1.5)", "BREAK"]).ids.shape == (2, 1, LENGTH)


def test_the_words_alone_are_known():
    assert BOTH.plain("a (red:1.2)  cat BREAK [big]") == "a red cat big"
    assert PLAIN.plain("a (red:1.2)  cat") == "a (red:1.2)  cat"


def test_without_weights_the_tokens_are_those_of_plain_words(tokenizer, caplog):
    prompts = ["a red cat", "", "猫 and a dog"]
    plain = tokenize(tokenizer, prompts, LENGTH)
    for how in (BOTH, PLAIN):
        tokens = read(_reader(tokenizer, how), prompts)
        np.testing.assert_array_equal(tokens.ids[:, 0], plain)
    assert read(_reader(tokenizer, Reading(long=True)), prompts).weights is None
    assert not caplog.records


def test_every_word_of_a_long_prompt_is_read_in_chunks_of_equal_count(tokenizer, caplog):
    reader = _reader(tokenizer)
    assert _words(reader, "a red cat and a blue dog and a big red cat and") == [
        "a red cat and a blue dog and a big",
        "red cat and",
    ]
    tokens = read(reader, ["a cat " * 12, ""], 4)
    assert tokens.ids.shape == tokens.weights.shape == (2, 4, LENGTH)
    empty = tokenize(tokenizer, [""], LENGTH)[0]
    for chunk in (*tokens.ids[1], tokens.ids[0, 3]):
        np.testing.assert_array_equal(chunk, empty)
    assert not caplog.records


def test_a_full_chunk_ends_after_a_late_comma(tokenizer):
    reader = _reader(tokenizer)
    words = _words(reader, "a red cat, a blue dog and a big red cat")
    assert words == ["a red cat ,", "a blue dog and a big red cat"]
    assert _words(reader, "a red cat and a blue dog and a big, cat")[1] == ", cat", "right after"
    long = _reader(tokenizer, length=32)
    assert len(long.chunks("a, " + "cat " * 40)[0]) == 30, "a comma far from the end is let be"


def test_a_learnt_word_stays_in_one_chunk(tokenizer):
    known = len(tokenizer)
    reader = _reader(tokenizer, known=known - 30)
    learnt = reader.tokenizer("cat dog", add_special_tokens=False)["input_ids"]
    assert all(known - 30 <= token for token in learnt), "the last merges"
    words = _words(reader, "a a a a a a a a a cat dog a")
    assert words == ["a a a a a a a a a", "cat dog a"]
    assert [len(chunk) for chunk in reader.chunks("cat " * 12)] == [10, 2], "unless it has no room"


def test_what_has_no_room_is_cut_and_named(tokenizer, caplog):
    reader = _reader(tokenizer, Reading(weights=True))
    first = "a red cat and a blue dog and a big"
    assert _words(reader, f"{first} (dog, a:1.2) BREAK a cat") == [first, "a cat"]
    (message,) = caplog.messages
    assert "is 15 tokens, the text encoder reads 12; cut: 'dog , a'" in message
    assert "long_prompts" in message


def test_a_bracket_that_nothing_closes_is_warned_of(tokenizer, caplog):
    _reader(tokenizer, Reading(weights=True)).chunks("a (red:1.5 cat")
    (message,) = caplog.messages
    assert "nothing closes a '('" in message and r"\( is the bracket itself" in message


def test_adapters_in_a_prompt_are_warned_of(tokenizer, caplog):
    _reader(tokenizer).chunks("a (cat:1.3) <lora:pencil:0.7>")
    (message,) = caplog.messages
    assert re.search("read as plain words: '<lora:pencil:0.7>'; nothing reads", message)


def test_weights_keep_the_mean_of_each_text():
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(0.3, 1, (2, 5, 8)), jnp.float32)
    weights = jnp.ones((2, 5)).at[0, 2].set(1.7)
    found = weighted(states, weights)
    np.testing.assert_array_equal(found[1], states[1])
    np.testing.assert_allclose(found.mean(axis=(1, 2)), states.mean(axis=(1, 2)), rtol=1e-4)
    ratio = found[0] / states[0]
    np.testing.assert_allclose(ratio[2] / ratio[1], 1.7, rtol=1e-5)
    zeros = weighted(jnp.zeros((1, 5, 8), jnp.bfloat16), weights[:1])
    assert zeros.dtype == jnp.bfloat16 and not zeros.any()
