"""Treatments keep shape and dtype, repeat exactly, look different, and look alike at two sizes."""

import time

import numpy as np
import pytest
from PIL import Image

from styledrop_jax.emoji.inks import TWO_COLOUR
from styledrop_jax.emoji.treatments import (
    HELD_OUT_TREATMENTS,
    TRAINED_TREATMENTS,
    TREATMENTS,
    TREATMENTS_BY_NAME,
)


def _drawing(height: int, width: int) -> np.ndarray:
    """A red disc with a blue square on white."""
    rows, columns = np.mgrid[:height, :width] / min(height, width)
    image = np.full((height, width, 3), 255, np.uint8)
    image[np.hypot(rows - 0.5, columns - 0.5) < 0.36] = (205, 60, 50)
    image[(abs(rows - 0.5) < 0.15) & (abs(columns - 0.55) < 0.15)] = (40, 80, 200)
    return image


def _treated(treatments) -> np.ndarray:
    """The drawing under each of them, float [n, 64, 64, 3]."""
    return np.stack([treatment.apply(_drawing(64, 64)) for treatment in treatments]).astype(float)


def _distances(images: np.ndarray) -> np.ndarray:
    """The mean difference of each two images, [n, n]; far on the diagonal."""
    between = np.abs(images[:, None] - images[None]).mean((2, 3, 4))
    return between + 99 * np.eye(len(images))


@pytest.mark.parametrize("treatment", (*TREATMENTS, *TWO_COLOUR[::14]), ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(64, 64), (48, 100), (257, 130), (7, 5)])
def test_any_size_in_the_same_size_out(treatment, shape):
    image = _drawing(*shape)
    before = image.copy()
    with np.errstate(all="raise", under="ignore"):
        out = treatment.apply(image)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert np.array_equal(image, before), "the input was written to"
    assert np.array_equal(out, treatment.apply(image.copy()))


def test_there_are_enough_of_each_kind_with_their_own_words():
    assert len(TRAINED_TREATMENTS) >= 16 and len(HELD_OUT_TREATMENTS) >= 6
    for name in ("blueprint", "halftone", "mosaic"):
        assert TREATMENTS_BY_NAME[name] in HELD_OUT_TREATMENTS
    every = (*TREATMENTS, *TWO_COLOUR)
    assert len({treatment.words for treatment in every}) == len(every)
    assert len({treatment.name for treatment in every}) == len(every)
    assert TREATMENTS[0].name == "plain" and not TREATMENTS[0].words


def test_no_two_treatments_give_nearly_the_same_image():
    distances = _distances(_treated(TREATMENTS))
    first, second = np.unravel_index(distances.argmin(), distances.shape)
    assert distances.min() > 6, (TREATMENTS[first].name, TREATMENTS[second].name)


def test_two_colour_prints_differ_from_each_other_and_from_every_held_out_style():
    prints = _treated(TWO_COLOUR)
    assert _distances(prints).min() > 2
    assert np.abs(prints[:, None] - _treated(HELD_OUT_TREATMENTS)[None]).mean((2, 3, 4)).min() > 20


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda t: t.name)
def test_strokes_grow_with_the_image(treatment):
    small = treatment.apply(_drawing(64, 64))
    large = Image.fromarray(treatment.apply(_drawing(256, 256)))
    large = np.asarray(large.resize((64, 64), Image.Resampling.BOX))
    # Coarse blocks: dots and grain need not fall on the same pixels, tone and colour must.
    difference = (small.astype(float) - large).reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert np.abs(difference).mean() < 20


def test_fast_enough_to_feed_training():
    image = _drawing(64, 64)
    for treatment in TREATMENTS:
        treatment.apply(image)  # fixed patterns are made once
    start = time.process_time()
    for _ in range(10):
        for treatment in TREATMENTS:
            treatment.apply(image)
    assert (time.process_time() - start) / (10 * len(TREATMENTS)) < 2e-3
