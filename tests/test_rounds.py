"""Rounds: what feedback chooses, who chooses, and what the next round makes of it."""

import functools
import json
import math

import numpy as np
import pytest
import runs
import tiny

from styledrop_jax import rounds
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.feedback import describe
from styledrop_jax.feedback.verdict import Verdict, worth
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl, write_json
from styledrop_jax.io.run_folder import Run
from styledrop_jax.registry import SCORERS
from styledrop_jax.spec import from_config
from styledrop_jax.stages import begin, judge, steps
from styledrop_jax.style import Style


def test_round_2_trains_a_new_adapter_on_what_was_selected(tmp_path):
    workdir = runs.copy(tmp_path)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    chosen = [row["file"] for row in read_json(workdir / "round_1" / "selected.json")["selected"]]
    others = [row for row in rows if row["file"] not in chosen]
    write_json(workdir / "round_1" / "selected.json", {"selected": others})
    runs.forget(workdir, "report.html", "round_2")
    runs.train_until_death(workdir, 1)  # the manifest may stay as it is
    first, second = (read_jsonl(folder / "metrics.jsonl") for folder in (tiny.finished(), workdir))
    assert first[:2] == second[:2]
    assert first[2]["loss"] != second[2]["loss"]
    shapes = [load_adapter(tiny.finished() / f"round_{n}" / "adapter.safetensors") for n in (1, 2)]
    assert [adapter.config["denoiser"]["shared"] for adapter in shapes] == [True, False]


@pytest.mark.parametrize(
    "weights",
    [
        {"clip_text": 0.0, "random": 1.0},
        {"clip_text": 1.0, "clip_style": -2.0},
        {"clip_text": 0.0, "clip_style": 1.0},
    ],
)
def test_scorers_decide_by_their_weighted_sum(tmp_path, weights):
    workdir = runs.copy(tmp_path)
    whole = dict.fromkeys(SCORERS, 0.0) | weights
    runs.back_to_selection(workdir, scorers=whole)
    words = runs.flags(**{f"round_1__select__scorers__{name}": w for name, w in whole.items()})
    assert runs.run_until_death(workdir, 2, *words)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    for row in rows:
        total = sum(weight * row["scores"][name] for name, weight in weights.items())
        assert row["score"] == pytest.approx(total, abs=1e-6)
    best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == best


def test_later_rounds_train_on_the_users_own_images_too(tmp_path):
    assert rounds._repeated(["own"], 10, 0.0) == []
    assert rounds._repeated(["own"], 10, 0.5) == ["own"] * 10
    assert rounds._repeated(["one", "two"], 6, 0.25) == ["one", "two"]
    assert len(rounds._repeated(["own"], 30, 0.01)) == 1  # never none of them
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html", "verdict.json", "round_2")
    config = read_json(workdir / "config.json")
    config["round_2"]["own_share"] = 0.5
    write_json(workdir / "config.json", config)
    assert tiny.styledrop(*tiny.arguments(workdir, *runs.flags(round_2__own_share=0.5))) == 0
    assert read_json(workdir / "manifest.json")["rounds"]["round_2"]["images"] == 4


def test_commands_take_the_round_that_the_verdict_calls_the_best(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    found = read_json(workdir / "verdict.json")
    assert set(found["scores"]) == {"base", "round_1", "round_2"}
    for best in (1, 2):
        write_json(workdir / "verdict.json", found | {"round": best})
        assert Style.load(workdir).number == best
        assert f"round {best} of 2, the best by the run's verdict" in capfd.readouterr().out
    assert Style.load(workdir, round=1).number == 1
    for wrong in ([], {"round": 1}, found | {"scores": {}}, found | {"round": "x"}):
        write_json(workdir / "verdict.json", wrong)
        error = runs.refused(capfd, "sample", "--run", workdir, "--prompt", "a cat")
        assert f"{workdir / 'verdict.json'}: not as `personalize` leaves it" in error


def test_more_steps_are_advised_where_the_last_state_was_the_best(tmp_path):
    run = Run.load(runs.copy(tmp_path))
    spec = from_config(run.config)
    advice = {
        "more steps": Verdict(round=1, learnt="learnt in part", advice=["words"]),
        "fewer steps": Verdict(round=1, learnt="learnt in part", advice=["less"]),
    }
    for expected, verdict in advice.items():
        commands = judge.commands(run, spec, verdict)
        (why,) = [one.why for one in commands if "steps" in one.why]
        assert why.startswith(expected) and "at its best" not in why, "no states were compared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "read_best", lambda *_: spec.round(1).train.steps)
        commands = judge.commands(run, spec, advice["more steps"])
    assert [one.why for one in commands][-1] == "more steps: round 1 was at its best when it ended"
    assert not judge.commands(run, spec, Verdict(round=1, learnt="learnt well"))


def test_other_words_than_those_that_are_found_are_advised_where_the_run_has_these(tmp_path):
    run = Run.load(runs.copy(tmp_path))
    spec = from_config(run.config)
    verdict = Verdict(round=1, learnt="learnt well", advice=["words"])
    (command,) = judge.commands(run, spec, verdict)
    assert command.line.startswith("styledrop describe --image")
    (reference,) = run.references
    image = image_files.read_image(run.path(reference["file"]))
    found = describe.phrases(image)["{ink} linocut on {ground} paper"][-1]
    run.update_manifest({"references": [reference | {"descriptor": found}]})
    (command,) = judge.commands(run, spec, verdict)
    assert "words of your own" in command.why and "--config.reference.descriptor" in command.line


def test_the_best_of_the_states_that_a_round_kept_goes_on(tmp_path):
    """And a run that dies in between ends with the same bits."""
    words = runs.flags(round_1__keep=2, rounds=1)
    whole = tmp_path / "whole"
    assert tiny.styledrop(*tiny.arguments(whole, *words)) == 0
    folder = whole / "round_1/steps"
    kept = sorted(path.stem for path in folder.glob("*.safetensors"))
    assert kept == ["000002", "000004"]
    best = read_json(folder / "best.json")["step"]
    adapter = (whole / "round_1/adapter.safetensors").read_bytes()
    assert adapter == (folder / f"{best:06d}.safetensors").read_bytes()
    assert "Round 1: while it trained" in (whole / "report.html").read_text(encoding="utf-8")
    worths = {}
    for step in kept:
        rows = read_jsonl(folder / step / "scores.jsonl")
        assert [row["seed"] for row in rows] == [
            row["seed"] for row in read_jsonl(folder / kept[0] / "scores.jsonl")
        ]
        worths[int(step)] = np.mean([worth(row["scores"]) for row in rows])
    assert worths[best] == max(worths.values())
    assert Style.load(whole, step=2).adapter == folder / "000002.safetensors"
    with pytest.raises(UserError, match="step: found 3, steps that round 1 of .* kept: 2, 4"):
        Style.load(whole, step=3)
    died = tmp_path / "died"
    count = 3
    while runs.run_until_death(died, count, *words):
        count += 4
    assert runs.results(died) == runs.results(whole)


def test_a_later_round_holds_the_style_of_the_first():
    weak = {"clip_style": 0.4, "clip_content": 0.3}
    strong = {"clip_style": 0.6, "clip_content": 0.2}
    assert steps._most({2: weak, 4: strong}, -math.inf) == 2
    assert steps._most({2: weak, 4: strong}, 0.5) == 4
    assert steps._most({2: weak, 4: strong}, 0.7) == 2, "none holds it"
    assert steps._most({2: weak, 4: weak}, 0.4) == 4


def test_samples_that_are_chosen_from_alone_are_guided_on_their_own(tmp_path):
    """And a run that dies in between ends with the same bits."""
    words = runs.flags(round_1__select__images_per_prompt=3, round_1__select__lambda_a=1e4)
    whole = tmp_path / "whole"
    assert tiny.styledrop(*tiny.arguments(whole, *words)) == 0
    own = read_jsonl(whole / "round_1/scores.jsonl")
    candidates = read_jsonl(whole / "round_1/candidates/scores.jsonl")
    assert (len(own), len(candidates)) == (4, 6)
    chosen = read_json(whole / "round_1/selected.json")["selected"]
    assert all(row["file"].startswith("candidates/samples/") for row in chosen)
    assert not (whole / "round_2/candidates").exists(), "no round learns from them"
    by_seed = {row["seed"]: whole / "round_1/candidates" / row["file"] for row in candidates}
    assert any(
        by_seed[row["seed"]].read_bytes() != (whole / "round_1" / row["file"]).read_bytes()
        for row in own
    )
    report = (whole / "report.html").read_text(encoding="utf-8")
    assert "chosen for round 2" in report
    died = tmp_path / "died"
    count = 3
    while runs.run_until_death(died, count, *words):
        count += 5
    assert runs.results(died) == runs.results(whole)


def test_top_k_and_threshold(tmp_path, capfd):
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    ranked = sorted((row["score"] for row in rows), reverse=True)
    middle = (ranked[0] + ranked[1]) / 2
    for settings, count in (
        ({"by": "top_k", "k": 3}, 3),
        ({"by": "top_k", "k": 100}, 4),
        ({"by": "threshold", "threshold": middle}, 1),
    ):
        workdir = runs.copy(tmp_path / f"{settings['by']}_{count}")
        assert runs.run_until_death(workdir, 2, *runs.back_to_selection(workdir, **settings))
        chosen = read_json(workdir / "round_1" / "selected.json")["selected"]
        assert sorted((row["score"] for row in chosen), reverse=True) == ranked[:count]
    workdir = runs.copy(tmp_path / "none")
    words = runs.back_to_selection(workdir, by="threshold", threshold=2.0)
    assert "threshold: 2.0" in runs.refused(capfd, *tiny.arguments(workdir, *words))
    assert not (workdir / "round_1" / "selected.json").exists()


def test_more_to_choose_than_is_sampled_is_found_before_anything_runs(tmp_path, capfd):
    words = runs.flags(round_1__select__k=3)
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", *words))
    assert "config.round_1.select.k: found 3, expected at most 2" in error
    assert not (tmp_path / "run").exists()


def test_prompts_of_a_round_of_its_own(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("a dog\n", encoding="utf-8")
    workdir = tmp_path / "run"
    words = runs.flags(round_2__prompts=path)
    assert tiny.styledrop(*tiny.arguments(workdir, *words)) == 0
    contents = {}
    for stage in ("base", "round_1", "round_2"):
        rows = read_jsonl(workdir / stage / "scores.jsonl")
        contents[stage] = [row["content"] for row in rows]
    assert contents["base"] == list(tiny.PROMPTS)
    assert contents["round_1"] == [tiny.PROMPTS[0]] * 2 + [tiny.PROMPTS[1]] * 2
    assert contents["round_2"] == ["a dog"] * 2


def test_a_person_chooses(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    line = tiny.arguments(workdir, *runs.back_to_selection(workdir, by="human"))
    feedback = workdir / "round_1" / "feedback"
    for _ in range(2):  # asking twice is not an answer
        assert tiny.styledrop(*line) == 0
        said = capfd.readouterr().out
        assert str(feedback / "selected.json") in said
        assert str(feedback / "contact_sheet.png") in said
        assert image_files.read_image(feedback / "contact_sheet.png").size
        assert read_json(feedback / "selected.json")["selected"] == []
        assert not (workdir / "round_1" / "selected.json").exists()
        assert not (workdir / "round_2").exists()

    for text in ("not json", "[1]", "{}", '{"selected": null}', '{"selected": [5]}'):
        (feedback / "selected.json").write_text(text, encoding="utf-8")
        assert str(feedback / "selected.json") in runs.refused(capfd, *line), text

    write_json(feedback / "selected.json", {"selected": [3, 2]})
    assert tiny.styledrop(*line) == 0
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == rows[1:3]
    assert read_json(workdir / "manifest.json")["rounds"]["round_2"]["images"] == 2
    assert (workdir / "report.html").exists()


def test_prompts_of_any_script(tmp_path, caplog):
    """From the pool through names, the contact sheet and the report; and one that is too long."""
    prompts = ["赤い家", "قطة", "🐱", "🐶", "a cat " + "and a very long tail " * 4]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    words = runs.flags(prompts=path, rounds=1, round_1__sample__images_per_prompt=1)
    line = tiny.arguments(tmp_path / "run", *words, *runs.flags(round_1__select__by="human"))
    assert tiny.styledrop(*line) == 0
    assert "cut: " in caplog.text
    answer = tmp_path / "run" / "round_1" / "feedback" / "selected.json"
    write_json(answer, {"selected": [2]})
    assert tiny.styledrop(*line) == 0
    (chosen,) = read_json(tmp_path / "run" / "round_1" / "selected.json")["selected"]
    assert chosen["content"] == "قطة"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(prompt.strip() in report for prompt in prompts)


def test_true_images_are_scored_beside_the_rounds(tmp_path, capfd):
    truth = tmp_path / "truth"
    tiny.picture(truth / "cat.png", seed=5)
    workdir = runs.copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"truth": str(truth)})
    runs.forget(workdir, "report.html")
    assert tiny.styledrop(*tiny.arguments(workdir, *runs.flags(truth=truth))) == 0
    (row,) = read_jsonl(workdir / "truth" / "scores.jsonl")
    assert row["content"] == "a cat" and set(row["scores"]) == set(SCORERS)

    (truth / "cat.png").rename(truth / "dog.png")
    write_json(workdir / "config.json", config | {"truth": str(truth)})
    runs.forget(workdir, "report.html", "truth")
    error = runs.refused(capfd, *tiny.arguments(workdir, *runs.flags(truth=truth)))
    assert f"config.truth: no image of a prompt in {truth}" in error


def test_two_processes_do_not_share_a_run(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    with Run.open(workdir, read_json(workdir / "config.json")):
        assert "another process" in runs.refused(capfd, *tiny.arguments(workdir))


# -------------------------------------------------------------- records of someone else's


BAD_ROWS = [
    ("[1]", "expected a sample with prompt"),
    ("3", "expected a sample with prompt"),
    ("null", "expected a sample with prompt"),
    ("[" * 900 + "]" * 900, "expected a sample with prompt"),
    ('{"prompt": 0, "image": 0, "seed": 1}', "not a whole record"),
    ('{"more": 1}', "expected a sample with prompt"),
]
BAD_FIELDS = [
    ("file", "../../secret.png", "is not in the run folder"),
    ("file", "/etc/passwd", "is not in the run folder"),
    ("file", "samples/../../x.png", "is not in the run folder"),
    ("file", "a\0b", "is not in the run folder"),
    ("file", 3, "file is 3, expected text"),
    ("file", ["x"], "file is ['x'], expected text"),
    ("source", "../x", "is not in the run folder"),
    ("content", {"a": 1}, "content is {'a': 1}, expected text"),
    ("text", None, "text is None, expected text"),
    ("prompt", -1, "prompt is -1, expected a whole number"),
    ("image", "0", "image is '0', expected a whole number"),
    ("seed", True, "seed is True, expected a whole number"),
    ("scores", [1], "scores are [1], expected numbers by name"),
    ("scores", {"clip_text": "high"}, "expected numbers by name"),
    ("score", "high", "expected numbers by name"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["scores.jsonl", "selected.json"])
def test_records_that_cannot_be_are_one_line(tmp_path, capfd, monkeypatch, name):
    loaded = functools.cache(begin.load_pipeline)  # once for all of them
    monkeypatch.setattr(begin, "load_pipeline", loaded)
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html")
    path = workdir / "round_1" / name
    row = read_jsonl(workdir / "round_1" / "scores.jsonl")[0]
    texts = list(BAD_ROWS)
    for field, value, words in BAD_FIELDS:
        texts.append((json.dumps(row | {field: value}), words))
    for text, words in texts:
        whole = f"{text}\n{text}\n" if name == "scores.jsonl" else f'{{"selected": [{text}]}}'
        path.write_text(whole, encoding="utf-8")
        error = runs.refused(capfd, *tiny.arguments(workdir))
        assert str(path) in error and words in error and len(error) < 400, text
    if name == "selected.json":
        for text in ("[]", "3", '{"selected": 3}', "{}", "[" * 200_000):
            path.write_text(text, encoding="utf-8")
            error = runs.refused(capfd, *tiny.arguments(workdir))
            assert str(path) in error and "expected" in error
