"""What the model sees of a picture with a mask, and how its seam is blended."""

import numpy as np
import pytest

from styledrop_jax.io import regions

PICTURE = (240, 320)
MASKS = {
    "whole": (slice(None), slice(None)),
    "tiny": (slice(100, 101), slice(200, 201)),
    "corner": (slice(0, 30), slice(0, 50)),
    "border": (slice(220, 240), slice(100, 140)),
    "wide": (slice(110, 113), slice(5, 315)),
}


def _region(name):
    region = np.zeros(PICTURE, bool)
    region[MASKS[name]] = True
    return region


def _seam(region, picture=PICTURE):
    return np.asarray(regions.seam(region, picture))


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        ("whole", (0, 0, 320, 240)),
        ("tiny", (168, 68, 232, 132)),
        ("corner", (0, 0, 100, 100)),
        ("border", (80, 160, 160, 240)),
        ("wide", (0, 0, 320, 240)),
    ],
)
def test_the_window_is_the_mask_with_its_surroundings(mask, box):
    assert regions.window(_region(mask), 64) == box


@pytest.mark.parametrize("mask", MASKS)
def test_the_model_sees_every_mask(mask):
    region = _region(mask)
    left, top, right, bottom = regions.window(region, 16)
    for size in ((16, 16), (8, 40), (300, 400)):
        assert regions.reduced(region[top:bottom, left:right], size).any()


def test_the_seam_rises_inside_the_mask_from_nothing_outside():
    region = np.zeros((400, 400), bool)
    region[100:300, 100:300] = True
    share = _seam(region, (400, 400))
    assert not share[~region].any()
    row = share[200, 95:200].astype(int)
    assert (np.diff(row) >= 0).all()
    assert row[:5].max() == 0 and 0 < row[5] < row[6] < row[7] < row[8] < row[9] == 255
    wider = _seam(region, (4000, 3000))[200]
    assert ((wider > 0) & (wider < 255)).sum() == 2 * 8, "at most 8 pixels on either side"
    assert set(np.unique(_seam(region, (48, 48)))) == {0, 255}


@pytest.mark.parametrize("mask", MASKS)
def test_a_seam_leaves_the_deepest_of_any_mask_to_the_model(mask):
    region = _region(mask)
    share = _seam(region)
    assert share.max() == 255 and not share[~region].any() and share[region].all()


def test_there_is_no_seam_along_the_border_of_a_picture():
    assert (_seam(_region("whole")) == 255).all()
    assert (_seam(_region("border"))[-1, 105:135] == 255).all()
