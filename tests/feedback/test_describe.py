"""Words for a picture: its colours are named, and those that CLIP finds likest come first."""

import numpy as np
import pytest
from PIL import Image, ImageColor

import styledrop_jax
from styledrop_jax.errors import UserError
from styledrop_jax.feedback.describe import COLOURS, describe, names_of, phrases


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


@pytest.mark.parametrize(
    "colour, name",
    [
        *(("white", "white"), ("snow", "white"), ("ghostwhite", "white"), ("ivory", "white")),
        *(("#e8e8f4", "white"), ("#17171c", "black"), ("black", "black"), ("dimgray", "gray")),
        *(("gainsboro", "light gray"), ("beige", "cream"), ("tan", "beige")),
        *(("blue", "blue"), ("navy", "dark blue"), ("skyblue", "light blue"), ("teal", "teal")),
        *(("purple", "purple"), ("indigo", "purple"), ("plum", "lavender"), ("hotpink", "pink")),
        *(("red", "red"), ("maroon", "dark red"), ("orange", "orange"), ("saddlebrown", "brown")),
        *(("lime", "green"), ("yellow", "yellow"), ("goldenrod", "gold"), ("aqua", "cyan")),
    ],
)
def test_colours_have_the_names_that_people_give_them(colour, name):
    assert names_of(np.array(ImageColor.getrgb(colour)))[0] == name


@pytest.mark.parametrize("colour", ["white", "#e6e6f2", "#f0eef8", "#8a8a92", "#101018"])
def test_what_is_next_to_gray_has_the_name_of_no_hue(colour):
    grays = {"white", "light gray", "gray", "dark gray", "black"}
    assert set(names_of(np.array(ImageColor.getrgb(colour)))) <= grays


def test_the_edges_of_an_ink_are_no_ink():
    large = Image.fromarray(_picture("white", "blue")).rotate(30, Image.Resampling.BICUBIC)
    image = np.array(large.crop((12, 12, 52, 52)).resize((300, 300), Image.Resampling.BICUBIC))
    lines = phrases(image)["{ink} lines on {ground} paper"]
    assert lines == ["in white lines on blue paper style"]


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
