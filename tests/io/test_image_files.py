import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.image_files import (
    grid,
    read_image,
    read_mask,
    read_prompts,
    read_references,
    to_square,
    write_png,
)


@pytest.fixture
def picture():
    """Smooth [24, 36, 3], so that lossy formats stay close."""
    y, x = np.mgrid[0:24, 0:36]
    return np.stack([x * 7, y * 10, 255 - x * 3], axis=-1).astype(np.uint8)


def _near(found, expected, atol=1):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=atol)


def _error(call, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "gif"])
def test_formats_are_read(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    _near(read_image(path), picture, atol=20 if suffix == "gif" else 0)


def test_huge_png_is_refused_by_its_header(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "big.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")
    )
    limit = Image.MAX_IMAGE_PIXELS
    message = _error(read_image, tmp_path / "big.png")
    assert "60,000 x 60,000" in message and "3,600 million" in message and "100 million" in message
    assert Image.MAX_IMAGE_PIXELS == limit


def test_exif_rotation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is to be turned by a quarter, clockwise
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    _near(read_image(tmp_path / "a.jpg"), np.rot90(picture, -1), atol=6)


def test_transparency_is_laid_over_white(tmp_path, picture):
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 128
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "a.png")
    share = (alpha / 255)[..., None]
    _near(read_image(tmp_path / "a.png"), np.rint(picture * share + 255 * (1 - share)))
    gray = Image.fromarray(np.dstack([picture[..., 0], alpha]), "LA")
    gray.save(tmp_path / "la.png")
    _near(
        read_image(tmp_path / "la.png"),
        np.rint(picture[..., :1] * share + 255 * (1 - share)).repeat(3, -1),
    )


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
def test_cmyk_is_right(tmp_path, picture, suffix):
    inks = Image.fromarray(picture).convert("CMYK")
    inks.save(
        tmp_path / f"a.{suffix}", **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    _near(read_image(tmp_path / f"a.{suffix}"), picture, atol=8)


def test_gray_and_one_bit(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "a.png")
    _near(read_image(tmp_path / "a.png"), picture[..., :1].repeat(3, -1), atol=0)
    Image.fromarray(picture[..., 0] > 100).save(tmp_path / "b.png")
    _near(read_image(tmp_path / "b.png"), (picture[..., :1] > 100).repeat(3, -1) * 255, atol=0)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_gray_keeps_its_scale(tmp_path, suffix):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    _near(
        read_image(tmp_path / f"a.{suffix}"), np.rint(values / 257)[..., None].repeat(3, -1), atol=0
    )


def test_sixteen_bit_rgb_keeps_its_scale(tmp_path, picture):
    data = (picture.astype(np.uint16) * 257).astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 36 24 65535\n" + data)
    _near(read_image(tmp_path / "a.ppm"), picture)
    rows = b"".join(b"\0" + data[i : i + 36 * 6] for i in range(0, len(data), 36 * 6))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 36, 24, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    png = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    _near(read_image(tmp_path / "a.png"), picture)


def test_colour_profiles(tmp_path, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture).save(tmp_path / "srgb.png", icc_profile=profile)
    _near(read_image(tmp_path / "srgb.png"), picture)
    Image.fromarray(picture).save(tmp_path / "broken.png", icc_profile=b"not a profile")
    _near(read_image(tmp_path / "broken.png"), picture, atol=0)


def test_float_pixels_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    assert "a.tiff" in (message := _error(read_image, tmp_path / "a.tiff")) and "'F'" in message


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "3 frames" in _error(read_image, tmp_path / f"a.{suffix}")


def test_a_phone_photo_with_a_preview_is_one_image(tmp_path, picture):
    photo, preview = Image.fromarray(picture), Image.new("RGB", (8, 8))
    photo.save(
        tmp_path / "a.jpg",
        format="MPO",
        save_all=True,
        append_images=[preview],
        quality=100,
        subsampling=0,
    )
    _near(read_image(tmp_path / "a.jpg"), picture, atol=6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_files_are_refused(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    (tmp_path / f"a.{suffix}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 6 // 10])
    assert f"a.{suffix}" in _error(read_image, tmp_path / f"a.{suffix}")


def test_what_is_not_an_image(tmp_path, picture):
    (tmp_path / "a.png").write_text("hello")
    assert "not an image" in _error(read_image, tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    assert "empty" in _error(read_image, tmp_path / "b.png")
    write_png(tmp_path / "photo.png", picture)
    assert "did you mean 'photo.png'" in _error(read_image, tmp_path / "phto.png")
    assert "directory" in _error(read_image, tmp_path).lower()


def test_to_square_takes_the_middle(picture):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    middle, left = to_square(wide, 10), to_square(wide, 10, crop=(0, 0, 1))
    assert middle.min() > 180 and (middle[:, 3:-3] == 200).all()  # the rim sees what is next to it
    np.testing.assert_array_equal(to_square(wide.transpose(1, 0, 2), 10), middle.transpose(1, 0, 2))
    assert left.max() < 20 and (left[:, :-3] == 0).all()
    np.testing.assert_array_equal(to_square(picture, 12, crop=(1, 1, 0.5)), picture[12:, 24:])
    assert to_square(np.full((1, 900, 3), 7, np.uint8), 16).shape == (16, 16, 3)


def test_references_one_file_and_a_folder(tmp_path, picture, caplog):
    for name in ("red_house-2.png", "Cat.PNG", "copy.png"):
        write_png(tmp_path / name, picture if name != "Cat.PNG" else picture[::-1])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._red.png").write_text("x")
    one = read_references(str(tmp_path / "Cat.PNG"), " a cat ", "in crayon style")
    assert [(r.content, r.descriptor) for r in one] == [("a cat", "in crayon style")]
    assert len(one[0].sha256) == 64
    np.testing.assert_array_equal(one[0].image, picture[::-1])

    folder = read_references(str(tmp_path), "", "in crayon style")
    assert [r.content for r in folder] == ["Cat", "copy", "red house"]
    assert "red_house-2.png: the same image as" in caplog.text and "notes.txt" in caplog.text
    assert {r.content for r in read_references(str(tmp_path), "a thing", "s")} == {"a thing"}


def test_references_of_a_jsonl(tmp_path, picture):
    write_png(tmp_path / "sub" / "a.png", picture)
    path = tmp_path / "refs.jsonl"
    rows = [
        {"image": "sub/a.png", "content": "a cat", "descriptor": "in ink"},
        {"image": "sub/a.png", "content": "b"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    found = read_references(str(path), "", "in oil")
    assert [(r.content, r.descriptor) for r in found] == [("a cat", "in ink"), ("b", "in oil")]
    assert "line 3.descriptor" in _error(read_references, str(path), "", "")
    path.write_text('{"image": "sub/a.png", "contnt": "a cat"}')
    assert "did you mean 'content'" in _error(read_references, str(path), "", "s")
    path.write_text("{")
    assert "line 1" in _error(read_references, str(path), "", "s")
    path.write_text('{"image": "sub/ab.png", "content": "a cat", "descriptor": "s"}')
    assert "did you mean 'a.png'" in _error(read_references, str(path), "", "s")


def test_bundled_references_bring_their_words(tmp_path, picture, monkeypatch):
    write_png(tmp_path / "house-ink.png", picture)
    row = {
        "image": "house-ink.png",
        "content": "a house",
        "descriptor": "in ink",
        "credit": "someone",
    }
    (tmp_path / "references.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(image_files, "BUNDLED", tmp_path / "references.jsonl")
    (found,) = read_references("bundled:house-ink", "", "")
    assert (found.content, found.descriptor) == ("a house", "in ink")
    assert read_references("bundled:house-ink", "", "in odd lines")[0].descriptor == "in odd lines"
    assert "did you mean 'house-ink'" in _error(read_references, "bundled:house-inc", "", "")


def test_references_without_words_name_the_field(tmp_path, picture):
    write_png(tmp_path / "0001.png", picture)
    assert "config.reference.content" in _error(
        read_references, str(tmp_path / "0001.png"), "  ", "s"
    )
    assert "config.reference.content" in _error(read_references, str(tmp_path), "", "s")
    assert "config.reference.descriptor" in _error(read_references, str(tmp_path), "a house", "")
    assert "config.reference.image" in _error(read_references, "", "a house", "s")
    (tmp_path / "empty").mkdir()
    assert "no image" in _error(read_references, str(tmp_path / "empty"), "a", "s")


def test_masks(tmp_path):
    mask = np.zeros((6, 9, 3), np.uint8)
    mask[:2] = 255
    write_png(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (6, 9)), mask[..., 0] > 0)
    message = _error(read_mask, tmp_path / "m.png", (64, 32))
    assert "9 x 6" in message and "32 x 64" in message
    write_png(tmp_path / "m.png", mask * 0)
    assert "all black" in _error(read_mask, tmp_path / "m.png", (6, 9))


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffa  cat\r\n\n  a café \n".encode())
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "a café"]
    (tmp_path / "p.txt").write_text(" \n\n")
    assert "no prompt" in _error(read_prompts, tmp_path / "p.txt")
    (tmp_path / "p.txt").write_bytes("é".encode("latin-1"))
    assert "UTF-8" in _error(read_prompts, tmp_path / "p.txt")
    assert "did you mean 'p.txt'" in _error(read_prompts, tmp_path / "pp.txt")


def test_png_holds_what_was_written(tmp_path, picture):
    write_png(tmp_path / "new" / "a.png", picture.astype(np.float32) / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), picture)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grid_places_and_marks(picture):
    sheet = grid([picture, picture, picture / 255.0], columns=2, pad=3, marked=[1], scale=2)
    h, w = 2 * 24 + 6, 2 * 36 + 6
    assert sheet.shape == (2 * h, 2 * w, 3)
    big = picture.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(sheet[3 : h - 3, 3 : w - 3], big)
    np.testing.assert_array_equal(sheet[h + 3 : -3, 3 : w - 3], big)
    assert (
        (sheet[0, :w] == 255).all()
        and (sheet[0, w:] != 255).any(-1).all()
        and (sheet[h:, w:] == 255).all()
    )
    labelled = grid([picture] * 2, captions=["a house", "a very long caption that cannot fit"])
    assert labelled.shape[0] > 24 + 8 and (labelled[-14:] < 200).any()
