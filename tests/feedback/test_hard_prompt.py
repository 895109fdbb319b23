"""A search for words by gradient descent: that it finds them, and that they are words."""

import numpy as np
import pytest
import tiny

from styledrop_jax.errors import UserError
from styledrop_jax.feedback import hard_prompt
from styledrop_jax.metrics.clip_scores import ClipScorer

CONTENTS = ["a cat", "a red house"]
IMAGES = np.zeros((2, 8, 8, 3), np.float32)


@pytest.fixture
def clip(monkeypatch):
    """A CLIP of random weights to which pictures look like drawings in watercolor use style."""
    scorer = ClipScorer.load(tiny.models() / "clip")
    like = scorer.text_features([f"{content} in watercolor use style" for content in CONTENTS])
    monkeypatch.setattr(scorer, "image_features", lambda images: like)
    return scorer


def _find(clip, **how):
    return hard_prompt.find(IMAGES, CONTENTS, clip, **{"words": 2, "steps": 150, **how})


def test_the_words_that_pictures_were_made_of_are_found(clip):
    found = _find(clip)
    assert found.descriptor == "in watercolor use style"
    assert found.likeness == pytest.approx(1, abs=1e-5)


def test_words_are_of_one_token_each_and_not_of_the_content(clip):
    known = hard_prompt._words(clip, CONTENTS)
    assert not {"cat", "red", "house"} & set(known)
    found = _find(clip, words=3, steps=5, seed=1)
    assert found == _find(clip, words=3, steps=5, seed=1)
    before, *words, after = found.descriptor.split()
    assert (before, after) == ("in", "style")
    for word in words:
        assert clip.tokenizer(word, add_special_tokens=False)["input_ids"] == [known[word]]


def test_prompts_that_are_too_long_are_refused(clip):
    with pytest.raises(UserError, match="words: a prompt with 90 of them has") as caught:
        _find(clip, words=90)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
