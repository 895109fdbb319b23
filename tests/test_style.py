"""Using a finished run: the same words give the same image, an edit what it was told to."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import runs
import tiny
from PIL import Image
from safetensors.numpy import load_file

from styledrop_jax.adapters.base import load_adapter, save_adapter
from styledrop_jax.io import image_files
from styledrop_jax.io.files import JsonLines, read_json, read_jsonl, write_json
from styledrop_jax.style import Style

ADAPTER = "round_2/adapter.safetensors"
ROW = (4 * 32 + 8 + 14, 4 * 48 + 8)  # pixels of a photo on a sheet, enlarged, and what is around it


def _samples(out, *words, command="sample", run=None):
    """Runs a command that samples; returns (line of images.jsonl, bytes of the PNG) of each."""
    name = "--style" if command == "mix" else "--run"
    assert tiny.styledrop(command, name, run or tiny.finished(), "--out", out, *words) == 0
    lines = read_jsonl(out / "images.jsonl")
    return [(line, (out / line["file"]).read_bytes()) for line in lines]


def _images(samples):
    return [image for _, image in samples]


def _flags(line, *names):
    """The flags of a command that say what a line of images.jsonl says."""
    words = []
    for name in names:
        words += [f"--{name.replace('_', '-')}", line[name]]
    return words


def _subject(folder):
    """Another run on the same base: what the finished one was after its first round."""
    workdir = shutil.copytree(tiny.finished(), folder)
    shutil.copy(workdir / "round_1" / "adapter.safetensors", workdir / ADAPTER)
    return workdir


# -------------------------------------------------------------- sample


def test_sample_makes_what_the_run_made(tmp_path):
    """The images of a round, and of the base model, come back from their words and seeds alone."""
    run = tiny.finished()
    for number, stage in ((0, "base"), (1, "round_1"), (2, "round_2")):
        row = read_jsonl(run / stage / "scores.jsonl")[0]
        words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1, "--round", number]
        ((line, image),) = _samples(tmp_path / stage, *words)
        assert image == (run / stage / row["file"]).read_bytes()
        assert line["text"] == row["text"] and line["round"] == number


def test_an_image_does_not_depend_on_what_it_is_sampled_with(tmp_path):
    alone = _samples(tmp_path / "alone", "--prompt", "a cat", "--seed", 5, "--num", 1)
    words = ["--prompt", "a red house", "--prompt", "a cat", "--seed", 3, "--num", 3]
    among = _samples(tmp_path / "among", *words)
    found = [(line["prompt"], line["seed"]) for line, _ in among]
    assert found == [(prompt, seed) for prompt in ("a red house", "a cat") for seed in (3, 4, 5)]
    first = image_files.read_image(tmp_path / "alone" / alone[0][0]["file"]).astype(int)
    again = image_files.read_image(tmp_path / "among" / among[5][0]["file"])
    assert np.abs(again - first).max() <= 1, "but for how its place in a batch rounds"
    assert len(set(_images(among))) > 3
    assert image_files.read_image(tmp_path / "among" / "grid.png").shape[0] > tiny.RESOLUTION


def test_a_line_of_images_jsonl_reproduces_its_image(tmp_path):
    words = ["--prompt", "a cat", "--seed", 7, "--num", 2, "--round", 1]
    changed = ["--lambda-a", 0.5, "--lambda-b", 1.5, "--temperature", 2]
    changed += ["--negative-prompt", "a red house"]
    line, image = _samples(tmp_path / "first", *words, *changed)[0]
    names = ("round", "seed", "lambda_a", "lambda_b", "steps", "temperature", "negative_prompt")
    flags = _flags(line, *names, "batch_size")
    flags += ["--prompt", line["text"], "--descriptor=", "--num", 1]
    assert _images(_samples(tmp_path / "again", *flags, run=line["run"])) == [image]
    assert line["base_hash"] == read_json(tiny.finished() / "manifest.json")["base"]["hash"]
    assert {"version", "jax", "device", "adapter", "lambda_ramp", "sampler"} <= set(line)
    plain = _samples(tmp_path / "plain", *words)
    assert image not in _images(plain), "the flags did nothing"


def test_the_descriptor_is_added_once_and_can_be_changed(tmp_path):
    whole = "a cat in watercolor painting style"
    for name, words, text in (
        ("own", ["--prompt", "a cat"], whole),
        ("there", ["--prompt", whole], whole),
        ("none", ["--prompt", "a cat", "--descriptor="], "a cat"),
        ("other", ["--prompt", "a cat", "--descriptor", "in red"], "a cat in red"),
    ):
        ((line, _),) = _samples(tmp_path / name, *words, "--num", 1)
        assert line["text"] == text


def test_a_long_prompt_is_read_whole_where_that_is_asked_for(tmp_path, caplog):
    words = ["--prompt", "a cat, " + "a red house " * 6, "--seed", 3, "--num", 1]
    ((line, cut),) = _samples(tmp_path / "cut", *words)
    assert "long_prompts" not in line
    assert "cut: " in caplog.text and "the option long_prompts has" in caplog.text
    caplog.clear()
    ((line, whole),) = _samples(tmp_path / "whole", *words, "--long-prompts")
    assert line["long_prompts"] is True and whole != cut
    assert "cut: " not in caplog.text
    ((_, short),) = _samples(tmp_path / "short", "--prompt", "a cat", "--num", 1)
    ((_, same),) = _samples(tmp_path / "same", "--prompt", "a cat", "--num", 1, "--long-prompts")
    assert short == same


def test_weights_are_refused_where_they_do_nothing(tmp_path, capfd):
    words = ["sample", "--run", tiny.finished(), "--prompt", "a (cat:1.3)", "--out", tmp_path]
    assert "prompt_weights: found true, expected false" in runs.refused(
        capfd, *words, "--prompt-weights"
    )


def test_prompts_of_any_script_have_their_own_files(tmp_path, caplog):
    prompts = ["赤い家", "قطة", "🐱", "🐶", "a cat!", "a cat?", "../../up", "𠮷" * 80]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    samples = _samples(tmp_path / "out", "--prompt-file", path, "--num", 1)
    assert "cut: " in caplog.text, "the long one is over the limit of tokens"
    assert [line["prompt"] for line, _ in samples] == prompts
    files = {line["file"] for line, _ in samples}
    assert len(files) == len(prompts) and not any("/" in file for file in files)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == files | {"grid.png", "images.jsonl"}
    assert any("赤い家" in file for file in files)


def test_sampling_into_the_same_folder_keeps_what_is_there(tmp_path):
    first = _samples(tmp_path, "--prompt", "a cat", "--num", 1)
    both = _samples(tmp_path, "--prompt", "a cat", "--num", 1, "--lambda-a", 0)
    assert both[:1] == first and len({line["file"] for line, _ in both}) == 2


def test_a_command_that_was_stopped_is_continued_by_itself(tmp_path):
    photo = tiny.picture(tmp_path / "a house.png")
    sampling = ["--prompt", "a cat", "--prompt", "a red house", "--num", 2, "--batch-size", 2]
    for command, words in (("sample", sampling), ("stylize", ["--image", photo, "--num", 2])):
        whole, broken = tmp_path / f"{command} whole", tmp_path / command
        line = [command, "--run", tiny.finished(), *words, "--out"]
        assert tiny.styledrop(*line, whole) == 0
        deaths = 0
        while runs.command_until_death(broken, 3, *line, broken):
            deaths += 1
        assert deaths > 1
        assert _bytes(broken) == _bytes(whole)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_made_of_something_else_is_made_anew(tmp_path):
    """An image or an adapter under a path that held another one before."""
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    photo = tiny.picture(tmp_path / "photo.png")
    words = ["edit", "--run", run, "--image", photo, "--prompt", "a cat", "--num", 1, "--round", 1]

    def lines():
        assert tiny.styledrop(*words, "--out", tmp_path / "out") == 0
        return len(read_jsonl(tmp_path / "out" / "images.jsonl"))

    assert lines() == 1
    assert lines() == 1, "it is there"
    tiny.picture(photo, seed=1)
    assert lines() == 2
    shutil.copy(run / "round_2" / "adapter.safetensors", run / "round_1" / "adapter.safetensors")
    assert lines() == 3


def test_two_commands_at_once_into_one_folder_lose_nothing(tmp_path, capfd):
    first = _samples(tmp_path, "--prompt", "a cat", "--num", 1)
    words = ["sample", "--run", tiny.finished(), "--out", tmp_path, "--prompt", "a cat"]
    with JsonLines(tmp_path / "images.jsonl", alone=True):  # as another process would have it
        error = runs.refused(capfd, *words, "--num", 2)
    assert f"{tmp_path}: another command writes into this folder" in error
    assert len(list(tmp_path.glob("*.png"))) == 2, "the first image and its sheet"
    assert _samples(tmp_path, "--prompt", "a cat", "--num", 1)[:1] == first


def test_without_out_the_images_go_into_the_run(tmp_path):
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
        (["--prompt", "a cat", "--sampler", "hein"], "--sampler: found 'hein', expected one of"),
        (["--prompt", "a cat", "--steps", 10**9], "--steps: found 1000000000"),
        (["--prompt", "a cat", "--batch-size", 0], "--batch-size: found 0"),
        (["--prompt", "a cat", "--temperature", "nan"], "--temperature: found nan"),
        (["--prompt", "a cat", "--lambda-a", "inf"], "--lambda-a: found inf"),
        (["--prompt", "a cat", "--lambda-b", -1], "--lambda-b: found -1"),
        (["--prompt", "a cat", "--round", 3], "round: found 3, rounds of"),
        (["--prompt", "a cat", "--round", -1], "round: found -1, rounds of"),
        (["--prompt", "a cat", "--num", "many"], "--num"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(tmp_path, capfd, words, message):
    out = tmp_path / "out"
    line = ["sample", "--run", tiny.finished(), "--out", out, *words]
    assert message in runs.refused(capfd, *line)
    assert not out.exists()


def test_what_is_no_run_of_ours_is_one_line(tmp_path, capfd):
    def error(folder):
        return runs.refused(capfd, "sample", "--run", folder, "--prompt", "a cat")

    assert "no such run folder" in error(tmp_path / "nowhere")
    assert "not a run folder" in error(tmp_path)
    write_json(tmp_path / "config.json", {"task": "vq"})  # what pretraining leaves
    assert "styledrop personalize" in error(tmp_path)
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    for manifest in ("[1]", "{}", '{"references": 3}', '{"references": [3]}', "[" * 200_000):
        (run / "manifest.json").write_text(manifest, encoding="utf-8")
        assert "manifest.json" in error(run) or "styledrop personalize" in error(run)
    write_json(run / "manifest.json", {"references": [{"descriptor": 3}], "prompts": 3})
    write_json(run / "config.json", {"method": "styledrop", "rounds": "many"})
    assert "config.rounds: found 'many'" in error(run)


def test_a_base_model_that_is_another_now_is_refused(tmp_path, capfd):
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"base": str(tiny.other_models() / "muse")})
    error = runs.refused(capfd, "sample", "--run", run, "--prompt", "a cat")
    assert "adapter.safetensors: trained on base model" in error
    assert not (run / "drawn").exists()


# -------------------------------------------------------------- mix


def test_mix_goes_from_the_style_to_the_subject(tmp_path):
    subject = _subject(tmp_path / "subject")
    words = ["--prompt", "a cat", "--num", 2]
    style_alone = _images(_samples(tmp_path / "style", *words))
    subject_alone = _images(_samples(tmp_path / "alone", *words, "--descriptor=", run=subject))
    mixed = {}
    for gamma in (0, 0.6, 1):
        more = ["--subject", subject, "--gamma", gamma]
        mixed[gamma] = _samples(tmp_path / str(gamma), *words, *more, command="mix")
    assert _images(mixed[0]) == style_alone
    assert _images(mixed[1]) == subject_alone
    assert _images(mixed[0.6]) not in (style_alone, subject_alone)
    line = mixed[0.6][0][0]
    assert line["gamma"] == 0.6 and line["subject"]["run"] == str(subject)
    assert line["run"] == str(tiny.finished())


def test_mix_says_what_does_not_fit(tmp_path, capfd):
    line = ["mix", "--style", tiny.finished(), "--prompt", "a cat", "--subject"]
    for gamma in (-0.1, 1.5, "nan"):
        error = runs.refused(capfd, *line, tiny.finished(), "--gamma", gamma)
        assert "--gamma: found" in error
    assert "round: 0" in runs.refused(capfd, *line, tiny.finished(), "--round", 0)

    other = _subject(tmp_path / "other")
    taken = Style.load(other).adapter
    file = load_adapter(taken)
    kept = {"base_name": "another", "config": file.config, "round": 2, "extra": file.extra}
    save_adapter(taken, dict(file.tensors), base_hash="0" * 64, **kept)
    assert "trained on base model another" in runs.refused(capfd, *line, other)


# -------------------------------------------------------------- edit


@pytest.fixture
def photo(tmp_path):
    """An image wider than high, and a mask, white on its left third."""
    image = tiny.picture(tmp_path / "photo.png", seed=3, size=(48, 32))
    mask = np.zeros((32, 48), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return image, tmp_path / "mask.png"


def _edit(out, image, *words):
    return _samples(out, "--image", image, "--prompt", "a cat", *words, command="edit")


def test_edit_keeps_every_pixel_outside_the_mask(tmp_path, photo):
    image, mask = photo
    before = (image.read_bytes(), mask.read_bytes())
    samples = _edit(tmp_path / "out", image, "--mask", mask, "--num", 2)
    assert (image.read_bytes(), mask.read_bytes()) == before
    own = image_files.read_image(image)
    for line, _ in samples:
        after = image_files.read_image(tmp_path / "out" / line["file"])
        assert np.array_equal(after[:, 16:], own[:, 16:])
        assert not np.array_equal(after[:, :16], own[:, :16])
        assert line["image"] == str(image) and line["mask"] == str(mask) and line["strength"] == 1
    again = _edit(tmp_path / "again", image, "--mask", mask, "--num", 2)
    assert _images(again) == _images(samples)


@pytest.mark.parametrize("size", [(321, 203), (5, 90), (9, 9)])
@pytest.mark.parametrize("mask", ["tiny", "corner", "all but a pixel"])
def test_a_picture_of_any_size_comes_back_as_it_was_outside_the_mask(tmp_path, size, mask):
    image = tiny.picture(tmp_path / "photo.png", size=size)
    layer = Image.open(image).convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(size))
    layer.save(image)
    inside = np.zeros(size[::-1], bool)
    part = {"tiny": np.s_[4:5, 3:4], "corner": np.s_[: size[1] // 2, : size[0] // 2]}
    inside[part.get(mask, np.s_[:])] = True
    inside[-1, -1] = False
    Image.fromarray(inside).save(tmp_path / "mask.png")
    ((line, _),) = _edit(tmp_path / "out", image, "--mask", tmp_path / "mask.png", "--num", 1)
    before = image_files.read_image(image)
    after = image_files.read_image(tmp_path / "out" / line["file"])
    assert after.shape == before.shape
    np.testing.assert_array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).any()


def test_a_small_mask_of_a_large_picture_is_worked_on_at_the_models_own_resolution(tmp_path):
    image = tiny.picture(tmp_path / "photo.png", size=(400, 300))
    cut = (100, 80, 100 + tiny.RESOLUTION, 80 + tiny.RESOLUTION)
    Image.open(image).crop(cut).save(tmp_path / "cut.png")
    mask = Image.new("L", (400, 300))
    mask.paste(255, (104, 84, 112, 92))
    mask.save(tmp_path / "mask.png")
    mask.crop(cut).save(tmp_path / "cut_mask.png")
    found = []
    for name, words in (("whole", ("photo", "mask")), ("part", ("cut", "cut_mask"))):
        picture, layer = (tmp_path / f"{word}.png" for word in words)
        ((line, _),) = _edit(tmp_path / name, picture, "--mask", layer, "--num", 1)
        found.append(image_files.read_image(tmp_path / name / line["file"]))
    inner = np.s_[7:9, 7:9]  # within the seam
    np.testing.assert_array_equal(found[0][80:96, 100:116][inner], found[1][inner])
    assert image_files.read_image(tmp_path / "whole" / "grid.png").shape[1] < 600


def test_a_rotated_photo_takes_a_mask_as_it_is_seen(tmp_path, photo):
    image, mask = photo
    exif = Image.Exif()
    exif[274] = 6
    turned = tmp_path / "turned.png"
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    words = ["--mask", mask, "--num", 1]
    expected = _images(_edit(tmp_path / "b", image, *words))
    assert _images(_edit(tmp_path / "a", turned, *words)) == expected


def test_an_edit_without_a_mask_is_of_the_whole_image(tmp_path, photo):
    samples = _edit(tmp_path / "out", photo[0], "--num", 2)
    assert [line["strength"] for line, _ in samples] == [0.7, 0.7]
    assert {line["mask"] for line, _ in samples} == {""}
    words = ["--prompt", "a cat", "--num", 2, "--strength", 0.7]
    assert _images(samples) == _images(_stylize(tmp_path / "stylized", photo[0], *words))
    sheet = image_files.read_image(tmp_path / "out" / "grid.png")
    assert sheet.shape == (ROW[0], 3 * ROW[1], 3)


def test_edits_that_cannot_be_are_one_line(tmp_path, capfd, photo):
    image, mask = photo
    out = tmp_path / "out"
    line = ["edit", "--run", tiny.finished(), "--out", out, "--prompt", "a cat", "--image"]

    def error(*words):
        return runs.refused(capfd, *line, *words)

    for strength in (0, 1.5, "nan"):
        assert "--strength: found" in error(image, "--mask", mask, "--strength", strength)
    Image.open(mask).resize((32, 32)).save(tmp_path / "small.png")
    said = error(image, "--mask", tmp_path / "small.png")
    assert "the mask is 32 x 32 pixels; expected" in said
    Image.new("L", (48, 32)).save(tmp_path / "black.png")
    assert "all black" in error(image, "--mask", tmp_path / "black.png")
    Image.new("L", (48, 32), "white").save(tmp_path / "white.png")
    assert "marks the whole image" in error(image, "--mask", tmp_path / "white.png")
    assert "no such file" in error(tmp_path / "nowhere.png", "--mask", mask)
    (tmp_path / "text.png").write_text(json.dumps({}), encoding="utf-8")
    assert "not an image" in error(tmp_path / "text.png", "--mask", mask)
    assert not out.exists()


# -------------------------------------------------------------- stylize


def _stylize(out, image, *words, run=None):
    return _samples(out, "--image", image, *words, command="stylize", run=run)


def test_strength_is_how_much_of_an_image_is_generated_anew(tmp_path, photo):
    words = ["--prompt", "a cat"]
    strengths = ["--strength", 0.01, "--strength", 0.5, "--strength", 1]
    samples = _stylize(tmp_path / "all", photo[0], *words, *strengths)
    assert [line["strength"] for line, _ in samples] == [0.01, 0.5, 1]
    assert len(set(_images(samples))) == 3
    ((line, _),) = _samples(tmp_path / "anew", *words, "--num", 1)
    anew = image_files.read_image(tmp_path / "anew" / line["file"])
    last = image_files.read_image(tmp_path / "all" / samples[2][0]["file"])
    assert np.array_equal(last, image_files.resized(anew, (32, 48))), "nothing of it is left"
    sheet = image_files.read_image(tmp_path / "all" / "grid.png")
    assert sheet.shape == (ROW[0], 4 * ROW[1], 3)
    usual = _stylize(tmp_path / "usual", photo[0], *words)
    assert [line["strength"] for line, _ in usual] == [0.5, 0.7]


def test_a_large_picture_comes_back_large_beside_a_sheet_that_is_not(tmp_path):
    image = tiny.picture(tmp_path / "a cat.png", size=(1201, 900))
    ((line, _),) = _stylize(tmp_path / "out", image, "--strength", 0.5)
    assert image_files.read_image(tmp_path / "out" / line["file"]).shape == (900, 1201, 3)
    assert max(image_files.read_image(tmp_path / "out" / "grid.png").shape) < 600


def test_every_image_of_a_folder_is_stylized_by_its_name_as_it_is_alone(tmp_path):
    folder = tmp_path / "photos"
    for i, name in enumerate(("a_cat-1.png", "a red house.jpg", "house.png")):
        tiny.picture(folder / name, seed=i, size=(16, 16))
    words = ["--num", 2, "--seed", 5, "--strength", 0.5]
    samples = _stylize(tmp_path / "all", folder, *words)
    found = [(line["prompt"], line["seed"]) for line, _ in samples]
    prompts = ("a red house", "a cat", "house")
    assert found == [(prompt, seed) for prompt in prompts for seed in (5, 6)]
    line, image = samples[2]
    file = folder / "a_cat-1.png"
    assert line["text"] == "a cat in watercolor painting style" and line["image"] == str(file)
    assert line["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    names = ("round", "seed", "strength", "lambda_a", "lambda_b", "steps", "temperature")
    words = ["--prompt", line["text"], *_flags(line, *names, "batch_size")]
    again = _stylize(tmp_path / "again", line["image"], *words, run=line["run"])
    assert _images(again) == [image]
    other = _stylize(tmp_path / "other", folder / "house.png", *words)
    assert _images(other) != [image], "the image did nothing"


def test_images_that_cannot_be_stylized_are_one_line(tmp_path, capfd, photo):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    line = ["stylize", "--run", tiny.finished(), "--out", out, "--prompt", "a cat", "--image"]
    for strength in (0, 1.5, "nan"):
        words = ["--strength", 0.5, "--strength", strength]
        assert "--strength: found" in runs.refused(capfd, *line, photo[0], *words)
    assert "no image in this folder" in runs.refused(capfd, *line, tmp_path / "empty")
    assert "not an image" in runs.refused(capfd, *line, tmp_path / "text.png")
    assert "nowhere.png: no such file" in runs.refused(capfd, *line, tmp_path / "nowhere.png")
    nameless = tiny.picture(tmp_path / "0001.png")
    assert "has no words" in runs.refused(capfd, *line[:5], "--image", nameless)
    assert not out.exists()


# -------------------------------------------------------------- bfloat16


def test_a_run_in_bfloat16_trains_and_exports_in_float32(tmp_path):
    """What did not train is the base's own to the last bit; what trained is not rounded."""
    more = {"dtype": "bfloat16", "rounds": 1, "round_1.adapter.targets": "attention"}
    more["round_1.adapter.kind"] = "lora"
    words = [word for name, value in more.items() for word in (f"--config.{name}", value)]
    assert tiny.styledrop(*tiny.arguments(tmp_path / "run", *words)) == 0
    trained = load_file(tmp_path / "run" / "round_1" / "adapter.safetensors")
    assert {tensor.dtype.name for tensor in trained.values()} == {"float32"}
    Style.load(tmp_path / "run").export(tmp_path / "out", format="pipeline")
    denoiser = "transformer/diffusion_pytorch_model"
    for name in (denoiser, "text_encoder/model", "vqvae/diffusion_pytorch_model"):
        given = load_file(tiny.models() / "muse" / f"{name}.safetensors")
        found = load_file(tmp_path / "out" / f"{name}.safetensors")
        for key, tensor in given.items():
            trains = name == denoiser and ".to_" in key
            assert trains or np.array_equal(found[key], tensor), key
            np.testing.assert_allclose(found[key], tensor, atol=0.02)
