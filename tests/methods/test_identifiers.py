"""Rare words: short, one token each, the same for a seed; and what is said of a word that is a bad
choice.
"""

import pytest
import tiny

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.methods.identifiers import rare_words, remark
from styledrop_jax.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(hub.resolve("emoji128-muse") / "tokenizer")


def test_words_are_short_rare_and_different(tokenizer):
    words = rare_words(tokenizer, 20, seed=0)
    assert len(set(words)) == 20 and words == rare_words(tokenizer, 20, seed=0) != rare_words(
        tokenizer, 20, seed=1
    )
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(word) <= 3 and word.isalnum() for word in words)
    assert all(len(each) == 1 and each[0] >= len(tokenizer) // 2 for each in ids)
    assert not any(remark(tokenizer, word) for word in words)


def test_several_tokens_are_joined_and_too_many_words_refused(tokenizer):
    assert all(2 <= len(word) <= 6 for word in rare_words(tokenizer, 5, seed=0, tokens=2))
    with pytest.raises(UserError, match="expected at least 9000"):
        rare_words(tokenizer, 9000, seed=0)


def test_a_common_word_and_one_of_many_tokens_are_remarked_on(tokenizer):
    assert "common word" in remark(tokenizer, "style")
    assert "tokens to this model" in remark(tokenizer, "xqzzyqxvwk")


def test_the_command_prints_one_a_line(capfd):
    assert tiny.styledrop("rare-tokens", "--num", 3) == 0
    assert len(capfd.readouterr().out.split()) == 3
