import numpy as np
import pytest

from styledrop_jax.io import sheets
from styledrop_jax.io.sheets import grid


def test_grid_places_and_marks(image):
    sheet = grid([image, image, image / 255.0], columns=2, pad=3, marked=[1], scale=2)
    h = 2 * 24 + 6
    w = 2 * 36 + 6
    assert sheet.shape == (2 * h, 2 * w, 3)
    big = image.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(sheet[3 : h - 3, 3 : w - 3], big)
    np.testing.assert_array_equal(sheet[h + 3 : -3, 3 : w - 3], big)
    assert (sheet[0, :w] == 255).all() and (sheet[h:, w:] == 255).all()
    assert (sheet[0, w:] != 255).any(-1).all()


def test_images_of_several_shapes_stand_in_the_middle(image):
    sheet = grid([image, image[:20, :30]], columns=2, pad=0)
    np.testing.assert_array_equal(sheet[:, :36], image)
    np.testing.assert_array_equal(sheet[2:22, 39:69], image[:20, :30])
    assert (sheet[:2, 36:] == 255).all() and (sheet[:, 36:39] == 255).all()


@pytest.mark.parametrize(
    ("count", "columns"),
    [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (7, 3), (8, 4), (10, 4), (12, 4), (30, 6), (100, 10)],
)
def test_the_last_row_is_full_where_it_can_be(count, columns):
    sheet = grid([np.zeros((8, 8, 3), np.uint8)] * count, pad=0)
    assert sheet.shape == (8 * -(-count // columns), 8 * columns, 3)


def test_wide_images_get_fewer_columns():
    assert grid([np.zeros((8, 80, 3), np.uint8)] * 10, pad=0).shape == (80, 80, 3)


def test_a_banner_does_not_widen_every_cell():
    images = [np.zeros((64, 64, 3), np.uint8)] * 29
    sheet = grid([*images, np.zeros((64, 6400, 3), np.uint8)], columns=6, pad=4)
    assert sheet.shape == (5 * 72, 6 * (128 + 8), 3)
    assert (sheet[:68] == 0).sum() == 3 * 6 * 64 * 64
    banner = (sheet[4 * 72 :, 5 * 136 :] == 0).all(-1)
    assert banner.any(1).sum() == 1 and banner.any(0).sum() == 128


@pytest.mark.parametrize("captions", [None, ["a cat"] * 30])
def test_no_sheet_is_larger_than_the_limit(monkeypatch, captions):
    monkeypatch.setattr(sheets, "MAX_PIXELS", 50_000)
    sheet = grid([np.zeros((64, 96, 3), np.uint8)] * 30, scale=3, captions=captions)
    assert 40_000 < sheet.shape[0] * sheet.shape[1] <= 50_000
    tiny = grid([np.zeros((64, 96, 3), np.uint8)] * 2000)
    assert tiny.shape[0] * tiny.shape[1] < 2000 * 9 * 9 * 1.1


def test_captions_are_cut_to_the_width(image):
    long = "a very long caption that cannot fit " * 1000
    sheet = grid([image] * 2, captions=["a house", long], columns=2)
    assert sheet.shape == (24 + 8 + 14, 2 * 44, 3)
    assert (sheet[-14:, :44] < 200).any() and (sheet[-14:, 44:] < 200).any()


@pytest.mark.parametrize(
    "text",
    """é ñ ø ğ ệ кошка γάτα חתול قطة แมว बिल्ली 猫 貓 ねこ ネコ 고양이 😺 → … “ა”""".split(),
)
def test_every_script_has_letters(text):
    for font, part in sheets._runs(text):
        for letter in part:
            assert sheets._has(font, letter)


def test_letters_of_one_script_are_set_together():
    parts = [part for _, part in sheets._runs("a café, قطة حمراء 猫")]
    assert parts == ["a café, ", "قطة حمراء ", "猫"]
    assert not sheets._has(sheets._font_of("\u0378"), "\u0378")
