"""`styledrop extend`: a finished run goes on, and what was there stays."""

import numpy as np
import pytest
import runs
import tiny

from styledrop_jax import rounds
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io.files import read_json, read_jsonl, write_json


def _kept(workdir):
    """What the first two rounds left is as it was."""
    before = runs.results(tiny.finished())
    after = runs.results(workdir)
    for name, content in before.items():
        if name.startswith(("round_1", "round_2", "base")):
            assert after[name] == content, name


def _adapters(workdir, *numbers):
    return [load_adapter(workdir / f"round_{n}" / "adapter.safetensors") for n in numbers]


def test_a_run_goes_on_for_more_rounds_like_its_last(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    assert tiny.styledrop("extend", "--run", workdir, "--rounds", 1) == 0
    assert f"report: {workdir / 'report.html'}" in capfd.readouterr().out
    second, third = _adapters(workdir, 2, 3)
    assert third.config == second.config and third.round == 3
    assert any((third.tensors[name] != second.tensors[name]).any() for name in second.tensors)
    assert len(read_jsonl(workdir / "round_3" / "scores.jsonl")) == 4
    config = read_json(workdir / "config.json")
    assert config["rounds"] == 3 and config["round_3"] == config["round_2"]
    manifest = read_json(workdir / "manifest.json")
    assert manifest["changes"] == {"3 rounds": {"rounds": 1, "steps": 0, "prompts": ""}}
    assert manifest["rounds"]["round_3"]["images"] == 2, "those that were chosen in round 2"
    assert "Round 3" in (workdir / "report.html").read_text(encoding="utf-8")
    _kept(workdir)

    same = tiny.arguments(workdir, *runs.flags(rounds=3))
    assert tiny.styledrop(*same) == 0, "the command that says so finds it finished"
    assert "is finished" in capfd.readouterr().out
    refusal = runs.refused(capfd, *tiny.arguments(workdir))
    assert "expected what `styledrop extend` made of it (--config FOLDER)" in refusal
    assert "rounds was 3, now 2" in refusal


def test_three_rounds_at_once_are_what_two_and_one_more_are(tmp_path):
    extended = runs.copy(tmp_path)
    assert tiny.styledrop("extend", "--run", extended, "--rounds", 1) == 0
    whole = tmp_path / "whole"
    assert tiny.styledrop(*tiny.arguments(whole, *runs.flags(rounds=3))) == 0
    found = runs.results(extended)
    for name, content in runs.results(whole).items():
        if name.startswith("round_3"):
            assert found[name] == content, name


def test_a_round_that_was_left_out_is_what_two_rounds_at_once_have(tmp_path, capfd):
    """By the settings of its own, and chosen from samples for that alone, if it is."""
    words = runs.flags(round_2__left_out="it is coarser", round_1__select__images_per_prompt=3)
    whole = tmp_path / "whole"
    assert tiny.styledrop(*tiny.arguments(whole, *words)) == 0
    assert "it stops" not in capfd.readouterr().out
    workdir = tmp_path / "run"
    assert tiny.styledrop(*tiny.arguments(workdir, *words, *runs.flags(rounds=1))) == 0
    said = capfd.readouterr().out
    line = f"styledrop extend --run {workdir} --rounds 1"
    other = runs.flags(rounds=1, round_2__train__steps=77)
    assert tiny.styledrop(*tiny.arguments(workdir, *words, *other)) == 2, "not done as it is"
    assert "round_2.train.steps was 4, now 77" in capfd.readouterr().err
    assert "verdict: it stops after round 1: it is coarser\n" in said and line in said
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "It stops after round 1: it is coarser." in report and line in report

    assert tiny.styledrop(*line.split()[1:]) == 0
    assert "it stops" not in capfd.readouterr().out
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert f"# all of it: styledrop personalize --config {workdir} " in report
    found, expected = runs.results(workdir), runs.results(whole)
    assert found.pop("manifest.json")["rounds"] == expected.pop("manifest.json")["rounds"]
    assert found == expected
    assert tiny.styledrop(*line.split()[1:]) == 0, "and the next ones are like it"
    config = read_json(workdir / "config.json")
    assert config["round_3"]["adapter"] == config["round_2"]["adapter"]


def test_a_round_that_was_left_out_stays_behind_more_steps(tmp_path):
    workdir = tmp_path / "run"
    assert tiny.styledrop(*tiny.arguments(workdir, *runs.flags(rounds=1))) == 0
    before = read_json(workdir / "config.json")
    assert tiny.styledrop("extend", "--run", workdir, "--steps", 1) == 0
    config = read_json(workdir / "config.json")
    assert config["rounds"] == 2 and config["round_2"]["start"] == "last"
    assert config["round_3"] == before["round_2"] != before["round_1"]


def test_training_goes_on_for_more_steps_on_the_same_images(tmp_path):
    workdir = runs.copy(tmp_path)
    assert tiny.styledrop("extend", "--run", workdir, "--steps", 2) == 0
    second, third = _adapters(workdir, 2, 3)
    assert third.config == second.config
    moved = [np.abs(third.tensors[name] - second.tensors[name]).max() for name in second.tensors]
    assert 0 < max(moved) < 0.01, "a step or two from where the last adapter was"
    rows = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "round_3"]
    assert [row["step"] for row in rows] == [2]
    config = read_json(workdir / "config.json")["round_3"]
    assert (config["start"], config["images"], config["train"]["steps"]) == ("last", "same", 2)
    _kept(workdir)


def test_other_prompts_are_sampled_by_the_last_adapter(tmp_path, monkeypatch):
    workdir = runs.copy(tmp_path)
    (tmp_path / "other.txt").write_text("a dog\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert tiny.styledrop("extend", "--run", workdir, "--prompts", "other.txt") == 0
    second, third = _adapters(workdir, 2, 3)
    for name, tensor in second.tensors.items():
        np.testing.assert_array_equal(third.tensors[name], tensor)
    rows = read_jsonl(workdir / "round_3" / "scores.jsonl")
    assert [row["content"] for row in rows] == ["a dog", "a dog"]
    config = read_json(workdir / "config.json")
    assert config["round_3"]["prompts"] == str(tmp_path / "other.txt")
    assert config["prompts"] == str(tiny.prompt_file())
    _kept(workdir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "train_round", _stop_at(4))
        with pytest.raises(runs.Death):
            tiny.styledrop("extend", "--run", workdir, "--rounds", 1)
    config = read_json(workdir / "config.json")
    assert config["round_4"] == config["round_2"], "like the last one that was a whole round"


def _stop_at(number):
    train = rounds.train_round

    def call(job, at, streams):
        if at == number:
            raise runs.Death
        train(job, at, streams)

    return call


def test_a_base_model_that_has_moved_does_not_stop_an_extension(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"base": str(tmp_path / "was" / "here")})
    line = ["extend", "--run", workdir, "--steps", 1]
    assert "was/here" in runs.refused(capfd, *line)
    assert tiny.styledrop(*line, "--base", tiny.models() / "muse") == 0
    assert read_json(workdir / "config.json")["rounds"] == 3
    assert tiny.styledrop(*line, "--base", tiny.models() / "muse") == 0
    assert read_json(workdir / "config.json")["rounds"] == 4, "the same again is another one"


def test_an_extension_that_was_stopped_goes_on_by_the_same_command(tmp_path, capfd):
    whole = runs.copy(tmp_path / "whole")
    words = ["--rounds", 1, "--steps", 2]
    assert tiny.styledrop("extend", "--run", whole, *words) == 0

    workdir = runs.copy(tmp_path)
    line = ["extend", "--run", workdir, *words]
    deaths = 0
    while runs.command_until_death(workdir, (1, 2, 7)[deaths % 3], *line):
        deaths += 1
        assert deaths < 40
        if deaths > 4 and (workdir / "report.html").exists():
            break  # it died after its last file: the run is whole
        if deaths == 3:
            other = ["extend", "--run", workdir, "--rounds", 2]
            assert "this run is not finished" in runs.refused(capfd, *other)
    assert deaths > 4
    found = runs.results(workdir)
    expected = runs.results(whole)
    assert found.pop("manifest.json")["rounds"] == expected.pop("manifest.json")["rounds"]
    assert found == expected
    changes = read_json(workdir / "manifest.json")["changes"]
    assert changes == {"4 rounds": {"rounds": 1, "steps": 2, "prompts": ""}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to add; expected --rounds, --steps or --prompts"),
        (["--rounds", -1], "--rounds: found -1"),
        (["--steps", -1], "--steps: found -1"),
        (["--rounds", 1000], "--rounds is 1000, expected at most 100"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_an_extension_that_cannot_be_leaves_the_run_as_it_is(tmp_path, capfd, words, message):
    workdir = runs.copy(tmp_path)
    before = runs.results(workdir)
    assert message in runs.refused(capfd, "extend", "--run", workdir, *words)
    assert runs.results(workdir) == before and (workdir / "report.html").exists()


def test_only_a_finished_run_is_extended(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html")
    error = runs.refused(capfd, "extend", "--run", workdir, "--rounds", 1)
    assert "this run is not finished; the command that began it continues it" in error
    assert "no such run folder" in runs.refused(
        capfd, "extend", "--run", tmp_path / "x", "--rounds", 1
    )
