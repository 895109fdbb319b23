"""What scorers see in samples."""

import numpy as np
import pytest
import tiny

from styledrop_jax.feedback import scorers
from styledrop_jax.io.files import read_json, read_jsonl


class _Clip:
    """Texts are axes."""

    axes = ("a house", "a cat", "a dog")

    def text_features(self, texts):
        return np.eye(3)[[self.axes.index(text) for text in texts]]


def _seen(features, contents, shown=()):
    return scorers.Scored(
        features=np.array(features, float),
        prompts=[],
        ids=[],
        references=None,
        contents=contents,
        shown=list(shown),
        clip=_Clip(),
        seed=0,
    )


def test_leakage_is_what_an_image_is_likelier_what_the_references_show():
    images = [[0.5, 0.25, 0.15], [0.5, 0.25, 0.75], [0.5, 0.25, 0.15]]

    def leakage(shown):
        return list(scorers.clip_leakage(_seen(images, ["a cat", "a dog", "a house"], shown)))

    assert leakage(["a house"]) == pytest.approx([0.2, 0, 0])  # none into a house
    assert leakage(["a house", "a dog"]) == pytest.approx([0.2, 0, -0.15])
    assert leakage([]) == [0, 0, 0]


def test_a_style_that_brings_all_words_nearer_is_no_leak():
    near = np.array([[0.5, 0.25, 0.15]]) + 0.2
    far = np.array([[0.5, 0.25, 0.15]])
    found = [scorers.clip_leakage(_seen(x, ["a cat"], ["a house"])) for x in (near, far)]
    assert found[0] == pytest.approx(found[1])


def test_content_is_what_an_image_is_likelier_than_all_prompts_ask_for():
    cat, dog, neither = [0, 0.9, 0.1], [0, 0.1, 0.7], [0, 0.5, 0.5]
    found = scorers.clip_content(_seen([cat, dog, neither], ["a cat", "a dog", "a dog"]))
    assert found == pytest.approx([0.4, 0.3, 0])
    assert list(scorers.clip_content(_seen([cat], ["a cat"]))) == [0]  # nothing to tell it from


def test_sameness_is_the_likeness_to_samples_of_other_prompts():
    images = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0.6, 0.8, 0]]
    found = scorers.clip_sameness(_seen(images, ["a cat", "a cat", "a dog", "a house"]))
    assert found == pytest.approx([0.3, 0.9, 0.6, (0.6 + 0.8 + 0.8) / 3])
    assert list(scorers.clip_sameness(_seen(images[:2], ["a cat", "a cat"]))) == [0, 0]


def test_random_feedback_looks_at_nothing_but_the_seed():
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    places = [(row["prompt"], row["image"]) for row in rows]

    def chance(seed):
        seen = scorers.Scored(
            features=None,
            prompts=[],
            ids=places,
            references=None,
            contents=[],
            shown=[],
            clip=None,
            seed=seed,
        )
        return list(scorers.random(seen))

    seed = read_json(tiny.finished() / "config.json")["seed"]
    assert [row["scores"]["random"] for row in rows] == chance(seed)
    assert chance(1) != chance(2)
