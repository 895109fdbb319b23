from pathlib import Path

import pytest

from styledrop_jax.io.captions import read_prompts, read_references
from styledrop_jax.io.image_files import read_image, read_mask
from styledrop_jax.io.paths import shown_path, stem_words


def _read_reference(path):
    return read_references(path, "a cat", "in ink")


def _read_mask(path):
    return read_mask(path, (4, 4))


@pytest.mark.parametrize("read", [read_image, _read_mask, read_prompts, _read_reference])
@pytest.mark.parametrize(
    "path",
    [
        "a watercolor of a house " * 13,  # 312 letters: a caption in place of a path
        "folder/" * 1000,
        "a" * 5000 + ".jsonl",
        "zero\0byte.png",
        "\ud800.png",
        "\udcff.png",
        "~nosuchuser/a.png",
        "two\nlines.png",
        "nowhere.png",
        "nowhere.csv",
        "/dev/null",
    ],
    ids=range(11),
)
def test_paths_that_cannot_be_are_one_short_line(refused, read, path):
    refused(read, path).encode()


def test_a_long_name_is_suggested_to_no_one(tmp_path, refused):
    (tmp_path / ("a" * 200 + ".png")).touch()
    assert "no such file" in refused(read_image, tmp_path / ("a" * 201 + ".png"))


def test_a_path_is_shown_in_one_line():
    assert shown_path("runs/mine/photo.png") == "runs/mine/photo.png"
    assert shown_path("two\nlines \ud800") == r"two\nlines \ud800"
    shown = shown_path("/home/me/" + "deep/" * 100 + "photo.png")
    assert len(shown) == 100 and shown.startswith("/home/me/deep") and shown.endswith("/photo.png")


@pytest.mark.parametrize(
    "name",
    """IMG_2023 IMG_20230401_101112 IMG_E1234
    DSC DSC01234 DSCN0001 DSCF1234 _MG_1234 P1010001 GOPR0001
    DJI_0012 100_1234 PXL_20230401_101112345 PXL_20230401_101112345.MP MVIMG_20230401 FB_IMG_1234
    20230401_101112 2023-04-01 0001 1 a untitled Untitled-1 image images(3) image0 photo-1 Photo_2
    picture download download(1) unnamed scan0001 copy final_new_2 test1 frame_000123
    3f2a9c01d4 d41d8cd98f00b204e9800998ecf8427e 0F8FAD5B-D9CB-469F-A165-70867728950E dQw4w9WgXcQ
    487654321_1234567890_n ComfyUI_00001_ 00012-123456789 Screenshot_20230101-101010_Chrome
    jane-doe-AbC12xYz9-unsplash pexels-jane-doe-12345 WhatsApp-Image-2023-01-01-at-10.00.00
    Bildschirmfoto-2023 Foto-1 Unbenannt 图片1 微信图片_20230401 名称未設定 스크린샷-1""".split()
    + [
        "Screenshot 2023-01-01 at 10.00.00\u202fAM",
        "Screen Shot 2023-01-01 at 10.00.00 PM",
        "ChatGPT Image Oct 1, 2025, 10_20_30 AM",
        "Photo on 1-1-23 at 10.00 AM",
        "sans titre",
        "スクリーンショット 2023-01-01",
    ],
)
def test_a_name_that_describes_no_image_has_no_words(name):
    assert stem_words(Path(f"folder/{name}.png")) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_house-2", "red house"),
        ("cat001", "cat"),
        ("a cmyk", "a cmyk"),
        ("3 cats", "3 cats"),
        ("photo of a house", "photo of a house"),
        ("new york 2", "new york"),
        ("IMG_2023 red house", "red house"),
        ("20230401-red-house", "red house"),
        ("cat 0F8FAD5B-D9CB-469F-A165-70867728950E", "cat"),
        ("red_house_3f2a9c01d4", "red house"),
        ("facade", "facade"),
        ("cafe\u0301", "café"),
        ("猫", "猫"),
        ("красный_дом-2", "красный дом"),
        ("बिल्ली", "बिल्ली"),
    ],
)
def test_the_words_of_a_name(name, words):
    assert stem_words(Path(f"folder/{name}.png")) == words
