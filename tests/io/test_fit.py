"""Images that are no squares: which are padded, which are cut, and that padding loses nothing."""

import numpy as np
import pytest
from PIL import Image

from styledrop_jax.io.fit import read_fitted, sizes
from styledrop_jax.io.image_files import cut, read_image, to_square

PAPER = (244, 236, 208)
PADDED = "#f4ecd0"


def _drawing(size=(120, 40), ground=PAPER):
    """A black bar on plain ground that ends 4 pixels before the left and the right, and in the
    middle of those.
    """
    width, height = size
    image = Image.new("RGB", size, ground)
    image.paste("black", (4, height // 2 - 4, width - 4, height // 2 + 4))
    return image


def _photograph(size=(120, 40), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _read(path, image, fit="auto", **save):
    image.save(path, **save)
    pixels, ground, _ = read_fitted(path, fit)
    np.testing.assert_array_equal(pixels, read_image(path))
    return pixels, ground


def test_a_drawing_on_plain_ground_is_padded_and_nothing_is_lost(tmp_path):
    pixels, ground = _read(tmp_path / "a.png", _drawing())
    assert ground == PADDED
    for image in (pixels, pixels.transpose(1, 0, 2)):
        square = to_square(image, 120, ground=ground)
        across = image.shape[1] == 120
        middle = square[40:80] if across else square[:, 40:80]
        np.testing.assert_array_equal(middle, image, "the whole image, as it was")
        assert square.sum(axis=-1).min() == 0 and (square == 0).sum() == (image == 0).sum()
        sides = np.delete(square, slice(40, 80), axis=0 if across else 1)
        assert (sides == PAPER).all()
    small = to_square(pixels, 30, ground=ground)
    assert small.shape == (30, 30, 3) and (small[0] == PAPER).all() and small[15, 15].max() < 30
    assert small[15, 1].max() < 200 and small[15, -2].max() < 200, "both ends are there"


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1"])
def test_every_kind_of_pixels_has_its_ground(tmp_path, mode):
    image = _drawing(ground="white" if mode == "1" else PAPER)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    _, ground = _read(tmp_path / "a.png", image)
    expected = np.asarray(image.convert("RGB"))[0, 0]
    assert ground == "#" + expected.tobytes().hex()


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_noise_of_a_scan_is_plain(tmp_path, suffix):
    noise = np.random.default_rng(0).normal(0, 3, (40, 120, 3))
    noisy = Image.fromarray((np.asarray(_drawing()) + noise).clip(0, 255).astype(np.uint8))
    _, ground = _read(tmp_path / f"a.{suffix}", noisy, quality=85)
    assert np.abs(np.subtract(list(bytes.fromhex(ground[1:])), PAPER)).max() <= 3


def test_a_photograph_is_cut_to_its_middle(tmp_path):
    pixels, ground = _read(tmp_path / "a.png", _photograph())
    assert ground == ""
    np.testing.assert_array_equal(to_square(pixels, 40, ground=ground), pixels[:, 40:80])


def test_a_border_of_many_colours_is_not_plain(tmp_path):
    for box in ((0, 0, 3, 3), (119, 20, 120, 21), (60, 0, 61, 1)):
        image = _drawing()
        image.paste("black", box)
        assert _read(tmp_path / "a.png", image)[1] == "", box
        assert _read(tmp_path / "a.png", image, "pad")[1] == PADDED, "the colour of most of it"


def test_a_transparent_image_is_padded_with_the_white_that_it_lies_on(tmp_path):
    layer = Image.new("RGBA", (120, 40))
    layer.paste("purple", (0, 0, 100, 40))  # it touches the border
    pixels, ground = _read(tmp_path / "a.png", layer)
    assert ground == "#ffffff" and (pixels[:, 100:] == 255).all()
    assert _read(tmp_path / "a.png", layer, "crop")[1] == ""
    palette = Image.fromarray(np.asarray(layer)[..., 3] // 2).convert("P")
    assert _read(tmp_path / "a.gif", palette, transparency=0)[1] == "#ffffff"
    opaque = _photograph()
    opaque.putalpha(255)
    assert _read(tmp_path / "a.png", opaque)[1] == "", "no pixel is transparent"


def test_a_drawing_in_the_middle_of_its_ground_is_cut_and_stays_as_large(tmp_path):
    drawing = Image.new("RGB", (120, 40), PAPER)
    drawing.paste("black", (42, 2, 78, 38))
    for image in (drawing, drawing.transpose(Image.Transpose.ROTATE_90)):
        assert _read(tmp_path / "a.png", image)[1] == ""
        assert _read(tmp_path / "a.png", image, "pad")[1] == PADDED
    drawing.paste("black", (20, 18, 24, 22))  # which a cut would lose
    assert _read(tmp_path / "a.png", drawing)[1] == PADDED
    layer = Image.new("RGBA", (120, 40))
    layer.paste("purple", (42, 2, 78, 38))
    assert _read(tmp_path / "a.png", layer)[1] == ""


@pytest.mark.parametrize("fit", ["auto", "crop", "pad"])
def test_a_square_is_never_padded(tmp_path, fit):
    clear = Image.new("RGBA", (16, 16))
    for image in (_drawing((40, 40)), clear, _photograph((40, 40)), Image.new("RGB", (1, 1))):
        pixels, ground = _read(tmp_path / "a.png", image, fit)
        assert ground == ""
        assert to_square(pixels, 16, ground=ground).shape == (16, 16, 3)


def test_what_is_asked_for_overrides_what_is_seen(tmp_path):
    assert _read(tmp_path / "a.png", _drawing(), "crop")[1] == ""
    pixels, ground = _read(tmp_path / "a.png", _photograph(), "pad")
    square = to_square(pixels, 120, ground=ground)
    np.testing.assert_array_equal(square[40:80], pixels)


@pytest.mark.parametrize("size", [(100, 1), (1, 100), (6400, 64), (4000, 2), (2, 1)])
def test_a_banner_is_there_as_a_line(tmp_path, size):
    pixels, ground = _read(tmp_path / "a.png", Image.new("RGB", size, "black"), "pad")
    square = to_square(pixels, 64, ground="#ffffff")
    assert ground == "#000000" and square.shape == (64, 64, 3)
    wide = square if size[0] > size[1] else square.transpose(1, 0, 2)
    assert (wide == 0).all(axis=-1).all(axis=1).any(), "a line from one side to the other"


def test_crops_of_a_padded_image_lie_in_its_square():
    image = np.asarray(_drawing())
    for crop in ((0, 0, 1), (0.5, 0.5, 1), (1, 1, 1)):
        np.testing.assert_array_equal(
            to_square(image, 120, ground=PADDED, crop=crop), to_square(image, 120, ground=PADDED)
        )
    whole = to_square(image, 150, ground=PADDED)
    for x, y in ((0, 0), (1, 0), (0.5, 1), (0.3, 0.7)):
        left = round(x * 30)
        top = round(y * 30)
        window = to_square(image, 120, ground=PADDED, crop=(x, y, 0.8))
        np.testing.assert_array_equal(window, whole[top : top + 120, left : left + 120])


# -------------------------------------------------------------- shapes that are kept

OFFERED = [(512, 512), (384, 640), (640, 384), (448, 576), (576, 448), (384, 704), (704, 384)]


def test_what_would_be_cut_through_keeps_its_shape(tmp_path):
    kept = {}
    for name, image in (("photo", _photograph()), ("drawing", _drawing())):
        image.save(tmp_path / "a.png")
        kept[name] = read_fitted(tmp_path / "a.png", "keep")
    assert kept["photo"].keeps and not kept["photo"].ground
    assert not kept["drawing"].keeps and kept["drawing"].ground == PADDED
    _photograph((40, 40)).save(tmp_path / "a.png")
    assert not read_fitted(tmp_path / "a.png", "keep").keeps, "it is a square"


def test_a_few_sizes_are_taken_that_cut_least():
    shapes = [(3000, 4000), (3024, 4032), (4000, 3000), (2000, 3000), (1080, 1920), (900, 1600)]
    found = sizes([*shapes, (4000, 2250), (3000, 4000)], OFFERED)
    assert len(set(found)) <= 3
    assert found[0] == found[1] == found[7] == (448, 576)
    for (h, w), (height, width) in zip([*shapes, (4000, 2250)], found, strict=False):
        assert (h > w) == (height > width)
    assert sizes([(3000, 4000)], OFFERED) == [(448, 576)]
    assert sizes([(500, 501)] * 3, OFFERED) == [(512, 512)] * 3
    assert sizes([(100, 102), (100, 98)], OFFERED) == [(512, 512)] * 2, "one more saves little"


def test_squares_stay_squares_beside_other_shapes():
    found = sizes([None, (400, 640), (640, 400), (300, 400), None], OFFERED)
    assert found[0] == found[4] == (512, 512) and len(set(found)) <= 3
    assert sizes([None, None], OFFERED) == [(512, 512)] * 2


def test_a_window_of_any_shape_is_the_largest_from_the_middle():
    image = np.random.default_rng(0).integers(0, 256, (40, 120, 3)).astype(np.uint8)
    np.testing.assert_array_equal(cut(image, (40, 60)), image[:, 30:90])
    np.testing.assert_array_equal(cut(image, (10, 120)), image[15:25])
    np.testing.assert_array_equal(cut(image, (40, 60), (1, 0, 1)), image[:, 60:])
    np.testing.assert_array_equal(cut(image, (20, 20)), to_square(image, 20))
