"""The record of a sample, the seeds of a pool, and records that someone else wrote."""

import dataclasses
import json

import jax
import pytest

from styledrop_jax.errors import UserError
from styledrop_jax.methods.base import Prompt
from styledrop_jax.stages.samples import (
    Sample,
    pool,
    read_chosen,
    read_samples,
    write_chosen,
    write_samples,
)

PROMPTS = [
    Prompt(content="a cat", text="a cat in red", judged="a cat in red"),
    Prompt(content="a {subject}", text="a sks dog", judged="a dog"),
]
SAMPLE = Sample(
    prompt=1,
    image=2,
    file="samples/p001_i002.png",
    content="a cat",
    text="a cat in red",
    judged="a cat in red",
    seed=7,
    scores={"clip_text": 0.5},
    score=0.5,
)


# -------------------------------------------------------------- the pool


def _pool(count=3, seed=0, number=1, **more):
    return pool(PROMPTS, count, seed=seed, number=number, **more)


def test_a_pool_has_every_image_of_every_prompt():
    samples = _pool()
    assert [sample.place for sample in samples] == [(p, i) for p in range(2) for i in range(3)]
    assert [sample.file for sample in samples[:2]] == [
        "samples/p000_i000.png",
        "samples/p000_i001.png",
    ]
    assert (samples[3].content, samples[3].text, samples[3].judged) == (
        "a {subject}",
        "a sks dog",
        "a dog",
    )
    assert len({sample.file for sample in samples}) == 6


def test_every_sample_has_a_seed_of_its_own_of_32_bits():
    seeds = [sample.seed for sample in _pool(200)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**32 for seed in seeds) and max(seeds) > 2**31
    assert seeds == [sample.seed for sample in _pool(200)]


def test_seeds_are_of_the_run_the_round_and_the_place_alone():
    def seeds(**of):
        return {sample.seed for sample in _pool(**of)}

    assert not seeds() & seeds(seed=1), "runs that differ by one in their seed share none"
    assert not seeds() & seeds(number=2)
    fewer = [sample.seed for sample in _pool(2)]
    more = [sample.seed for sample in _pool(3)]
    assert fewer == [*more[:2], *more[3:5]], "more images of each prompt leave the others"


def test_a_seed_that_is_taken_gives_way(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, dtype: 2**32 - 2)
    assert [sample.seed for sample in _pool(2)] == [2**32 - 2, 2**32 - 1, 0, 1]


def test_images_that_are_generated_anew_are_prompts_of_their_own():
    sources = {"references/001.png": "anna", "references/002.png": "bert"}
    samples = _pool(2, sources=sources)
    assert [sample.prompt for sample in samples] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [sample.source for sample in samples[::2]] == [*sources, *sources]
    assert [sample.content for sample in samples[4::2]] == ["a anna", "a bert"]
    assert {sample.text for sample in samples[4:]} == {"a sks dog"}


# -------------------------------------------------------------- records


def test_records_come_back(tmp_path):
    anew = dataclasses.replace(SAMPLE, source="references/001.png")
    write_samples(tmp_path / "scores.jsonl", [SAMPLE, anew])
    assert read_samples(tmp_path / "scores.jsonl") == [SAMPLE, anew]
    write_chosen(tmp_path / "selected.json", [anew])
    assert read_chosen(tmp_path / "selected.json") == [anew]
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert "source" not in first and first["scores"] == {"clip_text": 0.5}
    assert read_samples(tmp_path / "nowhere.jsonl") == []


def _record(**changes):
    return dataclasses.asdict(SAMPLE) | changes


def _without(name):
    record = _record()
    del record[name]
    return record


def _both(tmp_path, text):
    """What is said of a record in either file."""
    found = []
    lines = tmp_path / "scores.jsonl"
    lines.write_text(f"{text}\n{text}\n", encoding="utf-8")
    chosen = tmp_path / "selected.json"
    chosen.write_text(f'{{"selected": [{text}]}}', encoding="utf-8")
    for read, path in ((read_samples, lines), (read_chosen, chosen)):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message
        assert len(message.replace(str(tmp_path), "")) < 300
        found.append(message)
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "expected a sample with prompt"),
        ("3", "expected a sample with prompt"),
        ("null", "expected a sample with prompt"),
        ('"x"', "expected a sample with prompt"),
        ("{}", "prompt is None, expected a whole number"),
        ('{"more": 1}', "expected a sample with prompt"),
        ("[" * 500 + "]" * 500, "expected a sample with prompt"),
        ("[" * 900 + "]" * 900, "expected"),
        ('"' + "x" * 100_000 + '"', "expected a sample with prompt"),
    ],
)
def test_what_is_no_record(tmp_path, text, words):
    assert all(words in message for message in _both(tmp_path, text))


@pytest.mark.parametrize("name", ["file", "content", "text", "judged", "prompt", "image", "seed"])
def test_a_record_that_lacks_a_field(tmp_path, name):
    for message in _both(tmp_path, json.dumps(_without(name))):
        assert name in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("file", "../../secret.png", "file '../../secret.png' is not in the run folder"),
        ("file", "/etc/passwd", "is not in the run folder"),
        ("file", "samples/../../x.png", "is not in the run folder"),
        ("file", "a\0b", "is not in the run folder"),
        ("file", 3, "file is 3, expected text"),
        ("file", ["x"], "file is ['x'], expected text"),
        ("source", "../x", "source '../x' is not in the run folder"),
        ("content", {"a": 1}, "content is {'a': 1}, expected text"),
        ("text", None, "text is None, expected text"),
        ("prompt", -1, "prompt is -1, expected a whole number"),
        ("image", "0", "image is '0', expected a whole number"),
        ("image", 0.5, "image is 0.5, expected a whole number"),
        ("seed", True, "seed is True, expected a whole number"),
        ("seed", None, "seed is None, expected a whole number"),
        ("scores", [1], "scores are [1], expected numbers by name"),
        ("scores", {"clip_text": "high"}, "expected numbers by name"),
        ("scores", {"clip_text": True}, "expected numbers by name"),
        ("scores", {"clip_text": [[[1]]]}, "expected numbers by name"),
        ("score", "high", "expected numbers by name"),
        ("score", None, "expected numbers by name"),
    ],
)
def test_a_field_that_cannot_be(tmp_path, field, value, words):
    for message in _both(tmp_path, json.dumps(_record(**{field: value}))):
        assert words in message


@pytest.mark.parametrize("text", ["[]", "3", '{"selected": 3}', '{"selected": {}}', "{}", "null"])
def test_what_is_no_selection(tmp_path, text):
    path = tmp_path / "selected.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match='expected {"selected"'):
        read_chosen(path)


def test_a_score_may_be_no_number_that_can_be_written(tmp_path):
    """NaN is written as null, which is no score."""
    write_samples(tmp_path / "scores.jsonl", [dataclasses.replace(SAMPLE, score=float("nan"))])
    with pytest.raises(UserError, match="expected numbers by name"):
        read_samples(tmp_path / "scores.jsonl")
