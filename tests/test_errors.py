"""Messages: one printable line of a bounded length, in no time, whatever they are made of."""

import time

import pytest

from styledrop_jax.errors import UserError, check_words, did_you_mean, few, shown


def _bomb(levels=40):
    """A list that is small in memory and has 2^levels parts when it is written out."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def _deep():
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, "\n" * 10**6, [0] * 10**6, {"x" * 10**6: 1}, 10**5000, b"x" * 10**7, "\ud800"],
    ids=range(7),
)
def test_any_value_is_shown_in_one_short_line(value):
    text = shown(value)
    assert len(text) <= 61 and text.isprintable()
    text.encode()


@pytest.mark.parametrize("make", [_bomb, _deep])
def test_a_nest_is_shown_at_once(make):
    start = time.monotonic()
    assert len(shown(make())) <= 61
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("text", ["x" * 10**7, "a\nb\x1b[31m", "\udcff" * 1000, "\u2028" * 200])
def test_a_message_is_one_printable_line(text):
    message = str(UserError(f"config.seed: found {text}, expected a whole number"))
    assert len(message) < 300 and message.isprintable()
    assert message.startswith("config.seed: found ")
    assert message.endswith(", expected a whole number")


def test_a_name_of_ten_million_letters_is_compared_at_once():
    start = time.monotonic()
    did_you_mean("x" * 10**7, ["steps", "x" * 150])
    assert time.monotonic() - start < 1


def test_of_many_names_the_first_are_shown_and_the_others_counted():
    text = few([f"tensor_{i}" for i in range(10**6)])
    assert text.startswith("tensor_0; tensor_1; ") and text.endswith(" more") and len(text) < 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 10_001, "found 10,001 letters, expected at most 10,000"),
        ("caf\udce9", "expected Unicode text"),
        ("a\0b", "without a zero byte"),
    ],
)
def test_words_that_are_none(text, words):
    check_words("a café, 家", "--prompt")
    with pytest.raises(UserError, match=f"^--prompt: .*{words}"):
        check_words(text, "--prompt")
