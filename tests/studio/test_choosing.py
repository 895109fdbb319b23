"""A person's marks: saved at each click, merged between pages, read by the run."""

import json

import pytest
import studios

from styledrop_jax.feedback.select import Candidate, Pool, human, read_answer
from styledrop_jax.io.files import write_json


@pytest.fixture
def opened(tmp_path):
    studios.waiting(tmp_path / "runs" / "mine")
    with studios.Open(tmp_path / "runs") as opened:
        yield opened


def _answer(tmp_path):
    return tmp_path / "runs" / "mine" / "round_1" / "feedback" / "selected.json"


def _mark(opened, **changes):
    numbers = {name.removeprefix("n"): mark for name, mark in changes.items()}
    return opened.post("/api/mark", run="mine", round=1, changes=numbers)


def test_all_images_of_a_round_are_there_with_their_scores(opened):
    found = opened.get("/api/round", run="mine", round=1).json()
    assert found["open"] and found["suggested"] == 10
    assert [image["number"] for image in found["images"]] == [1, 2, 3, 4, 5, 6]
    assert [image["prompt"] for image in found["images"][::2]] == list(studios.PROMPTS)
    assert set(found["images"][0]["scores"]) == {"clip_text", "clip_style", "clip_content"}
    file = found["images"][3]["file"]
    small = opened.get("/thumb", run="mine", file=file, side=160)
    whole = opened.get("/image", run="mine", file=file)
    assert small.content == whole.content  # it has few pixels
    assert not opened.get("/api/round", run="mine", round=0).json()["open"]
    assert opened.get("/api/round", run="mine", round=2).status_code == 404


def test_the_images_to_choose_from_come_before_those_that_judge(tmp_path, opened):
    round_1 = tmp_path / "runs" / "mine" / "round_1"
    studios.samples(round_1 / "candidates", ("a bee",), 3)
    found = opened.get("/api/round", run="mine", round=1).json()
    assert [image["prompt"] for image in found["images"]] == ["a bee"] * 3
    assert found["images"][0]["file"] == "round_1/candidates/samples/p000_i000.png"
    own = opened.get("/api/round", run="mine", round=1, own=1).json()
    assert len(own["images"]) == 6


def test_a_click_is_what_the_run_reads(tmp_path, opened):
    """`select.by human` takes the marks as they are written, by the numbers of its own order."""
    assert _mark(opened, n2="keep", n5="keep", n3="drop").json() == {"kept": [2, 5], "dropped": [3]}
    assert read_answer(_answer(tmp_path), num_images=6) == [1, 4]
    candidates = [Candidate(prompt=i // 2, image=i % 2, score=0) for i in range(6)]
    assert human(Pool(candidates, folder=_answer(tmp_path).parents[1])) == [1, 4]
    assert _mark(opened, n2="", n3="keep").json() == {"kept": [3, 5], "dropped": []}
    assert json.loads(_answer(tmp_path).read_text())["how"]


def test_two_pages_do_not_undo_each_other(opened):
    _mark(opened, n1="keep")
    _mark(opened, n4="keep")
    _mark(opened, n6="drop")
    marks = opened.get("/api/round", run="mine", round=1).json()["marks"]
    assert marks == {"kept": [1, 4], "dropped": [6]}


def test_clips_choice_is_the_best_of_each_prompt_without_what_is_dropped(opened):
    _mark(opened, n1="keep", n4="drop")
    found = opened.post("/api/start", run="mine", round=1).json()
    assert found == {"kept": [2, 3, 6], "dropped": [4]}


def test_a_choice_that_has_begun_still_waits_until_the_run_goes_on(opened):
    (card,) = opened.get("/api/runs").json()
    assert card["waits"] == 1 and card["state"] == "waits for your choice in round 1"
    _mark(opened, n1="keep")
    assert opened.get("/api/runs").json()[0]["waits"] == 1
    assert opened.get("/api/run", run="mine").json()["waits"] == 1


def test_a_round_that_has_gone_on_is_only_looked_at(tmp_path, opened):
    _mark(opened, n1="keep")
    rows = [json.loads(line) for line in (_scores(tmp_path)).read_text().splitlines()]
    write_json(tmp_path / "runs/mine/round_1/selected.json", {"selected": [rows[4]]})
    answer = _mark(opened, n2="keep")
    assert answer.status_code == 400 and "gone on" in answer.json()["error"]
    found = opened.get("/api/round", run="mine", round=1).json()
    assert not found["open"] and found["marks"]["kept"] == [5]


def _scores(tmp_path):
    return tmp_path / "runs" / "mine" / "round_1" / "scores.jsonl"


@pytest.mark.parametrize(
    "changes", [{"7": "keep"}, {"0": "keep"}, {"x": "keep"}, {"1": "love"}, {"1": None}, [1], None]
)
def test_marks_that_cannot_be_change_nothing(tmp_path, opened, changes):
    before = _answer(tmp_path).read_bytes()
    answer = opened.post("/api/mark", run="mine", round=1, changes=changes)
    assert answer.status_code == 400
    assert _answer(tmp_path).read_bytes() == before


def test_an_answer_that_a_person_wrote_by_hand_is_shown_as_far_as_it_goes(tmp_path, opened):
    write_json(_answer(tmp_path), {"how": "…", "selected": [3, 3, "x", 99, True, 1]})
    found = opened.get("/api/round", run="mine", round=1).json()
    assert found["marks"] == {"kept": [1, 3], "dropped": []}


def test_small_pictures_are_made_once_and_kept_by_the_browser(tmp_path, opened):
    studios.png(tmp_path / "runs" / "mine" / "large.png", side=400)
    query = {"run": "mine", "file": "large.png", "side": 160}
    answer = opened.get("/thumb", **query, v=1)
    assert (
        answer.headers["content-type"] == "image/webp"
        and "immutable" in answer.headers["cache-control"]
    )
    (kept,) = (opened.studio.state / "thumbnails").rglob("*.webp")
    made = kept.stat().st_mtime_ns
    assert opened.get("/thumb", **query).headers["cache-control"] == "private, no-cache"
    assert kept.stat().st_mtime_ns == made
    assert opened.get("/thumb", run="mine", file="large.png", side=161).status_code == 400
