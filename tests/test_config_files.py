"""The door for settings: the configs that ship, configs of a user's own, and what overrides
them.
"""

import runpy
from pathlib import Path

import pytest

from styledrop_jax import config_files, spec
from styledrop_jax.errors import UserError

RUNS = (
    "cut_mix",
    "custom_diffusion",
    "debug",
    "dreambooth",
    "hard_prompt",
    "lora",
    "multi_styleforge",
    "styleboost",
    "styledrop",
    "styleforge",
    "styo",
    "svdiff",
    "textual_inversion",
)
BASES = {
    "emoji128": "emoji128",
    "emoji128-muse": "emoji128-muse",
    "amused-256": "amused/amused-256",
    "amused-512": "amused/amused-512",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def _arguments(*argv, config="styledrop"):
    """The settings and the remaining arguments of a command line."""
    config, rest = config_files.from_arguments(["--config", config, *argv])
    return spec.from_config(config), rest


def _error(*argv, config="styledrop"):
    with pytest.raises(UserError) as caught:
        _arguments(*argv, config=config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _own(folder, code):
    """A config file that a user wrote."""
    path = folder / "mine.py"
    path.write_text(f"from ml_collections import ConfigDict\n{code}", encoding="utf-8")
    return str(path)


# -------------------------------------------------------------- the configs that ship


def test_every_config_is_known_by_its_name():
    pretraining = [name for name in config_files.names() if name.startswith("pretrain_")]
    assert set(config_files.names()) == {*RUNS, *pretraining}
    assert len(pretraining) == 6


@pytest.mark.parametrize("preset", BASES)
@pytest.mark.parametrize("name", RUNS)
def test_every_config_has_every_preset(name, preset):
    found = config_files.read(f"{name}:{preset}")
    assert found.base == BASES[preset]
    assert hasattr(found, "reference") == (name not in ("multi_styleforge", "styo"))
    method = runpy.run_path(str(config_files.folder() / f"{name}.py"))["get_config"]().method
    assert found.method == method


def test_the_large_presets_hold_the_papers_values():
    found = config_files.read("styledrop:amused-512")
    first, second = found.round_settings
    assert (first.adapter.rank, first.adapter.shared) == (4, True)
    assert (second.adapter.rank, second.adapter.shared) == (32, False)
    for settings in (first, second):
        train = settings.train
        assert (train.learning_rate, train.batch_size, train.steps) == (3e-5, 8, 1000)
        assert (settings.sample.steps, settings.sample.temperature) == (36, 4.5)
        assert (settings.sample.lambda_a, settings.sample.lambda_b) == (2, 5)
    assert first.sample.images_per_prompt == 64


def test_the_paths_of_configs_are_names_too():
    folder = config_files.folder()
    by_path = config_files.read(f"{folder / 'lora.py'}:emoji128-muse")
    assert by_path == config_files.read("lora:emoji128-muse")


def test_an_unknown_preset_says_what_was_meant():
    assert "did you mean 'amused-256'?" in _error(config="styledrop:amusd-256")


def test_configs_are_copied_out_to_be_edited(tmp_path):
    mine = config_files.copy(tmp_path / "mine")
    assert {path.stem for path in mine.iterdir()} == set(config_files.names())
    edited = mine / "styledrop.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    (mine / "lora.py").unlink()
    config_files.copy(mine)
    assert edited.read_text(encoding="utf-8").endswith("# mine\n"), "what is there stays"
    assert config_files.read(str(mine / "lora.py")) == config_files.read("lora")


# -------------------------------------------------------------- overrides of a command line


def test_overrides_anywhere_on_the_line():
    found, rest = _arguments(
        "--workdir", "runs/a", "--config.round_1.train.steps", "50", "--config=lora",
        "--config.seed=7",
        "--config.round_1.select.scorers.clip_style", "0.5",
        "--config.round_2.train.random_crop", "true",
        "--noconfig.round_2.adapter.shared", "--config.round_1.train.random_crop", "--verbose",
        "--config.round_2.train.learning_rate", "1", "--config.reference.content", "a red house",
        "--config.round_2.sample.negative_prompt", "", "extra", "--config=styledrop",
    )  # fmt: skip
    assert rest == ["--workdir", "runs/a", "--verbose", "extra"]
    assert found.rounds == 2, "the last --config counts"
    assert found.seed == 7 and found.reference.content == "a red house"
    first, second = found.round_settings
    assert (first.train.steps, second.train.steps) == (50, 80)
    assert first.select.scorers["clip_style"] == 0.5
    assert first.select.scorers["clip_content"] == 1.0
    assert first.train.random_crop is True and second.train.random_crop is True
    assert second.adapter.shared is False and second.train.learning_rate == 1.0


def test_false_after_a_flag_is_false():
    found, rest = _arguments("--config.round_1.train.random_crop", "false")
    assert found.round_settings[0].train.random_crop is False and rest == []


def test_what_follows_two_dashes_is_left_alone():
    found, rest = _arguments("--", "--config.seed", "7")
    assert found.seed == 0
    assert rest == ["--", "--config.seed", "7"]


def test_a_section_as_a_whole():
    found, _ = _arguments(
        "--config.round_1.select.scorers", "{'random': 1}", "--config.round_1.train", "{'steps': 7}"
    )
    assert found.round_settings[0].select.scorers == {"random": 1.0}
    assert found.round_settings[0].train == spec.TrainSettings(steps=7)


def test_another_kind_of_adapter_is_one_word():
    found, _ = _arguments("--config.round_1.adapter.kind", "textual_inversion")
    kinds = spec.to_config(found)
    assert set(kinds["round_1"]["adapter"]) == {"kind", "vectors", "initializer", "norm"}
    assert kinds["round_2"]["adapter"]["kind"] == "styledrop"


def test_overrides_of_fields_that_a_config_leaves_out(tmp_path):
    mine = _own(tmp_path, "get_config = lambda: ConfigDict({'method': 'dreambooth'})")
    words = ("--config.prior.generate", "3", "--config.round_1.select.scorers.random", "2")
    found, _ = _arguments(*words, "--config.words.noun", "dog", config=mine)
    assert found.prior.generate == 3 and found.words.noun == "dog"
    weights = found.round_settings[0].select.scorers
    assert weights["clip_text"] == 1.0 and weights["random"] == 2.0


def test_components_are_numbered_without_gaps(tmp_path):
    found, _ = _arguments("--config.component_2.aux.weight", "0.5", config="multi_styleforge")
    assert [component.aux.weight for component in found.components] == [1.0, 0.5]
    code = (
        "import runpy\n"
        "def get_config():\n"
        f"    config = runpy.run_path({str(config_files.folder() / 'multi_styleforge.py')!r})"
        "['get_config']()\n"
        "    config.component_{} = ConfigDict({{'image': 'three/', 'identifier': 'xyz'}})\n"
        "    return config\n"
    )
    found, _ = _arguments(config=_own(tmp_path, code.format(3)))
    assert [component.identifier for component in found.components] == ["sks", "aug", "xyz"]
    assert "config.component_3: missing" in _error(config=_own(tmp_path, code.format(4)))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("--config.round_2.train.stpes=5", "did you mean 'config.round_2.train.steps'?"),
        ("--config.lambda_a=5", "did you mean 'config.round_1.sample.lambda_a'?"),
        ("--config.reference.contents=a", "did you mean 'config.reference.content'?"),
        ("--config.round_1.select.scorers.clip_txt=1", "select.scorers.clip_text'?"),
        ("--noconfig.round_1.adapter.share", "did you mean 'config.round_1.adapter.shared'?"),
        ("--config.zzzz=1", "config.zzzz: unknown field"),
    ],
)
def test_unknown_fields_say_what_was_meant(override, hint):
    message = _error(override)
    assert hint in message
    with pytest.raises(UserError) as caught:
        config_files.read("styledrop", {override.split("config.")[1].split("=")[0]: 1})
    assert hint in str(caught.value), "the library says the same"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("round_1.train.steps=abc", "train.steps: found 'abc', expected a whole number"),
        ("round_1.train.steps=2.5", "found '2.5', expected a whole number"),
        ("round_1.train.steps=-1", "found -1, expected a whole number of at least 0"),
        ("round_1.train.steps=" + "9" * 5000, "expected a whole number"),
        ("seed=1" + "0" * 400, "config.seed: found 1000"),
        ("round_1.train.learning_rate=0", "expected a number above 0 and at most 1"),
        ("round_1.train.learning_rate=nan", "found nan"),
        ("round_1.train.random_crop=maybe", "config.round_1.train.random_crop: found 'maybe'"),
        ("reference.fit=pads", "reference.fit: found 'pads', expected one of auto, crop, pad"),
        ("round_1.select=3", "expected a dict"),
        ("round_1.select.by=promt", "threshold, human; did you mean 'prompt'?"),
        ("round_1.select.scorers={'clp_text': 1}", "clp_text: unknown; did you mean 'clip_text'?"),
        ("round_1.select.scorers={'clip_text': 0}", "every weight is 0"),
        ("base= ", "config.base: found ' ', expected text that is not empty"),
        ("seed", "Missing value"),
    ],
)  # fmt: skip
def test_bad_values_say_what_was_expected(override, words):
    message = _error(f"--config.{override}")
    assert words in message and len(message) < 300


def test_all_unknown_fields_come_at_once():
    message = _error("--config.sed=1", "--config.round_1.train.stpes=5")
    assert "config.sed:" in message and "config.round_1.train.stpes:" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workdir", "x"], "--config: missing"),
        (["--config", "--workdir"], "no value"),
        (["--config"], "no value"),
        (["--config", "styledorp"], "no such file or name 'styledorp'; did you mean 'styledrop'?"),
        (["--config", "configs/styledorp.py"], "did you mean 'styledrop'?"),
        (["--config", "x" * 5000], "no such file or name 'xxx"),
        (["--config", "\0"], "no such file or name '\\x00'"),
    ],
)
def test_a_config_that_is_not_there(argv, words):
    with pytest.raises(UserError) as caught:
        config_files.from_arguments(argv)
    assert words in str(caught.value)


# -------------------------------------------------------------- overrides of the library


def test_the_library_overrides_dotted_fields():
    changes = {
        "seed": 7,
        "round_1.train": {"steps": 3},
        "round_2.select.scorers.random": 0.5,
        "round_1.select.scorers": {"random": 1},
    }
    found = config_files.read("styledrop", changes)
    assert found.seed == 7
    assert found.round_settings[0].train.steps == 3
    assert found.round_settings[0].select.scorers == {"random": 1.0}
    assert found.round_settings[1].select.scorers["random"] == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "many"}, "config.seed: found 'many', expected a whole number"),
        ({"round_1": 3}, "config.round_1: found 3, expected the fields"),
        ({"round_1.train": None}, "config.round_1.train: found None, expected the fields"),
        ({"round_1.adapter": []}, "config.round_1.adapter: found []"),
        ({"round_1.select.scorers": 3}, "config.round_1.select.scorers: found 3"),
        ({"rounds.x": 3}, "config.rounds.x: unknown field"),
        ({"": 3}, "config.: unknown field"),
    ],
)
def test_overrides_of_the_library_that_cannot_be(changes, words):
    with pytest.raises(UserError) as caught:
        config_files.read("styledrop", changes)
    assert words in str(caught.value)


# -------------------------------------------------------------- configs of a user's own


def test_a_config_may_leave_out_everything(tmp_path):
    found = config_files.read(_own(tmp_path, "get_config = lambda: ConfigDict()"))
    assert found.method == "styledrop" and found.round_settings == (spec.RoundSettings(),)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("get_config = lambda: ConfigDict(", "line 2 failed: SyntaxError"),
        ("def get_config():\n    return 1 / 0", "line 3 failed: ZeroDivisionError"),
        ("import nowhere_at_all", "line 2 failed: ModuleNotFoundError"),
        ("config = ConfigDict()", "has no function get_config"),
        ("get_config = 3", "has no function get_config"),
        ("get_config = lambda: {'seed': 1}", "returned a dict, expected a ConfigDict"),
        ("def get_config():\n    raise ValueError('x' * 9999)", "ValueError: xxx"),
        ("get_config = lambda: ConfigDict({'method': 'styledorp'})", "did you mean 'styledrop'?"),
        ("get_config = lambda: ConfigDict({'method': 3})", "config.method: found 3"),
        ("get_config = lambda: ConfigDict({'round_1': 3})", "config.round_1: found 3"),
        ("get_config = lambda: ConfigDict({'reference': 3})", "config.reference: found 3"),
        ("get_config = lambda: ConfigDict({'seeds': 3})", "seeds: unknown field; did you mean"),
        ("get_config = lambda: ConfigDict({'round_1': {'adapter': {'kind': 'x'}}})", "found 'x'"),
        ("get_config = lambda: ConfigDict({'prior': {'weight': 1.0}})", "prior: unknown field"),
    ],
)  # fmt: skip
def test_a_config_that_is_wrong_says_where(tmp_path, code, words):
    path = _own(tmp_path, code)
    with pytest.raises(UserError) as caught:
        config_files.read(path)
    message = str(caught.value).replace(path, "mine.py")
    assert words in message and "\n" not in message and len(message) < 300
    assert words in _error(config=path)


def test_a_config_without_presets_is_told_apart(tmp_path):
    path = _own(tmp_path, "get_config = lambda: ConfigDict()")
    assert "has no presets, found 'large'" in _error(config=f"{path}:large")


def test_a_folder_is_no_config(tmp_path):
    assert "no such file or name" in _error(config=str(tmp_path))
    Path(tmp_path / "binary.py").write_bytes(b"\0\1\2")
    assert "binary.py" in _error(config=str(tmp_path / "binary.py"))
