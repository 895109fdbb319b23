"""Textual Inversion: new rows beside the table.

Against transformers with a longer table, and diffusers' loader.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from bases import load_weights
from diffusers.loaders import TextualInversionLoaderMixin
from flax import nnx
from safetensors.numpy import save_file

from styledrop_jax import tree
from styledrop_jax.adapters import textual_inversion
from styledrop_jax.adapters.base import AdapterParam, identity
from styledrop_jax.adapters.textual_inversion import (
    Config,
    Token,
    attach,
    expand,
    extend,
    set_rows,
    trained_rows,
)
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.clip import RULES, ClipText, TextConfig
from styledrop_jax.models.tokenizer import tokenize, train_tokenizer

CAT = Token(word="<cat>", initializer="cat")
HUT = Token(word="<hut>", initializer="red house", vectors=3)
CONFIG = Config(tokens=(CAT, HUT))
# The same tokens as long as nothing is trained.
WITH = "a <cat> in a <hut>"
WITHOUT = "a cat in a red house red"
EVERY_EOS = pytest.mark.parametrize("eos", ["first", "highest"])


def _new_tokenizer():
    return train_tokenizer(["a cat in a red house", "style"], 600, 12)


_tokenizer = functools.cache(_new_tokenizer)


@functools.cache
def _base(eos):
    """The tower's parts, with random weights.

    Its pooled features are read at the first EOS or at the highest id.
    """
    tokenizer = _tokenizer()
    config = TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=12,
        projection_dim=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos == "first" else 2,
    )
    rng = np.random.default_rng(0)
    build = lambda: ClipText(config, rngs=pretrained.ONE_KEY)  # noqa: E731
    shapes = pretrained.shapes(nnx.eval_shape(build), RULES)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = rng.normal("norm" in name, 0.3, shape).astype("f")
    return nnx.split(pretrained.load(build, tensors, RULES, source="random"))


def _text(eos="first", config=CONFIG):
    text = nnx.merge(*_base(eos))
    if config is not None:
        attach(text, config, rngs=nnx.Rngs(0), tokenizer=_tokenizer())
    return text


def _rows(config=CONFIG, seed=1):
    rng = np.random.default_rng(seed)
    rows = {}
    for token in config.tokens:
        rows[token.word] = rng.normal(size=(token.vectors, 8)).astype("f")
    return rows


def _ids(*prompts):
    return tokenize(
        extend(_tokenizer(), CONFIG), [expand(prompt, CONFIG) for prompt in prompts], 12
    )


_encode = nnx.jit(lambda text, ids: text(ids))


def _reference(eos):
    config = transformers.CLIPTextConfig(**nnx.merge(*_base(eos)).config.to_dict())
    model = transformers.CLIPTextModelWithProjection(config).train(False)
    load_weights(model, pretrained.export(nnx.merge(*_base(eos)), RULES))
    return model


@EVERY_EOS
def test_an_untrained_word_is_its_initializer(eos):
    found = _encode(_text(eos), _ids(WITH))
    expected = _encode(_text(eos, None), _ids(WITHOUT))
    np.testing.assert_array_equal(found.last_hidden_state, expected.last_hidden_state)
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    np.testing.assert_array_equal(found.embeds, expected.embeds)


@EVERY_EOS
def test_texts_without_the_words_and_the_table_stay_as_they_were(eos):
    text = _text(eos)
    bare = _text(eos, None)
    ids = _ids("a cat in style", "")
    set_rows(text, CONFIG, _rows())
    for found, expected in zip(_encode(text, ids)[1:], _encode(bare, ids)[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    before = tree.flatten(nnx.state(bare))
    after = tree.flatten(nnx.state(text, nnx.Not(AdapterParam)))
    assert after.keys() - before.keys() == {"text_model.embeddings.adapter.initial"}
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf)


@EVERY_EOS
def test_trained_words_are_diffusers_words(eos, tmp_path):
    """The reference reads the files; both encode a prompt with their own tokenizer and tower."""

    class Pipeline(TextualInversionLoaderMixin):
        hf_device_map = None
        components = {}

    text = _text(eos)
    set_rows(text, CONFIG, _rows())
    pipeline = Pipeline()
    model = _reference(eos)
    tokenizer = _new_tokenizer()
    for i, (word, rows) in enumerate(trained_rows(text, CONFIG).items()):
        save_file({word: rows}, tmp_path / f"{i}.safetensors")
        pipeline.load_textual_inversion(
            tmp_path, weight_name=f"{i}.safetensors", tokenizer=tokenizer, text_encoder=model
        )
    assert pipeline.maybe_convert_prompt(WITH, tokenizer) == expand(WITH, CONFIG)
    ids = tokenize(tokenizer, [pipeline.maybe_convert_prompt(WITH, tokenizer)], 12)
    np.testing.assert_array_equal(ids, _ids(WITH))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long())
    ours = _encode(text, ids)
    np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-4)
    end = int((ids[0] == _tokenizer().eos_token_id).argmax())
    np.testing.assert_allclose(ours.pooled, ours.last_hidden_state[:, end], atol=1e-6)
    # where the highest id counts the reference takes an added word for the end of the text
    agrees = np.allclose(ours.embeds, theirs.text_embeds, atol=1e-4)
    assert agrees == (eos == "first")


def test_gradients_reach_the_new_rows_and_nothing_else():
    graphdef, state, frozen = nnx.split(_text("highest"), AdapterParam, ...)
    loss = jax.jit(
        jax.grad(lambda state: (nnx.merge(graphdef, state, frozen)(_ids(WITH)).embeds ** 2).sum())
    )
    ((name, gradient),) = tree.flatten(loss(nnx.as_pure(state))).items()
    assert name == "text_model.embeddings.adapter.delta" and gradient.shape == (4, 8)
    assert (gradient != 0).any(axis=1).all()


def test_the_zero_state_is_the_initial_rows():
    text = _text()
    table = text.text_model.embeddings.token_embedding.embedding[...]
    cat, red, house = _tokenizer()("cat red house", add_special_tokens=False)["input_ids"]
    set_rows(text, CONFIG, _rows())
    nnx.update(text, identity(nnx.state(text, AdapterParam)))
    found = trained_rows(text, CONFIG)
    np.testing.assert_array_equal(found["<cat>"], table[jnp.array([cat])])
    np.testing.assert_array_equal(found["<hut>"], table[jnp.array([red, house, red])])


def test_norm_keeps_the_mean_length_of_the_table():
    config = dataclasses.replace(CONFIG, norm=True)
    text = _text(config=config)
    lengths = np.linalg.norm(text.text_model.embeddings.token_embedding.embedding[...], axis=-1)
    start = trained_rows(_text(), CONFIG)
    for rows in (start, _rows()):  # untrained, then trained
        found = trained_rows(text, config)
        for word, part in found.items():
            np.testing.assert_allclose(np.linalg.norm(part, axis=-1), lengths.mean(), rtol=1e-5)
            unit = rows[word] / np.linalg.norm(rows[word], axis=-1, keepdims=True)
            np.testing.assert_allclose(part, unit * lengths.mean(), atol=1e-5)
        set_rows(text, config, _rows())


def test_words_are_tokens_only_where_they_stand_alone():
    config = Config(tokens=(Token(word="zzz", initializer="cat", vectors=2),))
    tokenizer = extend(_tokenizer(), config)
    assert expand("zzz, a zzzz ZZZ zzz_1", config) == "zzz zzz_1, a zzzz ZZZ zzz_1"
    first = len(_tokenizer())
    ids = tokenizer(expand("a zzz, zzzz", config), add_special_tokens=False)["input_ids"]
    assert ids[1:3] == [first, first + 1] and max(ids[3:]) < first
    assert len(_tokenizer()) == first, "the original is left alone"


@pytest.mark.parametrize("word", ["cat", "a", "<|endoftext|>"])
def test_known_words_are_refused(word):
    with pytest.raises(UserError, match="the tokenizer knows this word; expected a new one"):
        extend(_tokenizer(), Config(tokens=(Token(word=word, initializer="style"),)))


def test_towers_and_rows_that_do_not_fit_are_refused():
    short = Config(tokens=(Token(word="<hut>", initializer="red house"),))
    none = Config(tokens=(Token(word="<hut>", initializer=""),))
    with pytest.raises(UserError, match="initializer 'red house' is 2 tokens, expected 1 to 1"):
        _text(config=short)
    with pytest.raises(UserError, match="initializer '' is 0 tokens"):
        _text(config=none)
    with pytest.raises(
        UserError, match=f"has {len(_tokenizer()) + 4} tokens, expected the tower's"
    ):
        attach(_text(config=None), CONFIG, rngs=nnx.Rngs(0), tokenizer=extend(_tokenizer(), CONFIG))
    rows = _rows()
    for wrong in (
        rows | {"<hut>": rows["<hut>"][:2]},
        rows | {"<dog>": rows["<cat>"]},
        {"<cat>": rows["<cat>"]},
    ):
        with pytest.raises(UserError, match="textual inversion rows: found"):
            set_rows(_text(), CONFIG, wrong)


def test_configs_are_checked_and_survive():
    assert Config.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    for build, words in (
        (lambda: Config(tokens=()), "found none, expected at least one"),
        (
            lambda: Token(word="two words", initializer="cat"),
            "found 'two words', expected a word without spaces",
        ),
        (lambda: Token(word="<a>", initializer="cat", vectors=0), "found 0 vectors"),
        (
            lambda: Config(tokens=(HUT, dataclasses.replace(CAT, word="<hut>_2"))),
            "found '<hut>_2' twice",
        ),
        (lambda: Config.from_dict({"adapter": "lora"}), "'lora', expected 'textual_inversion'"),
        (lambda: Config.from_dict({"adapter": textual_inversion.Config.kind}), "does not fit"),
    ):
        with pytest.raises(UserError, match=words):
            build()
