from pathlib import Path

import pytest
from ml_collections import ConfigDict

from styledrop_jax.config import Field, describe, parse, personalize_schema, round_config, validate
from styledrop_jax.errors import UserError, did_you_mean

CONFIGS = Path(__file__).parents[1] / "configs"
STYLEDROP = str(CONFIGS / "styledrop.py")


def _error(*argv):
    with pytest.raises(UserError) as caught:
        parse(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", ["styledrop.py", "debug.py"])
@pytest.mark.parametrize("preset", ["emoji64", "emoji64-muse", "amused-256", "amused-512"])
def test_every_preset_is_valid_and_locked(file, preset):
    config, rest = parse(["--config", f"{CONFIGS / file}:{preset}"])
    assert rest == [] and config.base.endswith(
        {"emoji64": "sd", "emoji64-muse": "emoji64"}.get(preset, preset)
    )
    with pytest.raises((KeyError, AttributeError)):
        config.round_1.train.stpes = 3


EVERY = [
    "cut_mix",
    "custom_diffusion",
    "dreambooth",
    "lora",
    "multi_styleforge",
    "styleboost",
    "styledrop",
    "styleforge",
    "styo",
    "svdiff",
    "textual_inversion",
]


@pytest.mark.parametrize("file", EVERY)
@pytest.mark.parametrize(
    ("preset", "base"),
    [
        ("emoji64", "emoji64/sd"),
        ("emoji64-muse", "emoji64"),
        ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd21", "stabilityai/stable-diffusion-2-1"),
    ],
)
def test_every_method_has_the_presets_of_both_backbones(file, preset, base):
    config, _ = parse(["--config", f"{CONFIGS / file}.py:{preset}"])
    assert config.base == base
    assert ("reference" in config) == (file not in ("multi_styleforge", "styo"))


def test_components_are_numbered_without_gaps():
    config, _ = parse(
        ["--config", str(CONFIGS / "multi_styleforge.py"), "--config.component_2.aux.weight", "0.5"]
    )
    loose = ConfigDict(config.to_dict())
    loose.component_3 = {"image": "three/", "identifier": "xyz", "aux": loose.component_1.aux}
    assert "component_3.identifier xyz: " in "\n".join(describe(loose, personalize_schema(loose)))
    validate(loose, schema=personalize_schema(loose))
    loose.unlock()
    del loose.component_2
    loose.component_1.aux.weight = -1.0
    with pytest.raises(UserError) as caught:
        validate(loose, schema=personalize_schema(loose))
    assert "config.component_2: missing" in str(caught.value)
    assert "config.component_1.aux.weight: found -1.0" in str(caught.value)


def test_the_large_presets_hold_the_papers_values():
    config, _ = parse([f"--config={STYLEDROP}:amused-512"])
    first, second = config.round_1, config.round_2
    assert (first.adapter.rank, first.adapter.shared) == (4, True)
    assert (second.adapter.rank, second.adapter.shared) == (32, False)
    for settings in (first, second):
        assert (settings.train.learning_rate, settings.train.batch_size, settings.train.steps) == (
            3e-5,
            8,
            1000,
        )
        assert (settings.sample.steps, settings.sample.temperature) == (36, 4.5)
        assert (settings.sample.lambda_a, settings.sample.lambda_b) == (2, 5)
    assert first.sample.images_per_prompt == 64


def test_overrides_anywhere_on_the_line():
    config, rest = parse(
        [
            "--workdir", "runs/a", "--config.round_1.train.steps", "50", f"--config={STYLEDROP}", "--config.seed=7",
            "--config.round_1.select.scorers.clip_style", "0.5", "--config.round_2.train.random_crop", "true",
            "--noconfig.round_2.adapter.shared", "--config.round_1.train.random_crop", "--verbose",
            "--config.round_2.train.learning_rate", "1", "--config.reference.content", "a red house",
            "--config.round_2.sample.negative_prompt", "", "extra",
        ]
    )  # fmt: skip
    assert rest == ["--workdir", "runs/a", "--verbose", "extra"]
    assert (
        config.round_1.train.steps == 50 and config.round_2.train.steps != 50 and config.seed == 7
    )
    assert config.round_1.select.scorers.to_dict() == {
        "clip_text": 1.0,
        "clip_style": 0.5,
        "random": 0.0,
    }
    assert config.round_1.train.random_crop is True and config.round_2.train.random_crop is True
    assert config.round_2.adapter.shared is False and config.reference.content == "a red house"


def test_false_after_a_flag_is_false():
    config, rest = parse(["--config", STYLEDROP, "--config.round_1.adapter.shared", "false"])
    assert config.round_1.adapter.shared is False and rest == []


def test_a_whole_dict_of_scorers():
    config, _ = parse(["--config", STYLEDROP, "--config.round_1.select.scorers", "{'random': 1}"])
    assert config.round_1.select.scorers.to_dict() == {"random": 1}


def test_a_default_file_and_a_missing_one():
    assert parse([], default=STYLEDROP)[0].base == "emoji64/sd"
    assert "--config: missing" in _error("--workdir", "x")
    assert "no value" in _error("--config", "--workdir")
    message = _error("--config", str(CONFIGS / "styledorp.py"))
    assert "no such file" in message and "styledrop.py'?" in message


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("--config.round_2.train.stpes=5", "did you mean 'config.round_2.train.steps'?"),
        ("--config.lambda_a=5", "did you mean 'config.round_1.sample.lambda_a'?"),
        ("--config.reference.contents=a", "did you mean 'config.reference.content'?"),
        (
            "--config.round_1.select.scorers.clip_txt=1",
            "did you mean 'config.round_1.select.scorers.clip_text'?",
        ),
        ("--noconfig.round_1.adapter.share", "did you mean 'config.round_1.adapter.shared'?"),
        ("--config.zzzz=1", "unknown field"),
    ],
)
def test_unknown_fields_say_what_was_meant(override, hint):
    assert hint in _error("--config", STYLEDROP, override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "--config.round_1.train.steps=abc",
            "config.round_1.train.steps: found 'abc', expected a whole number",
        ),
        ("--config.round_1.train.steps=2.5", "found '2.5', expected a whole number"),
        ("--config.round_1.train.steps=0", "found 0, expected a whole number of at least 1"),
        ("--config.round_1.train.learning_rate=0", "expected a number above 0 and at most 1"),
        ("--config.round_1.train.learning_rate=nan", "found nan"),
        (
            "--config.round_1.train.random_crop=maybe",
            "config.round_1.train.random_crop: found 'maybe'",
        ),
        ("--config.round_1.select=3", "expected a dict"),
        (
            "--config.round_1.select.by=promt",
            "one of prompt, top_k, threshold, human; did you mean 'prompt'?",
        ),
        (
            "--config.round_1.select.scorers={'clp_text': 1}",
            "clp_text: unknown; did you mean 'clip_text'?",
        ),
        ("--config.round_1.select.scorers={'clip_text': 0}", "every weight is 0"),
        ("--config.base= ", "config.base: found ' ', expected text that is not empty"),
        ("--config.seed", "Missing value"),
    ],
)
def test_bad_values_say_what_was_expected(override, words):
    assert words in _error("--config", STYLEDROP, override)


def test_unknown_preset():
    assert "did you mean 'amused-256'?" in _error("--config", STYLEDROP + ":amusd-256")


def test_all_problems_come_at_once():
    message = _error("--config", STYLEDROP, "--config.sed=1", "--config.round_1.train.stpes=5")
    assert "config.sed" in message and "config.round_1.train.stpes" in message
    config = ConfigDict({"seed": -1, "rounds": True, "extra": 1, "round_1": 3})
    with pytest.raises(UserError) as caught:
        validate(config, schema=personalize_schema(config))
    for words in (
        "config.seed: found -1",
        "config.rounds: found True",
        "config.extra: unknown",
        "config.base: missing",
    ):
        assert words in str(caught.value)
    assert "config.round_1: found 3, expected the fields adapter, train, sample, select" in str(
        caught.value
    )


def test_rounds_beyond_the_last_reuse_it_and_gaps_are_refused():
    config, _ = parse(["--config", f"{STYLEDROP}:amused-256", "--config.rounds", "4"])
    assert [round_config(config, i).adapter.rank for i in (1, 2, 3, 4)] == [4, 32, 32, 32]
    loose = ConfigDict(config.to_dict())
    loose.round_10 = loose.round_2
    with pytest.raises(UserError, match="config.round_3: missing"):
        validate(loose, schema=personalize_schema(loose))


def test_a_config_file_of_ones_own(tmp_path):
    schema = {"steps": Field(int, "training steps", 1)}
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'steps': 3})"
    )
    assert parse(["--config", str(tmp_path / "mine.py")], schema=schema)[0].steps == 3
    with pytest.raises(UserError, match="the config file failed: TypeError"):
        parse(["--config", f"{tmp_path / 'mine.py'}:preset"], schema=schema)


def test_help_names_every_field_with_its_value_and_of_later_rounds_what_differs():
    config, _ = parse(["--config", "configs/styledrop.py", "--config.round_2.train.steps", "77"])
    lines = describe(config, personalize_schema(config))
    assert "round_1.train.steps 250: training steps (a whole number of at least 1)" in lines
    assert any(line.startswith("round_1.select.scorers.clip_style 1.0: ") for line in lines)
    assert "round_2.train.steps 77: training steps (a whole number of at least 1)" in lines
    assert not any(line.startswith("round_2.train.batch_size") for line in lines)


def test_did_you_mean():
    assert did_you_mean("Clip_Txt", ["clip_text", "random"]) == "; did you mean 'clip_text'?"
    assert did_you_mean("xyz", ["clip_text", "random"]) == ""
    assert (
        did_you_mean("cat.png", ["oak.png"])
        != ""
        == did_you_mean("cat.png", ["oak.png"], part=lambda x: x[:-4])
    )
