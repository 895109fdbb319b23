import fcntl
import json
import os
import re
import subprocess
import sys

import pytest

from styledrop_jax import runs
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_json

CONFIG = {
    "base": "emoji128",
    "method": "styledrop",
    "rounds": 3,
    "round_1": {"train": {"steps": 100}},
    "round_2": {"train": {"steps": 250}},
}
DONE = (
    "manifest.json",
    "base/scores.jsonl",
    "round_1/adapter.safetensors",
    "round_1/scores.jsonl",
    "round_1/selected.json",
    "round_2/adapter.safetensors",
    "round_2/scores.jsonl",
    "round_2/selected.json",
    "round_3/adapter.safetensors",
    "round_3/scores.jsonl",
    "round_3/selected.json",
    "report.html",
)
ONE = DONE[:5]
TWO = DONE[:8]


def _touch(workdir, *names):
    for name in names:
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _run(workdir, *names, **changes):
    """A run folder in which the final files `names` of stages are there."""
    write_json(workdir / "config.json", {**CONFIG, **changes})
    _touch(workdir, ".lock", *names)
    return workdir


def _lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _names(folder):
    return [summary.name for summary in runs.list_runs(folder)]


def _times(folder):
    times = {}
    for path in folder.rglob("*"):
        times[path] = path.stat().st_mtime_ns
    return times


def _state(folder):
    (summary,) = runs.list_runs(folder)
    return summary.state


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (DONE[:0], "stopped, before the first stage"),
        (DONE[:1], "stopped, base model: sampling"),
        (DONE[:2], "stopped, round 1: training, step 0 of 100"),
        (DONE[:3], "stopped, round 1: sampling"),
        (DONE[:4], "stopped, round 1: selecting"),
        (ONE, "stopped, round 2: training, step 0 of 250"),
        (TWO, "stopped, round 3: training, step 0 of 250"),
        (DONE[:11], "stopped, writing the report"),
        (DONE, "finished"),
    ],
)
def test_the_state_is_the_first_stage_whose_final_file_is_not_there(tmp_path, names, state):
    _run(tmp_path / "mine", *names)
    assert _state(tmp_path) == state


def test_training_stands_at_the_last_recorded_step_of_its_round(tmp_path):
    workdir = _run(tmp_path / "mine", *ONE)
    rows = [{"stage": "round_1", "step": 100, "loss": 1.0}]
    for step in (60, 120):
        rows.append({"stage": "round_2", "step": step, "loss": None})
    _lines(workdir / "metrics.jsonl", *rows)
    assert _state(tmp_path) == "stopped, round 2: training, step 120 of 250"
    (workdir / "round_2" / "steps").mkdir(parents=True)
    assert _state(tmp_path) == "stopped, round 2: training, step 120 of 250"
    _lines(workdir / "metrics.jsonl", {"stage": "round_2", "step": 250})
    assert _state(tmp_path) == "stopped, round 2: comparing the states that it kept"
    _lines(workdir / "metrics.jsonl", *rows)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "round_2", "st')  # torn by death
    assert _state(tmp_path) == "stopped, round 2: training, step 120 of 250"


def test_a_run_waits_for_a_person_until_there_is_an_answer(tmp_path):
    workdir = _run(tmp_path / "mine", *ONE[:4])
    answer = workdir / "round_1" / "feedback" / "selected.json"
    write_json(answer, {"how": "…", "selected": []})
    assert _state(tmp_path) == "waits for your choice in round 1"
    write_json(answer, {"how": "…", "selected": [3]})
    assert _state(tmp_path) == "stopped, round 1: selecting"


def test_a_run_is_running_while_a_live_process_holds_its_lock(tmp_path):
    workdir = _run(tmp_path / "mine", *ONE)
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a+b')\n"
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(workdir / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        assert _state(tmp_path) == "running now, round 2: training, step 0 of 250"
        process.kill()
    assert _state(tmp_path) == "stopped, round 2: training, step 0 of 250"


def test_looking_leaves_the_lock_free_and_the_folder_as_it_was(tmp_path):
    workdir = _run(tmp_path / "mine", *ONE)
    before = _times(workdir)
    runs.list_runs(tmp_path)
    assert _times(workdir) == before
    with (workdir / ".lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_scores_are_the_means_of_the_last_scored_round(tmp_path):
    workdir = _run(tmp_path / "mine", *ONE)
    _lines(workdir / "round_1/scores.jsonl", {"scores": {"clip_text": 0.9, "clip_style": 0.9}})
    _lines(
        workdir / "round_2/scores.jsonl",
        {"scores": {"clip_text": 0.2, "clip_style": 0.5, "random": 0.1}},
        {"scores": {"clip_text": 0.3, "clip_style": 0.7, "random": 0.1}},
    )
    (summary,) = runs.list_runs(tmp_path)
    assert summary.clip_text == pytest.approx(0.25)
    assert summary.clip_style == pytest.approx(0.6)
    write_json(workdir / "verdict.json", {"round": 1})
    (summary,) = runs.list_runs(tmp_path)
    assert summary.clip_style == 0.9, "of the round that is taken"
    write_json(workdir / "verdict.json", {"round": "first"})
    (summary,) = runs.list_runs(tmp_path)
    assert summary.state.startswith("damaged: verdict.json: round is")


def test_merged_loras_are_a_part_of_the_base(tmp_path):
    _run(tmp_path / "mine", base_loras="/a/path/lines.safetensors:0.8,ink.safetensors")
    (summary,) = runs.list_runs(tmp_path)
    assert summary.base == "emoji128 with lines.safetensors:0.8, ink.safetensors"
    _run(tmp_path / "mine", base_loras=3)
    (summary,) = runs.list_runs(tmp_path)
    assert summary.state == "damaged: config.json: base_loras is 3, expected str"


def test_a_run_with_a_link_out_of_its_folder_is_damaged(tmp_path):
    write_json(tmp_path / "secret.json", {"method": "secret", "base": "secret"})
    workdir = _run(tmp_path / "mine")
    (workdir / "config.json").unlink()
    os.symlink(tmp_path / "secret.json", workdir / "config.json")
    (summary,) = runs.list_runs(tmp_path)
    assert summary.state.startswith("damaged: config.json: a link out of the run folder")
    assert summary.method == ""


def test_size_and_last_change_are_of_all_files(tmp_path):
    workdir = _run(tmp_path / "mine")
    os.utime(workdir, (0, 0))
    os.utime(workdir / ".lock", (0, 0))
    os.utime(workdir / "config.json", (0, 0))
    config = (workdir / "config.json").stat().st_size
    image = workdir / "round_1" / "samples" / "p000_i000.png"
    _touch(workdir, str(image))
    image.write_bytes(b"12345")
    os.symlink("nowhere", workdir / "broken")
    os.utime(image, (0, 2_000_000_000))
    (summary,) = runs.list_runs(tmp_path)
    assert summary.size == config + 5 + len("nowhere")
    assert summary.changed == 2_000_000_000


def test_runs_are_found_at_every_depth_the_last_changed_first_and_nothing_else_is(tmp_path):
    for name, seconds in (("old", 1e9), ("group/deep", 3e9), ("new", 2e9)):
        workdir = _run(tmp_path / name)
        for path in (workdir, *workdir.iterdir()):
            os.utime(path, (0, seconds))
    _run(tmp_path / "old" / "inside")
    os.utime(tmp_path / "old", (0, 1e9))
    _run(tmp_path / ".hidden" / "run")
    write_json(tmp_path / "model" / "config.json", {"hidden_size": 16})
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "new", tmp_path / "link")
    assert _names(tmp_path) == ["group/deep", "new", "old"]


def test_a_folder_that_is_itself_a_run_is_listed(tmp_path):
    _run(tmp_path / "mine")
    assert _names(tmp_path / "mine") == ["mine"]


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(UserError, match="nothing: no such folder"):
        runs.list_runs(tmp_path / "nothing")
    assert runs.list_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json: expected JSON"),
        ("config.json", "[1, 2]", "config.json: method is None, expected str"),
        ("config.json", "[" * 100_000, ""),
        ("config.json", '{"method": "styledrop"}', "config.json: base is None"),
        ("config.json", '{"method": "a\\nb", "base": 3}', "config.json: base is 3, expected str"),
        ("config.json", json.dumps({**CONFIG, "rounds": "3"}), "config.json: rounds is '3'"),
        ("config.json", json.dumps({**CONFIG, "round_2": 1}), "config.json: train.steps is None"),
        ("metrics.jsonl", "3\n", "metrics.jsonl: line 1 is 3"),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl: line 1 is not JSON"),
        ("round_1/scores.jsonl", "[1]\n", "round_1/scores.jsonl: expected a sample"),
        ("round_1/scores.jsonl", '{"scores": 1}\n', "round_1/scores.jsonl: expected a sample"),
    ],
)
def test_a_damaged_run_says_so_in_one_line_and_the_others_are_listed(tmp_path, name, content, said):
    _run(tmp_path / "good", *DONE)
    path = _run(tmp_path / "bad", *ONE) / name
    path.write_text(content)
    good, bad = sorted(runs.list_runs(tmp_path), key=lambda summary: summary.name == "bad")
    assert good.state == "finished"
    assert bad.state.startswith(f"damaged: {said}")
    assert "\n" not in bad.state and len(bad.state) < 200


def test_a_config_of_a_hundred_thousand_million_rounds_is_no_work(tmp_path):
    _run(tmp_path / "mine", *ONE, rounds=10**11)
    assert _state(tmp_path) == "stopped, round 2: training, step 0 of 250"


def test_the_table_has_a_line_for_each_run(tmp_path):
    workdir = _run(tmp_path / "mine", *TWO)
    _lines(workdir / "round_1/scores.jsonl", {"scores": {"clip_text": 0.25, "clip_style": 0.5}})
    _run(tmp_path / "a [red]name\n\x1b[2J", base="/a/path/" + "long/" * 50)
    heading, other, mine = runs.table(runs.list_runs(tmp_path)).split("\n")
    assert heading.split() == [*runs._HEADINGS[:-1], "last", "change"]
    for cell in ("styledrop", "emoji128", "stopped, round 3: training, step 0 of 250", " B "):
        assert cell in mine
    assert "a [red]name??[2J" in other and "long/" * 50 in other and "–" in other


def test_on_a_terminal_the_table_is_no_wider(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    _run(tmp_path / ("a_long_name_" * 9), *TWO)
    text = re.sub(r"\x1b\[[0-9;]*m", "", runs.table(runs.list_runs(tmp_path)))
    lines = text.split("\n")
    assert "─" in text and "…" not in text and max(map(len, lines)) <= 70


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.25e9, "2.2 GB"), (3e12, "3.0 TB")],
)
def test_sizes_are_short(size, shown):
    assert runs._size(size) == shown


def test_listing_runs_does_not_load_jax():
    code = "import sys, styledrop_jax.runs; print('jax' in sys.modules, 'flax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.split() == [b"False", b"False"]


def test_what_trains_is_said_beside_the_method_where_it_has_another_name(tmp_path):
    for kind in ("styledrop", "lora"):
        round_1 = {"adapter": {"kind": kind}, "train": {"steps": 100}}
        _run(tmp_path / kind, *DONE, round_1=round_1)
    found = {summary.name: summary.method for summary in runs.list_runs(tmp_path)}
    assert found == {"styledrop": "styledrop", "lora": "styledrop, lora"}
