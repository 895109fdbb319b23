"""Tokenizers: CLIP's and T5's layouts on disk, cutting, padding, and training a new one."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import CLIPTokenizer, T5Tokenizer

from styledrop_jax.errors import UserError
from styledrop_jax.models.clip import TextConfig
from styledrop_jax.models.tokenizer import (
    check_tokenizer,
    choose_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenize,
    train_tokenizer,
)

CAPTIONS = [
    "a cat in watercolor painting style",
    "two cats and a house, drawn in pencil",
    "a house on the left of a tree",
    "a red apple in watercolor painting style",
] * 3
SCRIPTS = ["猫の絵、水彩", "قطة في الثلج", "🦊👩‍👩‍👧 fox", "naïve café \u0000 \t ½", "Ω≈ç√ кот"]


@pytest.fixture(scope="module")
def trained() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, 560, 16)


def test_a_trained_vocabulary_has_clips_order(trained):
    tokens = trained.convert_ids_to_tokens(list(range(len(trained))))
    assert len(trained) == 560
    assert tokens[0] == "!" and tokens[256] == "!</w>" and tokens[94] == "¡"
    assert all(token.endswith("</w>") for token in tokens[256:512])
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert (trained.bos_token_id, trained.eos_token_id, trained.pad_token_id) == (558, 559, 559)
    assert len(trained("watercolor painting").input_ids) < 12, "frequent words are few tokens"


def test_the_same_captions_train_the_same_tokenizer(trained):
    assert train_tokenizer(CAPTIONS, 560, 16).get_vocab() == trained.get_vocab()


def test_few_captions_make_a_smaller_vocabulary():
    assert 514 < len(train_tokenizer(["a cat"], 4000, 16)) < 530
    with pytest.raises(ValueError, match="at least 514"):
        train_tokenizer(["a cat"], 513, 16)


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_is_read_byte_by_byte(trained, text):
    ids = trained(text).input_ids
    assert trained.eos_token_id not in ids[:-1], "the unknown token is EOS"
    cleaned = trained.backend_tokenizer.normalizer.normalize_str(text)
    assert trained.decode(ids, skip_special_tokens=True).replace(" ", "") == cleaned.replace(
        " ", ""
    )


def test_saved_tokenizer_gives_identical_ids(trained, tmp_path):
    save_tokenizer(trained, tmp_path)
    texts = [*CAPTIONS, *SCRIPTS, "", "A  Cat's HOUSE 42"]
    for again in (load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)):
        assert again(texts)["input_ids"] == trained(texts)["input_ids"]
        assert again.model_max_length == 16


def test_vocab_and_merges_alone_give_identical_ids(trained, tmp_path):
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(CAPTIONS + SCRIPTS)["input_ids"] == trained(CAPTIONS + SCRIPTS)["input_ids"]
    assert tokenizer.model_max_length == 77
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 20, "pad_token": "!"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.pad_token_id) == (20, 0)


def test_tokenize_pads_and_accepts_the_empty_prompt(trained):
    ids = tokenize(trained, ["", "   ", "a cat"], 6)
    assert ids.dtype == np.int32 and ids.shape == (3, 6)
    assert ids[0].tolist() == ids[1].tolist() == [558, 559, 559, 559, 559, 559]
    assert ids[2].tolist() == [*trained("a cat").input_ids, 559, 559]
    assert tokenize(trained, [], 6).shape == (0, 6)


def test_a_long_prompt_is_cut_and_the_warning_says_what_is_lost(trained, caplog):
    prompt = "a cat in watercolor painting style Zoë 猫"
    full = trained(prompt).input_ids
    ids = tokenize(trained, [prompt], 5)
    lost = "cut: 'watercolor painting style Zoë 猫'"
    assert f"is {len(full)} tokens, the text encoder reads 5; {lost}" in caplog.text
    assert ids[0].tolist() == [*full[:4], trained.eos_token_id]


def test_a_prompt_of_exactly_the_limit_is_not_cut(trained, caplog):
    full = trained("a cat in watercolor").input_ids
    assert tokenize(trained, ["a cat in watercolor"], len(full))[0].tolist() == full
    assert not caplog.records


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a (cat:1.3) in pencil", "(cat:1.3)"),
        ("a ( red house : .8 )", "( red house : .8 )"),
        ("a cat BREAK a house", "BREAK"),
        ("a cat <lora:pencil:0.7>, (cat:1.3)", "<lora:pencil:0.7>, (cat:1.3)"),
    ],
)
def test_commands_of_other_tools_are_warned_of(trained, caplog, prompt, named):
    tokenize(trained, [prompt, "a cat"], 40)
    (message,) = caplog.messages
    assert message.startswith(f"prompt {prompt!r}: read as plain words: {named!r}; ")


def test_a_prompt_is_warned_of_once(trained, caplog):
    for _ in range(2):
        tokenize(trained, ["a (cat:1.2)", "a (cat:1.2)", "a (house:1.2)"], 40)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    "prompt",
    ["a cat (red)", "ratio 3:2", "(a cat: a house)", "daybreak, Break, BREAKFAST", "<s:1>"],
)
def test_plain_words_are_not_warned_of(trained, caplog, prompt):
    tokenize(trained, [prompt], 40)
    assert not caplog.records


def _tower(tokenizer, **changed) -> TextConfig:
    eos = tokenizer.eos_token_id
    tower = TextConfig(
        hidden_size=8, num_attention_heads=2, vocab_size=len(tokenizer), eos_token_id=eos
    )
    return dataclasses.replace(tower, **changed)


def test_a_tokenizer_of_the_tower_is_accepted(trained):
    check_tokenizer(trained, _tower(trained), source="tokenizer")
    check_tokenizer(trained, _tower(trained, eos_token_id=2), source="tokenizer")
    # Nothing is read at the end token of a tower without projection.
    check_tokenizer(trained, _tower(trained, eos_token_id=5, projection=False), source="tokenizer")
    longer = _tower(trained, vocab_size=600)
    check_tokenizer(trained, longer, source="tokenizer")


@pytest.mark.parametrize(
    ("change", "tower", "words"),
    [
        (
            lambda t: None,
            {"vocab_size": 559},
            "has ids up to 559, expected at most 558, the last row",
        ),
        (
            lambda t: t.add_tokens(["<style>"]),
            {"vocab_size": 560},
            "has ids up to 560, expected at most 559",
        ),
        (lambda t: None, {"eos_token_id": 500}, "end token is 559, expected 500, where the text"),
        (
            lambda t: t.add_tokens(["<style>"]),
            {"eos_token_id": 2, "vocab_size": 561},
            "end token is 559, expected 560",
        ),
        (lambda t: setattr(t, "pad_token", None), {}, "the tokenizer has no padding token"),
        (lambda t: setattr(t, "eos_token", None), {}, "the tokenizer has no end token"),
    ],
)
def test_a_tokenizer_of_another_tower_is_named(trained, change, tower, words):
    config = _tower(trained, **tower)
    tokenizer = copy.deepcopy(trained)
    change(tokenizer)
    with pytest.raises(UserError, match=f"^folder/tokenizer: .*{words}") as error:
        check_tokenizer(tokenizer, config, source="folder/tokenizer")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "README.md"],
            ["tokenizer.json", "tokenizer_config.json"],
        ),
        (
            ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"],
            ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"],
        ),
        (["spiece.model"], ["spiece.model"]),
    ],
)
def test_the_files_of_a_tokenizer_are_chosen(names, expected):
    assert choose_tokenizer(names, source="here") == expected
    with pytest.raises(UserError, match="^here: no tokenizer, expected tokenizer.json"):
        choose_tokenizer(["vocab.json", "tokenizer_config.json"], source="here")


def test_the_chosen_files_are_enough(trained, tmp_path):
    """Of a folder that has both forms."""
    save_tokenizer(trained, tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    names = [path.name for path in tmp_path.iterdir()]
    (tmp_path / "less").mkdir()
    for name in choose_tokenizer(names, source="here"):
        shutil.copy(tmp_path / name, tmp_path / "less")
    less = load_tokenizer(tmp_path / "less")
    assert less(CAPTIONS)["input_ids"] == trained(CAPTIONS)["input_ids"]
    assert less.pad_token_id == trained.pad_token_id


def test_t5_folder_loads(tmp_path):
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁a", -1.0),
        ("▁cat", -2.0),
        ("▁", -3.0),
    ]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, T5Tokenizer) and tokenizer.model_max_length == 512
    assert tokenize(tokenizer, ["a cat", ""], 5).tolist() == [[3, 4, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_folders_without_a_readable_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer, expected tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a readable CLIP"):
        load_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="WordLevel"):
        load_tokenizer(tmp_path)
