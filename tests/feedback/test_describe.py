"""Words for a picture: its colours are named, and those that CLIP finds likest come first."""

import numpy as np
import pytest
from PIL import Image

import styledrop_jax
from styledrop_jax.errors import UserError
from styledrop_jax.feedback.describe import COLOURS, describe, phrases


def _picture(ink, ground):
    """A square of one colour on another, uint8 [64, 64, 3]."""
    image = np.empty((64, 64, 3), np.uint8)
    image[:] = COLOURS[ground]
    image[16:48, 16:48] = COLOURS[ink]
    return image


class _Clip:
    """Every text is a direction of its own; images look like the one that is asked for."""

    def __init__(self, like):
        self.like = like

    def text_features(self, prompts):
        return np.array([[float(prompt == self.like)] for prompt in prompts])

    def image_features(self, images):
        return np.ones((len(images), 1))


@pytest.mark.parametrize("ink, ground", [("white", "dark green"), ("orange", "dark blue")])
def test_colours_of_ink_and_ground_are_named(ink, ground):
    found = phrases(_picture(ink, ground))
    lines = found["{ink} lines on {ground} paper"]
    assert lines[0] == f"in {ink} lines on {ground} paper style"
    assert f"in {ground} lines on {ground} paper style" not in lines
    assert found["linocut"] == ["in linocut style"]


def test_a_picture_of_one_colour_has_words_too():
    assert phrases(_picture("red", "red"))["pop art"] == ["in pop art style"]


def test_the_likeliest_comes_first_and_each_is_of_another_kind():
    picture = _picture("white", "dark green")
    liked = "a key in white hatching on dark green paper style"
    found = describe(picture, _Clip(liked), contents=["a key"], number=3)
    assert not found.guessed and found.content == "a key"
    first, likeness = found.descriptors[0]
    assert first == "in white hatching on dark green paper style" and likeness == 1
    assert len(found.descriptors) == 3
    assert sum("hatching" in phrase for phrase, _ in found.descriptors) == 1
    assert describe(picture, _Clip("a car"), contents=["a key", "a car"]).content == "a car"


def test_the_shipped_clip_sees_a_black_silhouette():
    picture = _picture("black", "white")
    found = styledrop_jax.describe(Image.fromarray(picture), content="a house", number=8)
    assert any("black" in phrase and "on white" in phrase for phrase, _ in found.descriptors)
    with pytest.raises(UserError, match="number: found 0"):
        styledrop_jax.describe(picture, number=0)
