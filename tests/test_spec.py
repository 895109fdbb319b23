"""The settings of a run as one value: what a config says, resolved once, with its method's own."""

import dataclasses
from pathlib import Path

import pytest

from styledrop_jax import config_files, spec
from styledrop_jax.adapters import lora
from styledrop_jax.errors import UserError
from styledrop_jax.registry import ADAPTERS, METHODS, SCHEDULERS, SCORERS, SELECTORS


def _error(**data):
    with pytest.raises(UserError) as caught:
        spec.from_config(data)
    return str(caught.value)


# -------------------------------------------------------------- from a config and back


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_method_are_fields_of_the_same_value(method):
    found = spec.from_config({"method": method, "seed": 3})
    assert isinstance(found, spec.RunSpec) and isinstance(found, METHODS[method].settings)
    assert found.seed == 3 and found.round_settings == (spec.RoundSettings(),)
    assert spec.from_config(spec.to_config(found)) == found


@pytest.mark.parametrize("name", ["styledrop", "dreambooth", "multi_styleforge", "styo", "lora"])
def test_what_config_json_holds_is_read_back(name):
    found = config_files.read(name)
    plain = spec.to_config(found)
    assert spec.from_config(plain) == found
    expected = {}
    for key, value in plain.items():
        number = key.removeprefix("round_")
        if key != "mesh" and (not number.isdigit() or int(number) <= found.rounds):
            expected[key] = value
    assert spec.normal(plain) == expected, "rounds that are not run do not count, nor devices"


def test_config_json_holds_the_chosen_adapters_fields_alone():
    found = config_files.read("lora")
    adapter = spec.to_config(found)["round_1"]["adapter"]
    assert set(adapter) == {"kind", "rank", "alpha", "targets", "text_encoder"}
    assert found.round(1).adapter == lora.Settings(rank=16, alpha=32.0)
    assert found.round(2) == found.round(1), "a further one is of the same method"


def test_a_field_of_another_method_is_unknown():
    assert "config.prior: unknown field" in _error(method="styledrop", prior={})
    assert "did you mean 'dreambooth'?" in _error(method="dreambooht", prior={})
    assert "config.method: found ['styledrop']" in _error(method=["styledrop"])


def test_the_settings_of_one_round_do_not_reach_another():
    found = spec.from_config({"round_1": {"train": {"steps": 5}}, "round_2": {}})
    assert [stage.train.steps for stage in found.round_settings] == [5, 1000]


def test_rounds_beyond_the_last_reuse_it_and_gaps_are_refused():
    found = config_files.read("styledrop:amused-256", {"rounds": 4})
    assert [found.round(number).adapter.rank for number in (1, 2, 3, 4)] == [4, 32, 32, 32]
    data = spec.to_config(found)
    data["round_10"] = data["round_2"]
    assert "config.round_3: missing" in _error(**data)


def test_the_muse_preset_leaves_its_second_round_out_and_says_why():
    found = config_files.read("styledrop:emoji128-muse")
    assert found.rounds == 1 and "coarser" in found.ends
    both = config_files.read("styledrop:emoji128-muse", {"rounds": 2})
    assert not both.ends and both.round(2).own_share == 0.1 and both.round(2).adapter.rank == 16
    assert spec.normal(spec.to_config(both))["round_2"]["left_out"] == "", "of no run's settings"
    assert not config_files.read("styledrop", {"rounds": 1}).ends


def test_all_problems_come_at_once():
    message = _error(seed=-1, rounds=True)
    for words in ("config.seed: found -1", "config.rounds: found True"):
        assert words in message
    message = _error(extra=1, round_1=3)
    assert "config.extra: unknown" in message
    assert "config.round_1: found 3, expected the fields start, images, own_share, keep" in message


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"method": "x"}, METHODS),
        ({"round_1": {"adapter": {"kind": "x"}}}, ADAPTERS),
        ({"round_1": {"select": {"by": "x"}}}, SELECTORS),
        ({"round_1": {"select": {"scorers": {"x": 1}}}}, SCORERS),
        ({"round_1": {"sample": {"sampler": "x"}}}, SCHEDULERS),
    ],
)
def test_names_are_those_of_the_registry(data, names):
    assert ", ".join(names) in _error(**data)


# -------------------------------------------------------------- help


def test_help_names_every_field_with_its_value_and_of_later_rounds_what_differs():
    words = ["--config", "styledrop", "--config.round_2.train.steps", "77"]
    config, _ = config_files.from_arguments(words)
    described = spec.describe(config)
    basic = [line.split()[0] for line in described["what most runs set"]]
    assert basic == [
        "words.identifier",
        "words.noun",
        "reference.image",
        "reference.content",
        "reference.descriptor",
        "base",
        "rounds",
    ]
    lines = described["all other fields"]
    assert (
        "round_1.train.steps 80: training steps (a whole number of at least 0 and at most 1000000)"
        in lines
    )
    assert (
        "round_2.train.steps 77: training steps (a whole number of at least 0 and at most 1000000)"
        in lines
    )
    assert any(line.startswith("round_1.select.scorers.clip_style 2.0: ") for line in lines)
    assert not any(line.startswith("round_2.train.batch_size") for line in lines)
    assert any(line.startswith('prompts "": ') for line in lines)
    assert any(line.startswith("round_1.train.remat false: ") for line in lines)
    assert any(" of the new word (textual_inversion" in line for line in lines)


def test_help_names_every_component():
    config = spec.to_config(config_files.read("multi_styleforge"))
    described = spec.describe(spec.complete(config))
    lines = described["all other fields"] + described["what most runs set"]
    assert any(line.startswith("component_2.identifier aug: ") for line in lines)
    assert any(line.startswith("component_2.aux.weight 1.0: ") for line in lines)


# -------------------------------------------------------------- paths


def test_paths_of_files_that_are_there_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.png", "words.txt", "more.txt"):
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()
    data = {
        "base": "model",
        "clip": "emoji64/clip",
        "method": "dreambooth",
        "prompts": "./words.txt",
        "reference": {"image": "mine.png", "content": "mine.png"},
        "prior": {"image": "nowhere/"},
        "round_1": {"prompts": "more.txt"},
    }
    found = spec.from_config(spec.absolute(spec.complete(data)))
    assert found.base == str(tmp_path / "model")
    assert found.clip == "emoji64/clip"
    assert Path(found.prompts) == tmp_path / "words.txt"
    assert found.reference.image == str(tmp_path / "mine.png")
    assert found.reference.content == "mine.png", "words are no path"
    assert found.prior.image == "nowhere/", "an error to be said when it is read"
    assert found.round(1).prompts == str(tmp_path / "more.txt")


def test_a_name_that_ships_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji128").mkdir()
    (tmp_path / "bundled:house-papercut").touch()
    data = spec.complete({"base": "emoji128", "reference": {"image": "bundled:house-papercut"}})
    assert spec.absolute(data)["base"] == "emoji128"
    assert spec.absolute(data)["reference"]["image"] == "bundled:house-papercut"


@pytest.mark.parametrize("image", ["", "\0", "x" * 5000, "~nobody-of-that-name/x.png"])
def test_what_is_no_path_stays_as_it_is(image):
    data = spec.complete({"reference": {"image": image}})
    assert spec.absolute(data)["reference"]["image"] == image


@pytest.mark.parametrize("data", [{"round_1": 3}, {"reference": 3}, {"base": 3}, {"method": 3}])
def test_paths_of_what_is_wrong_are_left_alone(data):
    with pytest.raises(UserError):
        spec.from_config(spec.absolute(spec.complete(data)))


# -------------------------------------------------------------- what no single field says


def _rounds(**changes):
    """Two rounds, the second with some fields changed."""
    first = spec.RoundSettings()
    second = first
    for name, values in changes.items():
        part = getattr(first, name)
        changed = dataclasses.replace(part, **values) if isinstance(values, dict) else values
        second = dataclasses.replace(second, **{name: changed})
    return spec.RunSpec(rounds=2, round_settings=(first, second))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"steps": 0}}, "train.steps: found 0, expected a whole number of at least 1"),
        ({"train": {"accumulate": 3}}, "found 3, expected a divisor of batch_size 8"),
        ({"select": {"k": 65}}, "k: found 65, expected at most 64, the images sampled"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be(changes, words):
    with pytest.raises(UserError, match="config.round_2") as caught:
        spec.check_rounds(_rounds(**changes))
    assert words in str(caught.value)


def test_batches_are_shared_evenly():
    spec.check_batches(_rounds(train={"accumulate": 4}), 2)
    with pytest.raises(UserError, match="round_2.train.batch_size: found 8, .* multiple of 16, so"):
        spec.check_batches(_rounds(train={"accumulate": 8}), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"steps": 0}, "start": "last"},
        {"train": {"accumulate": 4}},
        {"select": {"k": 64}},
        {"select": {"by": "top_k", "k": 1000}},
        {"select": {"by": "threshold", "k": 1000}},
    ],
)
def test_rounds_that_can_be(changes):
    spec.check_rounds(_rounds(**changes))


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("styledrop", "bfloat16", "bfloat16"),
        ("lora", "bfloat16", "bfloat16"),
        ("full", "bfloat16", "float32"),
        ("svdiff", "bfloat16", "float32"),
        ("lora", "float32", "float32"),
    ],
)
def test_weights_are_kept_as_what_trains_needs_them(kind, dtype, expected):
    data = {"dtype": dtype, "round_1": {"adapter": {"kind": kind}}}
    assert spec.from_config(data).weights_dtype == expected


def test_what_is_portable_names_no_folder_of_this_machine():
    paths = {
        "base": "/models/sd",
        "clip": "emoji64/clip",
        "base_loras": "/loras/a.safetensors:0.8,b.safetensors",
        "reference": {"image": "/home/me/my pictures/house.png"},
    }
    found = spec.portable(spec.complete(paths))
    assert (found["base"], found["clip"]) == ("sd", "emoji64/clip")
    assert found["base_loras"] == "a.safetensors:0.8,b.safetensors:1.0"
    assert found["reference"]["image"] == "house.png"
    assert spec.from_config(found).loras == (("a.safetensors", 0.8), ("b.safetensors", 1.0))
