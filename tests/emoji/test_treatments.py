"""Treatments keep shape and dtype at any size, repeat exactly, look different, and look alike at two sizes."""

import time

import numpy as np
import pytest
from PIL import Image

from styledrop_jax.emoji.inks import TWO_COLOUR
from styledrop_jax.emoji.treatments import TREATMENTS


def _drawing(height: int, width: int) -> np.ndarray:
    """A red disc with a blue square on white."""
    rows, columns = np.mgrid[:height, :width] / min(height, width)
    image = np.full((height, width, 3), 255, np.uint8)
    image[np.hypot(rows - 0.5, columns - 0.5) < 0.36] = (205, 60, 50)
    image[(abs(rows - 0.5) < 0.15) & (abs(columns - 0.55) < 0.15)] = (40, 80, 200)
    return image


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
    training = [t for t in TREATMENTS if not t.held_out]
    held_out = {t.name for t in TREATMENTS if t.held_out}
    assert len(training) >= 16 and len(held_out) >= 6
    assert {"blueprint", "halftone", "mosaic"} <= held_out
    assert (
        len({t.words for t in TREATMENTS}) == len({t.name for t in TREATMENTS}) == len(TREATMENTS)
    )
    assert [t.name for t in TREATMENTS if not t.words] == ["plain"]


def test_no_two_treatments_give_nearly_the_same_picture():
    outs = np.stack([t.apply(_drawing(64, 64)).astype(float) for t in TREATMENTS])
    distance = np.abs(outs[:, None] - outs[None]).mean((2, 3, 4)) + 99 * np.eye(len(outs))
    first, second = np.unravel_index(distance.argmin(), distance.shape)
    assert distance.min() > 6, (TREATMENTS[first].name, TREATMENTS[second].name)


def test_two_colour_prints_differ_from_each_other_and_from_every_held_out_style():
    prints = np.stack([t.apply(_drawing(64, 64)).astype(float) for t in TWO_COLOUR])
    held_out = np.stack([t.apply(_drawing(64, 64)).astype(float) for t in TREATMENTS if t.held_out])
    among = np.abs(prints[:, None] - prints[None]).mean((2, 3, 4)) + 99 * np.eye(len(prints))
    assert among.min() > 2
    assert np.abs(prints[:, None] - held_out[None]).mean((2, 3, 4)).min() > 20
    assert len({t.words for t in (*TWO_COLOUR, *TREATMENTS)}) == len(TWO_COLOUR) + len(TREATMENTS)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda t: t.name)
def test_strokes_grow_with_the_image(treatment):
    small = treatment.apply(_drawing(64, 64))
    large = Image.fromarray(treatment.apply(_drawing(256, 256))).resize(
        (64, 64), Image.Resampling.BOX
    )
    # Coarse blocks: dots and grain need not fall on the same pixels, tone and colour must.
    coarse = [np.asarray(x, float).reshape(8, 8, 8, 8, 3).mean((1, 3)) for x in (small, large)]
    assert np.abs(coarse[0] - coarse[1]).mean() < 20


def test_fast_enough_to_feed_training():
    image = _drawing(64, 64)
    for treatment in TREATMENTS:
        treatment.apply(image)  # fixed patterns are made once
    start = time.process_time()
    for _ in range(10):
        for treatment in TREATMENTS:
            treatment.apply(image)
    assert (time.process_time() - start) / (10 * len(TREATMENTS)) < 2e-3
