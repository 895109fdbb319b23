"""Rounds: what feedback chooses, who chooses, and what the next round makes of it."""

import numpy as np
import pytest
import runs
import tiny

from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.feedback import scorers
from styledrop_jax.io import files as run_folder
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl, write_json


def test_round_2_trains_a_new_adapter_on_what_was_selected(tmp_path):
    workdir = runs.copy(tmp_path)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    chosen = [row["file"] for row in read_json(workdir / "round_1" / "selected.json")["selected"]]
    others = [row for row in rows if row["file"] not in chosen]
    write_json(workdir / "round_1" / "selected.json", {"selected": others})
    runs.forget(workdir, "report.html", "round_2")
    assert runs.run_until_death(workdir, 4)  # the manifest may stay as it is
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
    scorers = {"clip_text": 0.0, "clip_style": 0.0, "random": 0.0} | weights
    runs.back_to_selection(workdir, scorers=scorers)
    words = [
        word
        for name, value in scorers.items()
        for word in (f"--config.round_1.select.scorers.{name}", value)
    ]
    assert runs.run_until_death(workdir, 2, *words)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    for row in rows:
        assert row["score"] == pytest.approx(
            sum(weights[name] * row["scores"][name] for name in weights), abs=1e-6
        )
    best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == best


def test_random_feedback_looks_at_nothing_but_the_seed():
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    ids = [(row["prompt"], row["image"]) for row in rows]

    def chance(seed: int) -> list[float]:
        samples = scorers.Samples(
            images=None, prompts=[], ids=ids, references=None, clip=None, seed=seed
        )
        return list(scorers.SCORERS["random"](samples))

    assert [row["scores"]["random"] for row in rows] == chance(
        read_json(tiny.finished() / "config.json")["seed"]
    )
    assert chance(1) != chance(2)


def test_top_k_and_threshold(tmp_path, capfd):
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    ranked = sorted((row["score"] for row in rows), reverse=True)
    middle = (ranked[0] + ranked[1]) / 2
    for i, (settings, count) in enumerate(
        [({"by": "top_k", "k": 3}, 3), ({"by": "threshold", "threshold": middle}, 1)]
    ):
        workdir = runs.copy(tmp_path / str(i))
        assert runs.run_until_death(workdir, 2, *runs.back_to_selection(workdir, **settings))
        chosen = read_json(workdir / "round_1" / "selected.json")["selected"]
        assert sorted((row["score"] for row in chosen), reverse=True) == ranked[:count]
    workdir = runs.copy(tmp_path / "none")
    words = runs.back_to_selection(workdir, by="threshold", threshold=2.0)
    assert tiny.styledrop(*tiny.arguments(workdir, *words)) == 2
    assert "threshold: 2.0" in runs.one_line(capfd)
    assert not (workdir / "round_1" / "selected.json").exists()


def test_more_to_choose_than_is_drawn_is_found_before_anything_runs(tmp_path, capfd):
    for by, k, most in (("prompt", 3, 2), ("top_k", 5, 4)):
        words = ["--config.round_1.select.by", by, "--config.round_1.select.k", k]
        assert tiny.styledrop(*tiny.arguments(tmp_path / "run", *words)) == 2
        error = runs.one_line(capfd)
        assert f"config.round_1.select.k: found {k}, expected at most {most}" in error
    assert not (tmp_path / "run").exists()


def test_a_third_round_takes_the_settings_of_the_second(tmp_path):
    workdir = runs.copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"rounds": 3})
    runs.forget(workdir, "report.html")
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.rounds", 3)) == 0
    second, third = (load_adapter(workdir / f"round_{n}" / "adapter.safetensors") for n in (2, 3))
    assert third.config == second.config and third.round == 3
    assert not np.array_equal(
        *(next(iter(adapter.tensors.values())) for adapter in (second, third))
    )
    assert len(read_jsonl(workdir / "round_3" / "scores.jsonl")) == 4
    assert "Round 3" in (workdir / "report.html").read_text(encoding="utf-8")
    before = runs.results(tiny.finished())
    after = runs.results(workdir)
    assert all(
        after[name] == before[name]
        for name in before
        if name.startswith(("round_1", "round_2", "base"))
    )


def test_a_person_chooses(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    words = runs.back_to_selection(workdir, by="human")
    line = tiny.arguments(workdir, *words)
    feedback = workdir / "round_1" / "feedback"
    for _ in range(2):  # asking twice is not an answer
        assert tiny.styledrop(*line) == 0
        said = capfd.readouterr().out
        assert (
            str(feedback / "selected.json") in said and str(feedback / "contact_sheet.png") in said
        )
        assert image_files.read_image(feedback / "contact_sheet.png").size
        assert read_json(feedback / "selected.json")["selected"] == []
        assert (
            not (workdir / "round_1" / "selected.json").exists()
            and not (workdir / "round_2").exists()
        )

    wrong = (
        "not json",
        "[1]",
        "{}",
        '{"selected": null}',
        '{"selected": [5]}',
        '{"selected": [1, 1]}',
    )
    for text in wrong:
        (feedback / "selected.json").write_text(text, encoding="utf-8")
        assert tiny.styledrop(*line) == 2, text
        assert str(feedback / "selected.json") in runs.one_line(capfd)

    write_json(feedback / "selected.json", {"selected": [3, 2]})
    assert tiny.styledrop(*line) == 0
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == rows[1:3]
    assert read_json(workdir / "manifest.json")["rounds"]["round_2"]["images"] == 2
    assert (workdir / "report.html").exists()


def test_prompts_of_any_script(tmp_path, capfd):
    """From the pool through names, the contact sheet and the report; and one that is too long, with a warning."""
    prompts = ["赤い家", "قطة", "🐱", "🐶", "a cat " + "and a very long tail " * 4]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    words = [
        "--config.prompts",
        path,
        "--config.rounds",
        1,
        "--config.round_1.sample.images_per_prompt",
        1,
    ]
    line = tiny.arguments(tmp_path / "run", *words, "--config.round_1.select.by", "human")
    assert tiny.styledrop(*line) == 0
    assert "cut: " in capfd.readouterr().err
    answer = tmp_path / "run" / "round_1" / "feedback" / "selected.json"
    write_json(answer, {"selected": [2]})
    assert tiny.styledrop(*line) == 0
    (chosen,) = read_json(tmp_path / "run" / "round_1" / "selected.json")["selected"]
    assert chosen["content"] == "قطة"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(prompt.strip() in report for prompt in prompts)


def test_true_drawings_are_scored_beside_the_rounds(tmp_path, capfd):
    truth = tmp_path / "truth"
    tiny.picture(truth / "cat.png", seed=5)
    workdir = runs.copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"truth": str(truth)})
    runs.forget(workdir, "report.html")
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.truth", truth)) == 0
    (row,) = read_jsonl(workdir / "truth" / "scores.jsonl")
    assert row["content"] == "a cat" and set(row["scores"]) == {"clip_text", "clip_style", "random"}
    assert "True drawing" in (workdir / "report.html").read_text(encoding="utf-8")


def test_two_processes_do_not_share_a_run(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    with run_folder.Run.open(workdir, read_json(workdir / "config.json")):
        assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    assert "another process" in runs.one_line(capfd)
