"""Selection: the best by score, all above a threshold, or what a person writes into a file."""

import json
import math

import pytest
from PIL import Image

from styledrop_jax.errors import UserError
from styledrop_jax.feedback.select import (
    Candidate,
    Paused,
    Pool,
    above_threshold,
    best_of_all,
    best_of_each_prompt,
    best_prompts,
    human,
    read_answer,
    write_request,
)
from styledrop_jax.io.files import write_json

SCORES = [[0.3, 0.9, 0.9], [0.5, 0.1, 0.2], [0.9, 0.4, 0.4]]
CANDIDATES = [
    Candidate(prompt=prompt, image=image, score=score)
    for prompt, row in enumerate(SCORES)
    for image, score in enumerate(row)
]


def _chosen(selector, candidates=CANDIDATES, **how):
    indices = selector(Pool(candidates, **how))
    assert indices == sorted(indices)
    return [(candidates[index].prompt, candidates[index].image) for index in indices]


def test_the_best_of_each_prompt():
    assert _chosen(best_of_each_prompt) == [(0, 1), (1, 0), (2, 0)]
    assert _chosen(best_of_each_prompt, k=2) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_the_best_of_all():
    assert _chosen(best_of_all, k=2) == [(0, 1), (0, 2)]
    assert _chosen(best_of_all, k=4) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_the_best_prompts_have_one_each():
    assert _chosen(best_prompts, k=2) == [(0, 1), (2, 0)]
    assert _chosen(best_prompts, k=10) == [(0, 1), (1, 0), (2, 0)]


def test_all_above_a_threshold():
    assert _chosen(above_threshold, threshold=0.5) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_of_equal_scores_the_first_is_chosen():
    same = [Candidate(prompt=0, image=image, score=0.5) for image in range(4)]
    assert _chosen(best_of_each_prompt, same, k=2) == [(0, 0), (0, 1)]
    assert _chosen(best_of_all, same, k=3) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("selector", "how", "words"),
    [
        (best_of_each_prompt, {"k": 4}, "k: 4, expected 1 to 3, the images there are per prompt"),
        (above_threshold, {"threshold": 2.0}, "threshold: 2.0, but the best of 9 scores is 0.9"),
    ],
)
def test_a_selection_that_cannot_be_made_says_why(selector, how, words):
    with pytest.raises(UserError, match=words):
        selector(Pool(CANDIDATES, **how))


@pytest.mark.parametrize(
    "selector", [best_of_each_prompt, best_of_all, best_prompts, above_threshold]
)
def test_a_score_that_is_not_a_number_is_refused(selector):
    unknown = Candidate(prompt=7, image=1, score=math.nan)
    with pytest.raises(UserError, match="prompt 7, image 1 is not a number"):
        selector(Pool([*CANDIDATES, unknown]))


# -------------------------------------------------------------- a person


@pytest.fixture
def candidates(tmp_path):
    """40 images of two prompts, one red, the others blue."""
    found = []
    for number in range(40):
        file = tmp_path / "samples" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red" if number == 20 else "blue").save(file)
        text = "a cat" if number < 20 else "a house"
        candidate = Candidate(prompt=number // 20, image=number % 20, score=0, file=file, text=text)
        found.append(candidate)
    return found


@pytest.fixture
def answer(candidates, tmp_path):
    return write_request(candidates, tmp_path / "feedback")


def _count(sheet, colour):
    return sum(n for n, c in sheet.convert("RGB").getcolors(1 << 24) if c == colour)


def test_the_sheet_shows_every_image(answer):
    with Image.open(answer.parent / "contact_sheet.png") as sheet:
        assert _count(sheet, (255, 0, 0)) == 96 * 96
        assert _count(sheet, (0, 0, 255)) == 39 * 96 * 96


def test_a_person_is_asked_until_there_is_an_answer(candidates, tmp_path):
    pool = Pool(candidates, folder=tmp_path / "round_1")
    folder = tmp_path / "round_1" / "feedback"
    for _ in range(2):
        with pytest.raises(Paused) as waiting:
            human(pool)
        assert str(folder / "selected.json") in str(waiting.value)
        assert str(folder / "contact_sheet.png") in str(waiting.value)
    write_json(folder / "selected.json", {"selected": [40, 3, 1]})
    (folder / "contact_sheet.png").unlink()
    assert human(pool) == [0, 2, 39]


def test_a_filled_in_answer_is_read(answer):
    content = json.loads(answer.read_text())
    assert "contact_sheet.png" in content["how"]
    write_json(answer, {**content, "selected": [40, 3, 1]})
    assert read_answer(answer, num_images=40) == [0, 2, 39]


def test_asking_again_keeps_the_answer(answer, candidates):
    answer.write_text('{"selected": [2]}')
    write_request(candidates[:1], answer.parent)
    assert read_answer(answer, num_images=40) == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, '"selected" is empty; expected numbers from 1 to 40'),
        ('{"selected": [1,, 2]}', "expected JSON, found something else"),
        ("[" * 100_000, "expected JSON, found something else"),
        ('{"selected": 3}', 'has no list "selected"'),
        ("[1, 2]", 'has no list "selected"'),
        ('{"selected": [0]}', "0 is not on the sheet"),
        ('{"selected": [3, 41]}', "41 is not on the sheet"),
        ('{"selected": [1, "a"]}', '"a" is not on the sheet'),
        ('{"selected": [1.5]}', "1.5 is not on the sheet"),
        ('{"selected": [true]}', "true is not on the sheet"),
        ('{"selected": [[[[1]]]]}', "[[[1]]] is not on the sheet"),
        (f'{{"selected": ["{"x" * 5000}"]}}', "is not on the sheet"),
        ('{"selected": [3, 5, 3]}', "3 is chosen more than once"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(answer, content, words):
    if content is not None:
        answer.write_text(content)
    with pytest.raises(UserError) as error:
        read_answer(answer, num_images=40)
    message = str(error.value).replace(str(answer), "selected.json")
    assert words in message and message.startswith("selected.json: ") and len(message) < 300


@pytest.mark.parametrize("content", ['{"selected": ', "[]", '{"selected": null}', "{}"])
def test_what_is_no_answer_is_not_taken_for_an_empty_one(answer, candidates, content):
    answer.write_text(content)
    with pytest.raises(UserError, match="selected.json"):
        human(Pool(candidates, folder=answer.parents[1]))


def test_no_answer_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_answer(tmp_path / "selected.json", num_images=3)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, candidates):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_request(candidates, tmp_path / "file")
