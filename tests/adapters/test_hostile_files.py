"""Weights and adapters that came from someone else: found out when they are loaded, by name."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from styledrop_jax import trainable
from styledrop_jax.adapters import base, lora, styledrop, textual_inversion
from styledrop_jax.errors import UserError
from styledrop_jax.interchange.lora_read import _meant
from styledrop_jax.io import pretrained
from styledrop_jax.models.rules import COMMON, Rules

TENSORS = {"denoiser.x": np.ones((4, 8), np.float32)}


def _saved(path, tensors=TENSORS, **changes):
    """An adapter file whose checksum is right, whatever it says."""
    config = {"denoiser": styledrop.Config().to_dict(), "text": None, "words": None}
    metadata = {
        "format": 1,
        "base_name": "emoji128",
        "base_hash": "0" * 64,
        "config": config,
        "round": 1,
        "extra": {},
        **changes,
    }
    metadata["digest"] = base._digest(metadata, tensors)
    save_file(dict(tensors), path, metadata={base.METADATA: json.dumps(metadata)})
    return path


def _refused(path):
    with pytest.raises(UserError) as caught:
        trainable.from_dict(base.load_adapter(path).config)
    message = str(caught.value)
    assert len(message) < 300 and "\n" not in message
    return message


@pytest.mark.parametrize("field", ["base_name", "base_hash", "config", "round", "extra"])
@pytest.mark.parametrize(
    "value", [None, [1], 10**30, "x" * 10_000, {"a": [[[]]]}, True], ids=range(6)
)
def test_metadata_of_other_types_is_refused(tmp_path, field, value):
    kind = base._RECORDED[field]
    if type(value) is kind and field != "config":
        return
    assert "a.safetensors" in _refused(_saved(tmp_path / "a.safetensors", **{field: value})) or (
        field == "config"
    )


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("denoiser", {"adapter": "lora", "rank": 10**7}, "its 'rank' is 10000000, but the longest"),
        ("denoiser", {"adapter": "lora", "rank": -1}, "its 'rank' is -1"),
        ("denoiser", {"adapter": "lora", "rank": "4"}, "rank is '4', expected a whole number"),
        ("denoiser", {"adapter": "lora", "alpha": None, "rank": [4]}, "rank is [4], expected"),
        ("denoiser", {"adapter": "styledrop", "bottleneck": 10**7}, "its 'bottleneck' is 10000000"),
        ("denoiser", {"adapter": "styledrop", "shared": "no"}, "shared is 'no', expected true or"),
        ("denoiser", {"adapter": ["lora"]}, "expected one of"),
        (
            "words",
            {"tokens": [{"word": "<a>", "initializer": "a", "vectors": 10**7}]},
            "its 'vectors' is 10000000",
        ),
        ("words", {"tokens": [{"word": "<a>", "initializer": 3}]}, "found the initializer 3"),
        ("words", {"tokens": [{"word": "x" * 10_000, "initializer": "a"}]}, "at most 100 letters"),
        ("words", {"tokens": 3}, "tokens is 3, expected a list"),
        ("words", {"tokens": ["x"]}, "tokens is ['x'], expected a list"),
        ("words", {}, "tokens is missing"),
    ],
)
def test_a_config_that_the_tensors_do_not_bear_out_is_refused_before_it_is_built(
    tmp_path, part, fields, words
):
    if part == "words":
        fields = {"adapter": "textual_inversion", **fields}
    config = {"denoiser": None, "text": None, "words": None, part: fields}
    assert words in _refused(_saved(tmp_path / "a.safetensors", config=config))


def test_deeply_nested_metadata_is_refused(tmp_path):
    text = "[" * 100_000
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={base.METADATA: text})
    assert "its metadata is corrupted" in _refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_no_number_is_found_by_the_tensor(tmp_path, value, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    bad = np.ones((4, 8)).astype(kind)
    bad[2, 3] = value
    largest = ml_dtypes.finfo(kind).max
    fine = np.array([largest, -largest], kind)
    save_file({"fine": fine}, tmp_path / "a.safetensors")
    assert set(base.read_safetensors(tmp_path / "a.safetensors")[0]) == {"fine"}
    save_file({"fine": fine, "bad.kernel": bad}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a.safetensors: tensor 'bad.kernel' holds NaN or infinity"):
        base.read_safetensors(tmp_path / "a.safetensors")
    save_file({"layer.weight": bad}, tmp_path / "m.safetensors")
    rules = Rules(rules=COMMON)
    tensors = pretrained.Tensors([tmp_path / "m.safetensors"], rules)
    with pytest.raises(UserError, match="^model: tensor 'layer.weight' holds NaN or infinity"):
        pretrained.load(_Linear, tensors, rules, source="model")


class _Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(8, 4, use_bias=False, rngs=nnx.Rngs(0))


def test_more_tensors_than_any_model_has_are_counted_not_read(tmp_path):
    many = {f"t{i}": np.zeros(1, np.float32) for i in range(pretrained.MOST_TENSORS + 1)}
    save_file(many, tmp_path / "a.safetensors")
    for read in (base.read_safetensors, lambda path: pretrained.Tensors([path], Rules(rules=()))):
        with pytest.raises(UserError, match="holds 50,001 tensors, expected at most 50,000"):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "I8"])
def test_weights_that_mean_nothing_alone_are_named(dtype, tmp_path):
    bits = 4 if dtype == "F4" else 8
    size = 4 * bits // 8
    header = {"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(UserError, match=f"x is {dtype}, expected one of F16"):
        pretrained.Tensors([path], Rules(rules=()))


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(", "a" * 1000, ".*.*.*.*x", "((x|x)*)*", "a{9999999999}"]
)
def test_a_pattern_that_could_search_for_ever_is_refused(pattern):
    assert _meant(r"attn1\.to_[qk]", "down.0.attn1.to_q")
    with pytest.raises(UserError, match="alpha_pattern has"):
        _meant(pattern, "a" * 100)


def test_a_word_of_no_sense_is_refused():
    with pytest.raises(UserError, match="expected a positive whole number"):
        textual_inversion.Token(word="<a>", initializer="a", vectors=True)
    with pytest.raises(UserError, match="lora rank"):
        lora.Config(rank=0)
