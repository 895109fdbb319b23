import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from styledrop_jax.io.image_files import (
    as_mask,
    from_pillow,
    read_image,
    read_mask,
    to_square,
    write_png,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _near(found, expected, atol=1):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=atol)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_chunk(path, kind, data):
    """Puts a chunk into a PNG, right after its header."""
    png = path.read_bytes()
    path.write_bytes(png[:33] + _chunk(kind, data) + png[33:])


# --------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "gif", "avif", "jp2"])
def test_formats_are_read(tmp_path, image, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, lossless=True)  # WebP; the others have no such option
    _near(read_image(path), image, atol={"gif": 20, "avif": 20}.get(suffix, 0))


def test_the_first_layer_of_a_psd_is_read(tmp_path, image):
    h, w = image.shape[:2]
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, h, w, 8, 3)
    planes = image.transpose(2, 0, 1).tobytes()
    (tmp_path / "a.psd").write_bytes(header + bytes(12) + b"\0\0" + planes)
    _near(read_image(tmp_path / "a.psd"), image, atol=0)


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg", "a"])
def test_no_other_decoder_is_opened(tmp_path, image, refused, monkeypatch, name):
    def forbidden(*arguments):
        raise AssertionError("an EPS was opened")

    path = tmp_path / name
    Image.fromarray(image).save(path, format="EPS")
    monkeypatch.setitem(Image.OPEN, "EPS", (forbidden, None))
    assert "not an image of a format that is read; expected PNG" in refused(read_image, path)


def test_huge_png_is_refused_by_its_header(tmp_path, refused):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"x")
    (tmp_path / "big.png").write_bytes(png)
    limit = Image.MAX_IMAGE_PIXELS
    message = refused(read_image, tmp_path / "big.png")
    assert "60,000 x 60,000" in message and "3,600 million" in message and "100 million" in message
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused(tmp_path, refused, suffix):
    frames = []
    for colour in ("red", "green", "blue"):
        frames.append(Image.new("RGB", (8, 8), colour))
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "3 frames" in refused(read_image, tmp_path / f"a.{suffix}")


def test_a_phone_photo_with_a_preview_is_one_image(tmp_path, image):
    preview = Image.new("RGB", (8, 8))
    more = {"save_all": True, "append_images": [preview]}
    Image.fromarray(image).save(tmp_path / "a.jpg", "MPO", quality=100, subsampling=0, **more)
    _near(read_image(tmp_path / "a.jpg"), image, atol=6)


# --------------------------------------------------- what a file says beside


def test_exif_rotation_is_applied(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the image is to be turned by a quarter, clockwise
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    _near(read_image(tmp_path / "a.jpg"), np.rot90(image, -1), atol=6)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    _near(read_image(tmp_path / "a.png"), np.rot90(image, -1), atol=0)


def test_a_rotation_in_a_png_text_is_applied(tmp_path, image):
    path = tmp_path / "a.png"
    write_png(path, image)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    _with_chunk(path, b"iTXt", xmp)
    _near(read_image(path), np.rot90(image, -1), atol=0)


def test_broken_exif_is_ignored(tmp_path, image, caplog):
    write_png(tmp_path / "a.png", image)
    _with_chunk(tmp_path / "a.png", b"eXIf", b"no EXIF at all")
    _near(read_image(tmp_path / "a.png"), image, atol=0)
    assert "EXIF" in caplog.text


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_texts_of_megabytes_are_ignored(tmp_path, image, kind):
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("key", "é" * 2**20, zip=True)
    if kind == "zTXt":
        info.add_text("key", "a" * 2**21, zip=True)
    for i in range(70):  # Pillow's limits are one megabyte a text and 64 in all
        if kind == "tEXt":
            info.add_text(f"key {i}", "a" * 2**20)
    Image.fromarray(image).save(tmp_path / "a.png", pnginfo=info)
    _near(read_image(tmp_path / "a.png"), image, atol=0)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"pHYs", b"iCCP"])
def test_chunks_that_do_not_decide_pixels_may_be_broken(tmp_path, image, kind):
    for data in (b"", b"a", b"name\0\7broken", b"name\0\0broken"):
        write_png(tmp_path / "a.png", image)
        _with_chunk(tmp_path / "a.png", kind, data)
        _near(read_image(tmp_path / "a.png"), image, atol=0)


def test_colour_profiles(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "srgb.png", icc_profile=SRGB)
    _near(read_image(tmp_path / "srgb.png"), image)
    Image.fromarray(image).save(tmp_path / "broken.png", icc_profile=b"not a profile")
    _near(read_image(tmp_path / "broken.png"), image, atol=0)


def _swapped_profile():
    """An sRGB profile with red and green exchanged, and two megabytes of padding."""
    data = bytearray(SRGB)
    for i in range(struct.unpack_from(">I", data, 128)[0]):
        tag = 132 + 12 * i
        data[tag : tag + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(
            bytes(data[tag : tag + 4]), data[tag : tag + 4]
        )
    data += bytes(2**21)
    data[:4] = struct.pack(">I", len(data))
    return bytes(data)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_a_large_profile_is_applied(tmp_path, image, suffix):
    path = tmp_path / f"a.{suffix}"
    profile = _swapped_profile()
    Image.fromarray(image).save(path, icc_profile=profile, quality=100, subsampling=0)
    _near(read_image(path), image[..., [1, 0, 2]], atol=8)


def test_an_image_with_alpha_and_a_profile(tmp_path, image):
    layer = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    layer[:8, :, 3] = 0
    Image.fromarray(layer).save(tmp_path / "a.png", icc_profile=_swapped_profile())
    found = read_image(tmp_path / "a.png")
    assert (found[:8] == 255).all()
    _near(found[8:], image[8:, :, [1, 0, 2]], atol=8)


# ----------------------------------------------------------------- modes


def test_transparency_is_laid_over_white(tmp_path, image):
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:8] = 0
    alpha[8:16] = 128
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "a.png")
    share = (alpha / 255)[..., None]
    _near(read_image(tmp_path / "a.png"), np.rint(image * share + 255 * (1 - share)))
    gray = image[..., :1]
    Image.fromarray(np.dstack([gray, alpha]), "LA").save(tmp_path / "la.png")
    expected = np.rint(gray * share + 255 * (1 - share))
    _near(read_image(tmp_path / "la.png"), expected.repeat(3, -1))


def test_palette_with_and_without_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 128, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    expected = np.full((2, 4, 3), (255, 0, 0))
    expected[0, 1] = (0, 128, 0)
    _near(read_image(tmp_path / "a.png"), expected, atol=0)
    image.save(tmp_path / "b.png", transparency=0)
    expected[(expected == (255, 0, 0)).all(-1)] = 255
    _near(read_image(tmp_path / "b.png"), expected, atol=0)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_is_right(tmp_path, image, suffix):
    inks = Image.fromarray(image).convert("CMYK")
    inks.save(tmp_path / f"a.{suffix}", quality=100, subsampling=0)
    _near(read_image(tmp_path / f"a.{suffix}"), image, atol=8)


def test_gray_and_one_bit(tmp_path, image):
    gray = image[..., :1]
    Image.fromarray(gray[..., 0]).save(tmp_path / "a.png")
    _near(read_image(tmp_path / "a.png"), gray.repeat(3, -1), atol=0)
    Image.fromarray(gray[..., 0] > 100).save(tmp_path / "b.png")
    _near(read_image(tmp_path / "b.png"), (gray > 100).repeat(3, -1) * 255, atol=0)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_gray_keeps_its_scale(tmp_path, suffix):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = np.rint(values / 257)[..., None].repeat(3, -1)
    _near(read_image(tmp_path / f"a.{suffix}"), expected, atol=0)


def test_sixteen_bit_gray_with_a_transparent_value(tmp_path):
    values = np.full((4, 4), 1000, np.uint16)
    values[0] = 7
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    found = read_image(tmp_path / "a.png")
    assert (found[0] == 255).all() and (found[1:] == 4).all()


def test_sixteen_bit_rgb_keeps_its_scale(tmp_path, image):
    data = (image.astype(np.uint16) * 257).astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 36 24 65535\n" + data)
    _near(read_image(tmp_path / "a.ppm"), image)
    rows = b""
    for start in range(0, len(data), 36 * 6):
        rows += b"\0" + data[start : start + 36 * 6]
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 36, 24, 16, 2, 0, 0, 0))
    png += _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    _near(read_image(tmp_path / "a.png"), image)


def test_float_pixels_are_refused_by_name(tmp_path, refused):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    message = refused(read_image, tmp_path / "a.tiff")
    assert "a.tiff" in message and "'F'" in message


# -------------------------------------------------------------- bad files


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_files_are_refused(tmp_path, refused, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    (tmp_path / f"a.{suffix}").write_bytes(whole[: len(whole) * 6 // 10])
    assert f"a.{suffix}" in refused(read_image, tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("take", [from_pillow, lambda image: as_mask(image, (4, 4))])
def test_a_picture_that_a_program_would_decode_is_refused_in_memory(take, image, refused):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="EPS")
    buffer.seek(0)
    assert "an image of the kind EPS" in refused(take, Image.open(buffer))


def test_what_is_not_an_image(tmp_path, image, refused):
    (tmp_path / "a.png").write_text("hello")
    assert "not an image" in refused(read_image, tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    assert "empty" in refused(read_image, tmp_path / "b.png")
    write_png(tmp_path / "photo.png", image)
    assert "did you mean 'photo.png'" in refused(read_image, tmp_path / "phto.png")
    assert "directory" in refused(read_image, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(read_image, tmp_path / "pipe")


# ------------------------------------------------------------ masks, sizes


def _layer(shape=(60, 90)):
    """A transparent layer, and a painted spot in it: uint8 [h, w, 4], bool [h, w]."""
    spot = np.zeros(shape, bool)
    spot[10:30, 20:50] = True
    return np.zeros((*shape, 4), np.uint8), spot


def _mask_of(path, pixels):
    Image.fromarray(pixels).save(path)
    h, w = pixels.shape[:2]
    return read_mask(path, (h, w))


def test_masks(tmp_path, refused):
    mask = np.zeros((6, 9, 3), np.uint8)
    mask[:2] = 255
    path = tmp_path / "m.png"
    write_png(path, mask)
    np.testing.assert_array_equal(read_mask(path, (6, 9)), mask[..., 0] > 0)
    message = refused(read_mask, path, (64, 32))
    assert "9 x 6" in message and "32 x 64" in message
    write_png(path, mask * 0)
    assert "all black" in refused(read_mask, path, (6, 9))
    write_png(path, mask * 0 + 255)
    assert "the whole image" in refused(read_mask, path, (6, 9))


def test_an_opaque_mask_with_an_alpha_channel_is_read_by_its_colours(tmp_path, caplog):
    mask, spot = _layer()
    mask[spot, :3] = 255
    for alpha in (255, 254, 100):
        mask[..., 3] = alpha
        np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", mask), spot)
    assert not caplog.text


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (0, 0, 128), (90, 90, 90)])
@pytest.mark.parametrize("alpha", [255, 100])
def test_what_is_painted_on_a_transparent_layer_is_generated_anew(tmp_path, caplog, colour, alpha):
    layer, spot = _layer()
    layer[spot] = (*colour, alpha)
    np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", layer), spot)
    layer[~spot, :3] = 255  # the colour under full transparency is nobody's
    np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", layer), spot)
    assert not caplog.text


def test_a_layer_of_a_palette_and_of_a_soft_brush(tmp_path):
    layer, spot = _layer()
    layer[spot] = (255, 0, 0, 255)
    Image.fromarray(layer).quantize(4).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png", (60, 90)), spot)
    x = np.linspace(0, 255, 90).astype(np.uint8)
    layer[:] = (255, 0, 0, 0)
    layer[..., 3] = x
    np.testing.assert_array_equal(_mask_of(tmp_path / "soft.png", layer)[0], x >= 128)


def test_a_black_layer_keeps_what_is_painted(tmp_path, caplog):
    layer, spot = _layer()
    layer[spot] = (0, 0, 0, 255)
    np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", layer), ~spot)
    assert "the transparent part is generated anew" in caplog.text and "m.png" in caplog.text


def test_black_and_white_on_a_layer(tmp_path, caplog):
    layer, spot = _layer()
    layer[40:] = (0, 0, 0, 255)
    layer[spot] = 255
    np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", layer), spot)
    assert "black or transparent is kept" in caplog.text


def test_an_image_with_a_hole_is_generated_anew_in_the_hole(tmp_path, caplog):
    layer, spot = _layer()
    layer[...] = np.random.default_rng(0).integers(0, 255, layer.shape)
    layer[..., 3] = 255
    layer[spot, 3] = 0
    np.testing.assert_array_equal(_mask_of(tmp_path / "m.png", layer), spot)
    assert "that part is generated anew" in caplog.text


def test_a_layer_that_marks_nothing(tmp_path, refused):
    layer, spot = _layer()
    assert "all transparent" in refused(_mask_of, tmp_path / "m.png", layer)


def test_to_square_takes_the_middle(image):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    middle = to_square(wide, 10)
    assert middle.min() > 180 and (middle[:, 3:-3] == 200).all()  # the rim sees what is next to it
    np.testing.assert_array_equal(to_square(wide.transpose(1, 0, 2), 10), middle.transpose(1, 0, 2))
    left = to_square(wide, 10, crop=(0, 0, 1))
    assert left.max() < 20 and (left[:, :-3] == 0).all()
    np.testing.assert_array_equal(to_square(image, 12, crop=(1, 1, 0.5)), image[12:, 24:])
    assert to_square(np.full((1, 900, 3), 7, np.uint8), 16).shape == (16, 16, 3)


def test_png_holds_what_was_written(tmp_path, image):
    write_png(tmp_path / "new" / "a.png", image.astype(np.float32) / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), image)
    assert os.listdir(tmp_path / "new") == ["a.png"]
