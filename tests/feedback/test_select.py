import json
import random

import pytest
from PIL import Image

from styledrop_jax.errors import UserError
from styledrop_jax.feedback.select import Record, read_answer, select, write_request

SCORES = [[0.3, 0.9, 0.9], [0.5, 0.1, 0.2], [0.9, 0.4, 0.4]]
RECORDS = [
    Record(prompt=p, image=i, score=s) for p, row in enumerate(SCORES) for i, s in enumerate(row)
]


def _chosen(records=RECORDS, **kwargs):
    return [(r.prompt, r.image) for r in select(records, **kwargs)]


def test_the_best_of_each_prompt():
    assert _chosen(by="prompt") == [(0, 1), (1, 0), (2, 0)]
    assert _chosen(by="prompt", k=2) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_the_best_of_all():
    assert _chosen(by="top_k", k=2) == [(0, 1), (0, 2)]
    assert _chosen(by="top_k", k=4) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_all_above_a_threshold():
    assert _chosen(by="threshold", threshold=0.5) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_the_order_of_the_records_does_not_matter():
    for seed in range(5):
        shuffled = random.Random(seed).sample(RECORDS, len(RECORDS))
        for how in ({"by": "prompt"}, {"by": "top_k", "k": 2}, {"by": "top_k", "k": 6}):
            assert _chosen(shuffled, **how) == _chosen(**how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            {"by": "prompt", "k": 4},
            "feedback.k: 4, expected 1 to 3, the images there are per prompt",
        ),
        ({"by": "top_k", "k": 10}, "feedback.k: 10, expected 1 to 9"),
        ({"by": "top_k", "k": 0}, "feedback.k: 0"),
        (
            {"by": "threshold", "threshold": 2.0},
            "feedback.threshold: 2.0, but the best of 9 scores is 0.9",
        ),
        ({"by": "best"}, "feedback.by: 'best', expected"),
    ],
)
def test_a_selection_that_cannot_be_made_says_why(how, words):
    with pytest.raises(UserError, match=words):
        select(RECORDS, **how)


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="prompt 7, image 1 is not a number"):
        select([*RECORDS, Record(prompt=7, image=1, score=float("nan"))], by="top_k")


@pytest.fixture
def request_folder(tmp_path):
    """A folder with a request for 40 images of two prompts, one red, the others blue."""
    images = []
    for i in range(40):
        images.append(tmp_path / f"{i}.png")
        Image.new("RGB", (64, 64), "red" if i == 20 else "blue").save(images[-1])
    folder = tmp_path / "round_1"
    folder.mkdir()
    return folder, write_request(folder, images, prompts=["a cat"] * 20 + ["a house"] * 20)


def _count(sheet, colour):
    return sum(n for n, c in sheet.convert("RGB").getcolors(1 << 24) if c == colour)


def test_the_sheet_shows_every_image(request_folder):
    with Image.open(request_folder[0] / "contact_sheet.png") as sheet:
        assert _count(sheet, (255, 0, 0)) == 96 * 96
        assert _count(sheet, (0, 0, 255)) == 39 * 96 * 96


def test_a_filled_in_answer_is_read(request_folder):
    _, path = request_folder
    answer = json.loads(path.read_text())
    answer["selected"] = [40, 3, 1]
    path.write_text(json.dumps(answer))
    assert read_answer(path, num_images=40) == (0, 2, 39)


def test_asking_again_keeps_the_answer(request_folder, tmp_path):
    folder, path = request_folder
    path.write_text('{"selected": [2]}')
    write_request(folder, [tmp_path / "0.png"], prompts=["a cat"])
    assert read_answer(path, num_images=40) == (1,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, '"selected" is empty; expected numbers from 1 to 40'),
        ('{"selected": [1,, 2]}', "not valid JSON, line 1 column 17"),
        ('{"selected": 3}', 'has no list "selected"'),
        ("[1, 2]", 'has no list "selected"'),
        ('{"selected": [0, 41, 3]}', "0, 41 not on the sheet"),
        ('{"selected": ["a", 1.5, true]}', '"a", 1.5, true not on the sheet'),
        ('{"selected": [3, 5, 3, 5]}', "chosen more than once: 3, 5"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(request_folder, content, words):
    _, path = request_folder
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        read_answer(path, num_images=40)
    assert words in str(error.value) and "selected.json" in str(error.value)


def test_no_answer_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_answer(tmp_path / "selected.json", num_images=3)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    with pytest.raises(UserError, match="cannot write the feedback request"):
        write_request(tmp_path / "absent", [image], prompts=["a cat"])
