"""What training may start from: every file that is read, and what is said of those that are not."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import worlds
from safetensors.numpy import load_file, save, save_file
from worlds import WHAT, base, ours, started, trained

from styledrop_jax import tree
from styledrop_jax.adapters import lora
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.adapters.textual_inversion import Config, Token
from styledrop_jax.errors import UserError
from styledrop_jax.interchange.export import EXPORTS
from styledrop_jax.interchange.read import read_init


def _sampled(path):
    return worlds.sampled(started(read_init(path, base()), base()))


@pytest.mark.parametrize("name", ["lora and words", "svdiff", "full", "styledrop"])
def test_our_own_adapter_is_read(name, tmp_path):
    (path,) = EXPORTS["styledrop"](trained(name), tmp_path)
    initial = read_init(path, base())
    assert initial.what == WHAT[name]
    np.testing.assert_allclose(_sampled(path), ours(name), atol=1e-6)


LORA = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "mine.safetensors",
    "peft": "",
}


@pytest.mark.parametrize("kind", LORA)
def test_a_lora_of_another_tool_is_read(kind, tmp_path):
    EXPORTS[kind](trained("lora everywhere"), tmp_path)
    initial = read_init(tmp_path / LORA[kind], base())
    rank, alpha = (3, 3.0) if kind == "diffusers" else (3, 1.5)  # there α is in B
    assert initial.what.denoiser == lora.Config(rank=rank, alpha=alpha, targets="all")
    assert initial.what.denoiser == initial.what.text and initial.what.words is None
    np.testing.assert_allclose(_sampled(tmp_path / LORA[kind]), ours("lora everywhere"), atol=1e-4)


def test_a_folder_of_diffusers_or_of_one_peft_component_is_read(tmp_path):
    EXPORTS["diffusers"](trained("lora"), tmp_path / "diffusers")
    EXPORTS["peft"](trained("lora"), tmp_path / "peft")
    weights = tmp_path / "peft" / "unet" / "adapter_model.safetensors"
    for path in (tmp_path / "diffusers", tmp_path / "peft" / "unet", weights):
        np.testing.assert_allclose(_sampled(path), ours("lora"), atol=1e-4)


def test_a_lora_of_the_text_tower_alone_is_read(tmp_path):
    EXPORTS["peft"](trained("lora everywhere"), tmp_path)
    initial = read_init(tmp_path / "text_encoder", base())
    assert initial.what == Trainable(text=WHAT["lora everywhere"].text)
    started(initial, base())


def test_what_a_file_leaves_out_changes_nothing_and_still_trains(tmp_path):
    """Layers differ in rank, and most are missing."""
    rng = np.random.default_rng(0)
    file = {}
    for side, rank in (("q", 2), ("k", 5)):
        layer = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{side}"
        file[f"{layer}.lora_down.weight"] = rng.normal(size=(rank, 12)).astype("f")
        file[f"{layer}.lora_up.weight"] = rng.normal(size=(12, rank)).astype("f")
        file[f"{layer}.alpha"] = np.array(1.0, "f")
    save_file(file, tmp_path / "some.safetensors")
    initial = read_init(tmp_path / "some.safetensors", base())
    assert initial.what == Trainable(denoiser=lora.Config(rank=5, alpha=5.0))
    state = tree.flatten(initial.state)
    for name, leaf in state.items():
        if not name.endswith(".down"):
            continue
        assert (np.asarray(leaf) != 0).any(axis=0).all(), "a column of zeros would never train"
        product = np.asarray(leaf @ state[f"{name.removesuffix('.down')}.up"])
        expected = np.zeros_like(product)
        for side, rank in (("q", 2), ("k", 5)):
            if f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{side}." in name:
                layer = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{side}"
                up = file[f"{layer}.lora_up.weight"]
                expected = (up @ file[f"{layer}.lora_down.weight"]).T / rank
        np.testing.assert_allclose(product, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["diffusers", "a1111"])
def test_a_new_word_is_read(kind, tmp_path):
    path, *_ = EXPORTS[kind](trained("words"), tmp_path)
    assert path.name == "hut.safetensors"
    initial = read_init(path, base())
    token = Token(word="<hut>", initializer="a", vectors=2)
    assert initial.what == Trainable(words=Config(tokens=(token,)))
    np.testing.assert_allclose(_sampled(path), ours("words"), atol=1e-4)


def test_the_name_of_the_file_is_the_word_if_nothing_else_says(tmp_path):
    rows = np.ones((3, 16), np.float16)
    save_file({"emb_params": rows}, tmp_path / "easyword.safetensors")
    save_file({"<one>": rows[0]}, tmp_path / "file.safetensors")
    for name, word, vectors in (("easyword", "easyword", 3), ("file", "<one>", 1)):
        initial = read_init(tmp_path / f"{name}.safetensors", base())
        (token,) = initial.what.words.tokens
        assert (token.word, token.vectors) == (word, vectors)


def test_another_base_is_refused(tmp_path, tiny_muse):
    (path,) = EXPORTS["styledrop"](trained("lora"), tmp_path)
    other = dataclasses.replace(base(), base_hash="other")
    with pytest.raises(UserError, match=r"adapter\.safetensors: trained on base model tiny .*hash"):
        read_init(path, other)
    (path,) = EXPORTS["kohya"](trained("lora"), tmp_path)
    with pytest.raises(UserError, match=r"mine\.safetensors: does not fit the model, \d+ differ"):
        read_init(path, tiny_muse)
    path, *_ = EXPORTS["a1111"](trained("words"), tmp_path)
    with pytest.raises(UserError, match=r"hut\.safetensors: found .*expected .*length 24 for each"):
        read_init(path, tiny_muse)


def _peft(folder, config):
    EXPORTS["peft"](trained("lora"), folder)
    path = folder / "unet" / "adapter_config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)
    return folder / "unet"


def _without_metadata(folder):
    _peft(folder, None)
    return folder / "unet" / "adapter_model.safetensors"


def _pickled(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    return folder


def _file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _whole_model(folder):
    EXPORTS["pipeline"](trained("full"), folder)
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def _damaged(folder, change):
    (path,) = EXPORTS["styledrop"](trained("lora"), folder)
    path.write_bytes(change(path.read_bytes()))
    return path


def _odd_metadata(folder):
    (path, *_) = EXPORTS["diffusers"](trained("lora"), folder)
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": "[1"})
    return path


TWO_TOWERS = save({"clip_l": np.zeros((1, 8)), "clip_g": np.zeros((1, 9))})
REFUSED = {
    "absent": (lambda folder: folder / "no.safetensors", "no such file"),
    "pickle": (_file("old.pt", pickle.dumps({"*": 1})), "a .pt file may be a pickle"),
    "ckpt": (_file("old.ckpt", b""), "a .ckpt file may be a pickle, which is never opened"),
    "renamed pickle": (_file("x.safetensors", pickle.dumps(1)), "not a readable safetensors file"),
    "no suffix": (_file("bare", b""), "not a readable safetensors file"),
    "cut": (lambda folder: _damaged(folder, lambda data: data[:-9]), "or cut short"),
    "swapped": (
        lambda folder: _damaged(folder, lambda data: data[:-4] + data[-8:-4]),
        "does not match the checksum",
    ),
    "empty folder": (lambda folder: folder, "expected a file, or a folder with adapter_config"),
    "peft without config": (_without_metadata, "expected adapter_config.json beside it"),
    "peft of another kind": (
        lambda folder: _peft(folder, '{"peft_type": "LOHA"}'),
        "peft_type is 'LOHA', expected 'LORA'",
    ),
    "peft that is no JSON": (lambda folder: _peft(folder, "{"), "expected JSON"),
    "peft that is a list": (lambda folder: _peft(folder, "[]"), "peft_type is []"),
    "pickled peft": (_pickled, "adapter_model.bin is a pickle, which is never opened"),
    "metadata": (_odd_metadata, "its lora_adapter_metadata is '[1', expected a peft config"),
    "whole model": (_whole_model, "more, expected a LoRA, or rows of length 16 for each word"),
    "two towers": (_file("x.safetensors", TWO_TOWERS), "SDXL's two text towers"),
    "empty": (_file("x.safetensors", save({})), "found nothing, expected a LoRA"),
    "known word": (
        _file("cat.safetensors", save({"emb_params": np.zeros((1, 16))})),
        "the tokenizer knows this word",
    ),
    "two words": (
        _file("my style.safetensors", save({"emb_params": np.zeros((1, 16))})),
        "expected a word without spaces",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named_in_one_line(case, tmp_path):
    make, words = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        read_init(path, base())
    message = str(error.value).replace(str(tmp_path), "")
    assert words in message and "\n" not in message and len(message) < 300
    assert path.name in str(error.value)
