"""Where a prompt's new words are found, beside scripts with spaces between words and without."""

import functools

import pytest
from transformers import PreTrainedTokenizerBase

from styledrop_jax.adapters.textual_inversion import Config, Token, expand, extend
from styledrop_jax.models.tokenizer import train_tokenizer

TOKENS = (
    Token(word="<style>", initializer="cat", vectors=2),
    Token(word="sks", initializer="cat"),
    Token(word="熊猫", initializer="cat"),
)
CONFIG = Config(tokens=TOKENS)


@functools.cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["a cat in watercolor painting style"], 530, 40)


def _found(prompt: str) -> list[str]:
    """The new tokens of a prompt, in order."""
    tokenizer = extend(_tokenizer(), CONFIG)
    names = [name for token in TOKENS for name in token.names]
    return [token for token in tokenizer.tokenize(expand(prompt, CONFIG)) if token in names]


STYLE = ["<style>", "<style>_1"]


@pytest.mark.parametrize(
    ("prompt", "expanded", "found"),
    [
        ("a <style> cat", "a <style> <style>_1 cat", STYLE),
        ("一只<style>风格的猫", "一只 <style> <style>_1 风格的猫", STYLE),
        ("一只sks风格的猫", "一只 sks 风格的猫", ["sks"]),
        ("ภาพ<style>แมว sksแมว", "ภาพ <style> <style>_1 แมว sks แมว", [*STYLE, "sks"]),
        ("水彩のsksの絵、<style>", "水彩の sks の絵、<style> <style>_1", ["sks", *STYLE]),
        ("<style>의 고양이, sks의", "<style> <style>_1 의 고양이, sks 의", [*STYLE, "sks"]),
        ("a<style>b, (sks:1)", "a <style> <style>_1 b, (sks:1)", [*STYLE, "sks"]),
        ("<style><style>", "<style> <style>_1<style> <style>_1", [*STYLE, *STYLE]),
        ("大熊猫 in style", "大 熊猫 in style", ["熊猫"]),
        ("sks, a skss SKS mysks sks2 sks_1 éskś", None, ["sks"]),
        ("кошкаsks sksкошка", None, []),
        ("<styled> <style", None, []),
        ("", None, []),
    ],
)
def test_new_words_are_found_where_they_stand_alone(prompt, expanded, found):
    assert expand(prompt, CONFIG) == (prompt if expanded is None else expanded)
    assert _found(prompt) == found


def test_the_word_of_a_bracket_is_not_the_start_of_its_own_vectors():
    assert expand("<style>_1", CONFIG) == "<style>_1"
    assert _found("<style>_1") == ["<style>_1"]


def test_the_longest_word_is_found_first():
    words = (Token(word="<a>", initializer="cat", vectors=2), Token(word="a", initializer="cat"))
    assert expand("<a> a", Config(tokens=words)) == "<a> <a>_1 a"


def test_the_original_tokenizer_is_left_alone():
    before = len(_tokenizer())
    assert len(extend(_tokenizer(), CONFIG)) == before + 4
    assert len(_tokenizer()) == before
