"""Using a finished run: the same words and seed give the same bits, and an edit changes what it was told to."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

from styledrop_jax.adapters.base import load_adapter, save_adapter
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl, write_json

ADAPTER = "round_2/adapter.safetensors"


def _draw(out, *words, command="sample", run=None):
    """Runs a command that draws; returns (line of images.jsonl, bytes of the PNG) for each image."""
    name = "--style" if command == "mix" else "--run"
    assert tiny.styledrop(command, name, run or tiny.finished(), "--out", out, *words) == 0
    lines = read_jsonl(out / "images.jsonl")
    return [(line, (out / line["file"]).read_bytes()) for line in lines]


def _pictures(drawn):
    return [picture for _, picture in drawn]


def _refused(capfd, *words):
    """The one line of a command that ends with exit code 2."""
    assert tiny.styledrop(*words) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def _subject(folder):
    """Another run on the same base: what the finished one was after its first round."""
    workdir = shutil.copytree(tiny.finished(), folder)
    shutil.copy(workdir / "round_1" / "adapter.safetensors", workdir / ADAPTER)
    return workdir


# -------------------------------------------------------------- sample


def test_sample_draws_what_the_run_drew(tmp_path):
    """The pictures of a round, and of the base model, come back from their words and seeds alone."""
    run = tiny.finished()
    for number, stage in ((0, "base"), (1, "round_1"), (2, "round_2")):
        row = read_jsonl(run / stage / "scores.jsonl")[0]
        words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1, "--round", number]
        ((line, picture),) = _draw(tmp_path / stage, *words)
        assert picture == (run / stage / row["file"]).read_bytes()
        assert line["text"] == row["text"] and line["round"] == number


def test_a_picture_does_not_depend_on_what_it_is_drawn_with(tmp_path):
    alone = _draw(tmp_path / "alone", "--prompt", "a cat", "--seed", 5, "--num", 1)
    among = _draw(
        tmp_path / "among", "--prompt", "a red house", "--prompt", "a cat", "--seed", 3, "--num", 3
    )
    assert [(line["prompt"], line["seed"]) for line, _ in among] == [
        (prompt, seed) for prompt in ("a red house", "a cat") for seed in (3, 4, 5)
    ]
    assert _pictures(among)[5] == _pictures(alone)[0]
    assert len(set(_pictures(among))) > 3
    assert image_files.read_image(tmp_path / "among" / "grid.png").shape[0] > tiny.RESOLUTION


def test_a_line_of_images_jsonl_reproduces_its_picture(tmp_path):
    words = [
        "--prompt",
        "a cat",
        "--seed",
        7,
        "--num",
        2,
        "--round",
        1,
        "--negative-prompt",
        "a red house",
    ]
    first = _draw(
        tmp_path / "first", *words, "--lambda-a", 0.5, "--lambda-b", 1.5, "--temperature", 2
    )
    line, picture = first[0]
    flags = (
        "round",
        "seed",
        "lambda_a",
        "lambda_b",
        "steps",
        "temperature",
        "negative_prompt",
        "batch_size",
    )
    words = [word for name in flags for word in (f"--{name.replace('_', '-')}", line[name])]
    again = _draw(
        tmp_path / "again",
        "--prompt",
        line["text"],
        "--descriptor=",
        "--num",
        1,
        *words,
        run=line["run"],
    )
    assert _pictures(again) == [picture]
    assert line["base_hash"] == read_json(tiny.finished() / "manifest.json")["base"]["hash"]
    assert {"version", "jax", "device", "adapter", "lambda_ramp"} <= set(line)
    plain = _draw(tmp_path / "plain", "--prompt", "a cat", "--seed", 7, "--num", 1, "--round", 1)
    assert _pictures(plain) != [picture], "the flags did nothing"


def test_the_descriptor_is_added_once_and_can_be_changed(tmp_path):
    whole = "a cat in watercolor painting style"
    for name, words, text in (
        ("own", ["--prompt", "a cat"], whole),
        ("there", ["--prompt", whole], whole),
        ("none", ["--prompt", "a cat", "--descriptor="], "a cat"),
        ("other", ["--prompt", "a cat", "--descriptor", "in red"], "a cat in red"),
    ):
        ((line, _),) = _draw(tmp_path / name, *words, "--num", 1)
        assert line["text"] == text


def test_prompts_of_any_script_have_their_own_files(tmp_path, capfd):
    prompts = ["赤い家", "قطة", "🐱", "🐶", "a cat!", "a cat?", "../../up", "𠮷" * 80]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    drawn = _draw(tmp_path / "out", "--prompt-file", path, "--num", 1)
    assert [line["prompt"] for line, _ in drawn] == prompts
    files = {line["file"] for line, _ in drawn}
    assert len(files) == len(prompts) and not any("/" in file for file in files)
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {
        "grid.png",
        "images.jsonl",
    }
    assert any("赤い家" in file for file in files)
    assert "cut: " in capfd.readouterr().err, (
        "the long one is over the limit of tokens, and the user is told"
    )


def test_drawing_into_the_same_folder_keeps_what_is_there(tmp_path):
    first = _draw(tmp_path, "--prompt", "a cat", "--num", 1)
    both = _draw(tmp_path, "--prompt", "a cat", "--num", 1, "--lambda-a", 0)
    assert both[:1] == first and len({line["file"] for line, _ in both}) == 2


def test_without_out_the_pictures_go_into_the_run(tmp_path):
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    assert tiny.styledrop("sample", "--run", run, "--prompt", "a cat", "--num", 1) == 0
    assert len(read_jsonl(run / "drawn" / "images.jsonl")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--prompt: missing"),
        (["--prompt", " "], "--prompt: empty"),
        (["--prompt", "a cat", "--num", 0], "--num: found 0"),
        (["--prompt", "a cat", "--seed", -1], "--seed: found -1"),
        (["--prompt", "a cat", "--seed", 2**32], "--seed: found"),
        (["--prompt", "a cat", "--steps", 0], "--steps: found 0"),
        (["--prompt", "a cat", "--batch-size", 0], "--batch-size: found 0"),
        (["--prompt", "a cat", "--temperature", "nan"], "--temperature: found nan"),
        (["--prompt", "a cat", "--lambda-a", "inf"], "--lambda-a: found inf"),
        (["--prompt", "a cat", "--lambda-b", -1], "--lambda-b: found -1"),
        (["--prompt", "a cat", "--round", 3], "--round: found 3, rounds of"),
        (["--prompt", "a cat", "--num", "many"], "--num"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(tmp_path, capfd, words, message):
    out = tmp_path / "out"
    assert message in _refused(capfd, "sample", "--run", tiny.finished(), "--out", out, *words)
    assert not out.exists()


def test_what_is_no_run_of_ours_is_one_line(tmp_path, capfd):
    words = ["--prompt", "a cat"]
    assert "no such run folder" in _refused(capfd, "sample", "--run", tmp_path / "nowhere", *words)
    assert "not a run folder" in _refused(capfd, "sample", "--run", tmp_path, *words)
    write_json(tmp_path / "config.json", {"task": "vq"})  # what pretraining leaves
    assert "styledrop personalize" in _refused(capfd, "sample", "--run", tmp_path, *words)


def test_a_base_model_that_is_another_now_is_refused(tmp_path, capfd):
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"base": str(tiny.other_models() / "muse")})
    error = _refused(capfd, "sample", "--run", run, "--prompt", "a cat")
    assert "adapter.safetensors: trained on base model" in error
    assert not (run / "drawn").exists()


# -------------------------------------------------------------- mix


def test_mix_goes_from_the_style_to_the_subject(tmp_path):
    subject = _subject(tmp_path / "subject")
    words = ["--prompt", "a cat", "--num", 2]
    style_alone = _draw(tmp_path / "style", *words)
    subject_alone = _draw(tmp_path / "alone", *words, "--descriptor=", run=subject)
    mixed = {
        gamma: _draw(
            tmp_path / str(gamma), *words, "--subject", subject, "--gamma", gamma, command="mix"
        )
        for gamma in (0, 0.6, 1)
    }
    assert _pictures(mixed[0]) == _pictures(style_alone)
    assert _pictures(mixed[1]) == _pictures(subject_alone)
    assert _pictures(mixed[0.6]) not in (_pictures(style_alone), _pictures(subject_alone))
    line = mixed[0.6][0][0]
    assert (
        line["gamma"] == 0.6
        and line["subject"]["run"] == str(subject)
        and line["run"] == str(tiny.finished())
    )


def test_mix_says_what_does_not_fit(tmp_path, capfd):
    line = ["mix", "--style", tiny.finished(), "--prompt", "a cat", "--subject"]
    for gamma in (-0.1, 1.5, "nan"):
        assert "--gamma: found" in _refused(capfd, *line, tiny.finished(), "--gamma", gamma)
    assert "--round: 0" in _refused(capfd, *line, tiny.finished(), "--round", 0)

    other = _subject(tmp_path / "other")
    file = load_adapter(other / ADAPTER)
    kept = {"base_name": "another", "config": file.config, "round": 2, "extra": file.extra}
    save_adapter(other / ADAPTER, dict(file.tensors), base_hash="0" * 64, **kept)
    assert "trained on base model another" in _refused(capfd, *line, other)


# -------------------------------------------------------------- edit


@pytest.fixture
def photo(tmp_path):
    """A picture that is wider than high, and a mask that is white on the left half of its middle square."""
    image = tiny.picture(tmp_path / "photo.png", seed=3, size=(48, 32))
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 8:24] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return image, tmp_path / "mask.png"


def _edit(out, image, *words):
    return _draw(out, "--image", image, "--prompt", "a cat", *words, command="edit")


def test_edit_keeps_every_pixel_outside_the_mask(tmp_path, photo):
    image, mask = photo
    before = image.read_bytes(), mask.read_bytes()
    drawn = _edit(tmp_path / "out", image, "--mask", mask, "--num", 2)
    assert (image.read_bytes(), mask.read_bytes()) == before
    square = image_files.to_square(image_files.read_image(image), tiny.RESOLUTION)
    half = tiny.RESOLUTION // 2
    for line, _ in drawn:
        picture = image_files.read_image(tmp_path / "out" / line["file"])
        assert np.array_equal(picture[:, half:], square[:, half:])
        assert not np.array_equal(picture[:, :half], square[:, :half])
        assert line["image"] == str(image) and line["mask"] == str(mask) and line["strength"] == 1
    again = _edit(tmp_path / "again", image, "--mask", mask, "--num", 2)
    assert _pictures(again) == _pictures(drawn)


def test_a_rotated_photo_takes_a_mask_as_it_is_seen(tmp_path, photo):
    image, mask = photo
    exif = Image.Exif()
    exif[274] = 6
    turned = tmp_path / "turned.png"
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    words = ["--mask", mask, "--num", 1]
    assert _pictures(_edit(tmp_path / "a", turned, *words)) == _pictures(
        _edit(tmp_path / "b", image, *words)
    )


def test_an_edit_without_a_mask_is_of_the_whole_picture(tmp_path, photo):
    drawn = _edit(tmp_path / "out", photo[0], "--num", 2)
    assert [line["strength"] for line, _ in drawn] == [0.5, 0.5] and {
        line["mask"] for line, _ in drawn
    } == {""}
    words = ["--prompt", "a cat", "--num", 2, "--strength", 0.5]
    assert _pictures(drawn) == _pictures(_stylize(tmp_path / "stylized", photo[0], *words))
    assert image_files.read_image(tmp_path / "out" / "grid.png").shape == (
        8 * 16 + 8 + 14,
        3 * (8 * 16 + 8),
        3,
    )


def test_edits_that_cannot_be_are_one_line(tmp_path, capfd, photo):
    image, mask = photo
    out = tmp_path / "out"
    line = ["edit", "--run", tiny.finished(), "--out", out, "--prompt", "a cat", "--image"]
    for strength in (0, 1.5, "nan"):
        assert "--strength: found" in _refused(
            capfd, *line, image, "--mask", mask, "--strength", strength
        )
    Image.open(mask).resize((32, 32)).save(tmp_path / "small.png")
    assert "the mask is 32 x 32 pixels; expected" in _refused(
        capfd, *line, image, "--mask", tmp_path / "small.png"
    )
    Image.new("L", (48, 32)).save(tmp_path / "black.png")
    assert "all black" in _refused(capfd, *line, image, "--mask", tmp_path / "black.png")
    border = Image.new("L", (48, 32))
    border.paste(255, (0, 0, 6, 32))
    border.save(tmp_path / "border.png")
    assert "middle square" in _refused(capfd, *line, image, "--mask", tmp_path / "border.png")
    assert "no such file" in _refused(capfd, *line, tmp_path / "nowhere.png", "--mask", mask)
    (tmp_path / "text.png").write_text(json.dumps({}), encoding="utf-8")
    assert "not an image" in _refused(capfd, *line, tmp_path / "text.png", "--mask", mask)
    assert not out.exists()


# -------------------------------------------------------------- stylize


def _stylize(out, image, *words, run=None):
    return _draw(out, "--image", image, *words, command="stylize", run=run)


def test_strength_is_how_much_of_a_picture_is_drawn_anew(tmp_path, photo, capfd):
    words = ["--prompt", "a cat"]
    drawn = _stylize(
        tmp_path / "all", photo[0], *words, "--strength", 0.01, "--strength", 0.5, "--strength", 1
    )
    assert "photo.png: not of an aspect that this model draws" in capfd.readouterr().err
    assert [line["strength"] for line, _ in drawn] == [0.01, 0.5, 1] and len(
        set(_pictures(drawn))
    ) == 3
    anew = _draw(tmp_path / "anew", *words, "--num", 1)
    assert _pictures(drawn)[2:] == _pictures(anew), "nothing of the picture is left"
    assert image_files.read_image(tmp_path / "all" / "grid.png").shape == (
        8 * 16 + 8 + 14,
        4 * (8 * 16 + 8),
        3,
    )


def test_every_picture_of_a_folder_is_drawn_by_its_name_as_it_is_alone(tmp_path):
    folder = tmp_path / "photos"
    for i, name in enumerate(("a_cat-1.png", "a red house.jpg", "house.png")):
        tiny.picture(folder / name, seed=i, size=(16, 16))
    drawn = _stylize(tmp_path / "all", folder, "--num", 2, "--seed", 5)
    assert [(line["prompt"], line["seed"]) for line, _ in drawn] == [
        (prompt, seed) for prompt in ("a red house", "a cat", "house") for seed in (5, 6)
    ]
    line, picture = drawn[3]
    assert line["text"] == "a cat in watercolor painting style" and line["image"] == str(
        folder / "a_cat-1.png"
    )
    assert line["sha256"] == hashlib.sha256((folder / "a_cat-1.png").read_bytes()).hexdigest()
    flags = (
        "round",
        "seed",
        "strength",
        "lambda_a",
        "lambda_b",
        "steps",
        "temperature",
        "batch_size",
    )
    words = [word for name in flags for word in (f"--{name.replace('_', '-')}", line[name])]
    again = _stylize(
        tmp_path / "again", line["image"], "--prompt", line["text"], *words, run=line["run"]
    )
    assert _pictures(again) == [picture]
    other = _stylize(tmp_path / "other", folder / "house.png", "--prompt", line["text"], *words)
    assert _pictures(other) != [picture], "the picture did nothing"


def test_pictures_that_cannot_be_stylized_are_one_line(tmp_path, capfd, photo):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    line = ["stylize", "--run", tiny.finished(), "--out", out, "--prompt", "a cat", "--image"]
    for strength in (0, 1.5, "nan"):
        assert "--strength: found" in _refused(
            capfd, *line, photo[0], "--strength", 0.5, "--strength", strength
        )
    assert "no image in this folder" in _refused(capfd, *line, tmp_path / "empty")
    assert "not an image" in _refused(capfd, *line, tmp_path / "text.png")
    assert "nowhere.png: no such file" in _refused(capfd, *line, tmp_path / "nowhere.png")
    nameless = tiny.picture(tmp_path / "0001.png")
    assert "has no words" in _refused(capfd, *line[:5], "--image", nameless)
    assert not out.exists()
