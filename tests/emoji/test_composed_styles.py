"""Composed styles: every value of a part shows, words are said, held-out values stay out."""

import dataclasses

import numpy as np
import pytest

from styledrop_jax.emoji import styles
from styledrop_jax.emoji.styles import Parts

_PLAIN = Parts(line="thin", fill="flat", inks=("red",), ground="sky", texture="plain", edge="clean")
_VALUES = {
    "line": styles.LINES,
    "fill": styles.FILLS,
    "inks": {"one": ("navy",), "three": ("navy", "red", "yellow"), "own": ()},
    "ground": styles.COLOURS,
    "texture": styles.TEXTURES,
    "edge": styles.EDGES,
}


def _drawing(height: int, width: int) -> np.ndarray:
    """A disc that grows lighter from left to right, with a dark square in it, on white."""
    rows, columns = np.mgrid[:height, :width] / min(height, width)
    image = np.full((height, width, 3), 255, np.uint8)
    shade = np.stack([120 + 100 * columns, 60 + 120 * columns, 90 + 0 * columns], -1)
    image = np.where((np.hypot(rows - 0.5, columns - 0.5) < 0.4)[..., None], shade, image)
    image[(abs(rows - 0.5) < 0.12) & (abs(columns - 0.55) < 0.12)] = (40, 30, 90)
    return image.astype(np.uint8)


def _with(field: str, value) -> Parts:
    return dataclasses.replace(_PLAIN, **{field: value})


@pytest.mark.parametrize("field", _VALUES)
def test_every_value_of_a_part_looks_like_no_other(field):
    values = _VALUES[field]
    options = values.values() if field == "inks" else values
    images = np.stack([styles.draw(_with(field, value), _drawing(128, 128)) for value in options])
    between = np.abs(images[:, None].astype(float) - images[None]).mean((2, 3, 4))
    assert (between + 99 * np.eye(len(images))).min() > 0.5


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (48, 100), (257, 130), (7, 5)])
def test_any_style_of_any_size_is_the_same_twice(shape):
    rng = np.random.default_rng(0)
    image = _drawing(*shape)
    before = image.copy()
    for _ in range(40):
        parts = styles.random_parts(rng, held_out=True)
        with np.errstate(all="raise", under="ignore"):
            out = styles.draw(parts, image)
        assert out.shape == image.shape and out.dtype == np.uint8
        assert np.array_equal(out, styles.draw(parts, image)), parts
    assert np.array_equal(image, before), "the input was written to"


def test_a_drawing_can_be_seen_in_every_style():
    rng = np.random.default_rng(1)
    image = _drawing(64, 64)
    blank = np.full_like(image, 255)
    for _ in range(200):
        parts = styles.random_parts(rng, held_out=True)
        shown = styles.draw(parts, image).astype(float)
        ground = styles.draw(parts, blank)
        assert np.abs(shown - ground).max() > 60, parts


def test_training_shows_no_held_out_value_and_nearly_everything_else():
    rng = np.random.default_rng(2)
    drawn = [styles.random_parts(rng) for _ in range(3000)]
    for field, held in styles.HELD_OUT.items():
        seen = {getattr(parts, field) for parts in drawn}
        if field == "inks":
            seen = {ink for inks in seen for ink in inks}
        assert seen.isdisjoint(held)
        known = styles.COLOURS if field == "inks" else _VALUES[field]
        assert seen | set(held) == set(known), field
    assert len(set(drawn)) > 2700


def test_a_style_says_a_part_of_its_words():
    parts = _with("inks", ("navy", "red"))
    parts = dataclasses.replace(parts, ground="cream", texture="paper", edge="rough")
    expected = ["rough", "thin line", "flat", "navy and red ink", "on cream paper"]
    assert styles.words(parts) == expected
    rng = np.random.default_rng(3)
    lengths = set()
    for _ in range(50):
        style = styles.random_style(rng)
        assert style.words and set(style.words.split()) <= set(style.name.split())
        lengths.add(len(style.words) < len(style.name))
    assert lengths == {True, False}
