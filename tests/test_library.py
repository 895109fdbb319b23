"""The library's door: teach, sample, mix, edit and stylize without a command line."""

import inspect
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny
from PIL import Image

import styledrop_jax
from styledrop_jax import Style, UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl

SMALL = {
    "clip": str(tiny.models() / "clip"),
    "base": str(tiny.models() / "muse"),
    "prompts": str(tiny.prompt_file()),
    "rounds": 1,
    "round_1.train.steps": 2,
    "round_1.sample.images_per_prompt": 1,
    "round_1.sample.batch_size": 2,
}
STYLE = "in watercolor painting style"


def _image(seed=0, size=(20, 16)):
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def _taught(workdir, images=None, *, content="a house", overrides=None):
    return styledrop_jax.personalize(
        _image() if images is None else images,
        content=content,
        descriptor=STYLE,
        workdir=workdir,
        config="debug:emoji128-muse",
        overrides=SMALL | (overrides or {}),
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A style that was taught from an image in memory."""
    return _taught(tmp_path_factory.mktemp("library") / "run")


@pytest.fixture(scope="module")
def style():
    """The style of the finished run, on the same base."""
    return Style.load(tiny.finished())


# -------------------------------------------------------------- the door itself


def test_every_public_name_is_documented():
    for name in styledrop_jax.__all__:
        thing = getattr(styledrop_jax, name)
        assert inspect.getdoc(thing), name
    public = [name for name in vars(Style) if not name.startswith("_")]
    methods = [name for name in public if callable(getattr(Style, name))]
    assert {"load", "sample", "mix", "edit", "stylize", "export"} <= set(methods)
    for name in methods:
        assert inspect.getdoc(getattr(Style, name)), name


def test_every_argument_of_a_public_function_is_documented():
    for function in (styledrop_jax.personalize, styledrop_jax.load, Style.load, Style.sample):
        words = str(inspect.getdoc(function))
        for name in inspect.signature(function).parameters:
            assert name == "self" or f"{name}:" in words, f"{function.__name__}: {name}"


def test_importing_takes_no_jax():
    code = (
        "import sys, styledrop_jax; assert styledrop_jax.__version__;"
        "assert not {'jax', 'numpy', 'PIL', 'transformers'} & set(sys.modules);"
        "styledrop_jax.UserError; assert 'jax' not in sys.modules;"
        "styledrop_jax.Style; assert 'jax' in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'personalise'"):
        _ = styledrop_jax.personalise
    assert "styledrop" in styledrop_jax.config_names()


def test_a_base_model_is_loaded_by_its_name():
    pipeline = styledrop_jax.load(str(tiny.models() / "muse"))
    assert pipeline.resolution == tiny.RESOLUTION
    half = styledrop_jax.load(str(tiny.models() / "muse"), dtype="bfloat16")
    assert half.base_hash == pipeline.base_hash
    assert half.weights_dtype == jnp.bfloat16
    assert half.autoencoder.quantize.embedding.dtype == jnp.float32
    with pytest.raises(UserError, match="base.*no such folder"):
        styledrop_jax.load("/nowhere")
    with pytest.raises(UserError, match="dtype: found 'float8', expected one of float32, bfloat"):
        styledrop_jax.load(str(tiny.models() / "muse"), dtype="float8")


# -------------------------------------------------------------- personalize


def test_an_image_in_memory_is_taught_and_kept(taught):
    assert taught.number == 1 and taught.descriptor == STYLE and taught.content == "a house"
    manifest = read_json(taught.run / "manifest.json")
    (reference,) = manifest["references"]
    assert reference["caption"] == f"a house {STYLE}"
    kept = image_files.read_image(reference["path"])
    np.testing.assert_array_equal(kept, np.asarray(_image()))
    assert (taught.run / "report.html").exists()
    config = read_json(taught.run / "config.json")
    assert config["round_1"]["train"]["steps"] == 2


def test_the_same_call_finds_the_finished_run(taught):
    before = runs.results(taught.run)
    again = _taught(taught.run)
    assert again.run == taught.run and runs.results(taught.run) == before


def test_another_image_or_setting_is_another_run(taught):
    before = runs.results(taught.run)
    with pytest.raises(UserError, match="seed was 0, now 1"):
        _taught(taught.run, overrides={"seed": 1})
    for images, content in (
        (_image(seed=1), "a house"),
        ([_image(), _image()], "a house"),
        ([_image()], ["a cat"]),
    ):
        with pytest.raises(UserError, match="holds a run of other images"):
            _taught(taught.run, images, content=content)
    assert runs.results(taught.run) == before
    assert _taught(taught.run).run == taught.run


def test_every_form_of_an_image_is_the_same(tmp_path, taught):
    file = tmp_path / "mine.png"
    _image().save(file)
    pixels = np.asarray(_image())
    expected = (taught.run / "round_1" / "adapter.safetensors").read_bytes()
    for name, images in (
        ("array", pixels),
        ("floats", pixels.astype(np.float32) / 255),
        ("path", file),
        ("text", str(file)),
        ("list", [file]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            runs.sample_nothing(patch)
            with pytest.raises(runs.Death):
                _taught(tmp_path / name, images)
        found = (tmp_path / name / "round_1" / "adapter.safetensors").read_bytes()
        assert found == expected, name


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 3), np.int64), r"found an array \[8, 8, 3\] of int64, expected"),
        (np.zeros((8, 8, 5), np.uint8), "of uint8, expected"),
        (np.zeros((2, 8, 8, 3), np.uint8), "of uint8, expected"),
        (np.zeros((0, 8, 3), np.uint8), "of uint8, expected"),
        (np.full((8, 8, 3), 255.0), "found floats from 255 to 255, expected 0 to 1"),
        (np.full((8, 8, 3), -0.5), "found floats from -0.5 to"),
        (np.full((8, 8, 3), np.nan), "found floats from nan to nan"),
    ],
)
def test_an_array_that_is_no_image(tmp_path, array, words):
    with pytest.raises(UserError, match=words):
        _taught(tmp_path / "run", array)
    assert not (tmp_path / "run").exists()


def test_a_transparent_image_in_memory_is_padded(tmp_path):
    layer = Image.new("RGBA", (30, 10))
    layer.paste("purple", (0, 0, 20, 10))
    for name, image in (("image", layer), ("array", np.asarray(layer))):
        with pytest.MonkeyPatch.context() as patch:
            runs.train_only(patch)
            for _ in range(2):  # the second goes on with the first
                with pytest.raises(runs.Death):
                    _taught(tmp_path / name, image)
        (entry,) = read_json(tmp_path / name / "manifest.json")["references"]
        assert (entry["fit"], entry["ground"]) == ("pad", "#ffffff")


def test_several_images_have_their_own_words(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        runs.train_only(patch)
        with pytest.raises(runs.Death):
            _taught(tmp_path / "run", [_image(1), _image(2)], content=["a house", "a cat"])
    references = read_json(tmp_path / "run" / "manifest.json")["references"]
    assert [entry["content"] for entry in references] == ["a house", "a cat"]
    with pytest.raises(UserError, match="content: found 1 for 2 images"):
        _taught(tmp_path / "other", [_image(1), _image(2)], content=["a house"])
    with pytest.raises(UserError, match="content: found 2 for 1 images"):
        _taught(tmp_path / "other", str(tiny.reference()), content=["a house", "a cat"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": {"round_1.train.stepz": 1}}, "did you mean 'config.round_1.train.steps'"),
        ({"overrides": {"seed": "many"}}, "config.seed: found 'many'"),
        ({"content": ""}, "content"),
    ],
)
def test_what_cannot_be_taught_leaves_nothing(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        _taught(tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "config.json").exists()


# -------------------------------------------------------------- a style


def _pixels(images):
    return [np.asarray(image) for image in images]


def test_a_style_samples_what_the_command_does(style, tmp_path):
    images = style.sample(["a cat", "a red house"], num=2, seed=5)
    assert len(images) == 4 and images[0].size == (tiny.RESOLUTION, tiny.RESOLUTION)
    words = ["--prompt", "a cat", "--prompt", "a red house", "--num", 2, "--seed", 5]
    out = tmp_path / "command"
    assert tiny.styledrop("sample", "--run", tiny.finished(), "--out", out, *words) == 0
    rows = read_jsonl(out / "images.jsonl")
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(image), image_files.read_image(out / row["file"]))

    written = style.sample("a cat", seed=5, out=tmp_path / "library")
    (row,) = read_jsonl(tmp_path / "library" / "images.jsonl")
    assert row["seed"] == 5 and (tmp_path / "library" / "grid.png").exists()
    np.testing.assert_array_equal(np.asarray(written[0]), np.asarray(images[0]))


def test_a_style_is_sampled_in_other_ways(style):
    (plain,) = _pixels(style.sample("a cat"))
    (other,) = _pixels(style.sample("a cat", lambda_a=9.0, negative_prompt="a red house"))
    assert (plain != other).any()
    assert (plain != _pixels(style.sample("a cat", descriptor=""))[0]).any()
    (same,) = _pixels(style.sample("a cat", lambda_a=None, steps=None))
    np.testing.assert_array_equal(same, plain)


def test_styles_of_rounds_and_of_the_base_alone(style):
    base = Style.load(tiny.finished(), round=0, pipeline=style.pipeline)
    first = Style.load(tiny.finished(), round=1, pipeline=style.pipeline)
    second = Style.load(tiny.finished(), round=2, pipeline=style.pipeline)
    assert (base.number, first.number, second.number) == (0, 1, 2)
    images = []
    for each in (base, first, second):
        several = each.sample(["a cat", "a red house"], num=8)
        images.append(np.stack(_pixels(several)).tobytes())
    assert len(set(images)) == 3
    assert base.adapter is None and first.pipeline is style.pipeline


def test_a_style_mixes_with_a_subject(style, taught, tmp_path):
    subject = Style.load(taught.run, pipeline=style.pipeline)
    mixed = style.mix(subject, "a cat", gamma=0.5, out=tmp_path)
    assert len(mixed) == 1
    (row,) = read_jsonl(tmp_path / "images.jsonl")
    assert row["gamma"] == 0.5 and row["subject"]["run"] == str(taught.run)
    (alone,) = _pixels(style.sample("a cat"))
    (none,) = _pixels(style.mix(subject, "a cat", gamma=0))
    np.testing.assert_array_equal(none, alone)
    base = Style.load(tiny.finished(), round=0, pipeline=style.pipeline)
    with pytest.raises(UserError, match="mix needs an adapter of each run"):
        style.mix(base, "a cat")
    with pytest.raises(UserError, match="gamma: found 2"):
        style.mix(subject, "a cat", gamma=2)


def test_a_style_edits_an_image_in_memory(style, tmp_path):
    image = _image(size=(16, 16))
    left = np.zeros((16, 16), np.uint8)
    left[:, :8] = 255
    (edited,) = _pixels(style.edit(image, "a cat", mask=Image.fromarray(left)))
    before = np.asarray(image)
    np.testing.assert_array_equal(edited[:, 8:], before[:, 8:])
    assert (edited[:, :8] != before[:, :8]).any()
    for mask in (left, left.astype(np.float32) / 255, left > 0):
        (again,) = _pixels(style.edit(before, "a cat", mask=mask))
        np.testing.assert_array_equal(again, edited)
    image.save(tmp_path / "image.png")
    Image.fromarray(left).save(tmp_path / "mask.png")
    files = style.edit(tmp_path / "image.png", "a cat", mask=tmp_path / "mask.png", out=tmp_path)
    np.testing.assert_array_equal(_pixels(files)[0], edited)
    with pytest.raises(UserError, match="the mask is 8 x 16 pixels"):
        style.edit(image, "a cat", mask=Image.fromarray(left[:, :8]))


def test_a_style_stylizes_images_in_memory(style):
    images = [_image(seed, size=(16, 16)) for seed in range(2)]
    found = _pixels(style.stylize(images, prompt="a house", strength=[0.1, 1.0], num=2))
    assert len(found) == 8
    (alone,) = _pixels(style.stylize(images[1], prompt="a house", strength=0.1))
    np.testing.assert_array_equal(found[4], alone)
    wide = style.stylize([_image(2, size=(31, 7)), images[0]], prompt="a house", num=2)
    assert [image.size for image in wide] == [(31, 7)] * 4 + [(16, 16)] * 4
    assert len(wide[:3]) == 3 and wide[-1].size == wide[4:][0].size == (16, 16)
    with pytest.raises(UserError, match="prompt: missing"):
        style.stylize(images)
    with pytest.raises(UserError, match="images: none"):
        style.stylize([], prompt="a house")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "prompt: missing"),
        ({"prompts": " "}, "prompt: empty"),
        ({"prompts": "a cat", "num": 0}, "num: found 0"),
        ({"prompts": "a cat", "seed": -1}, "seed: found -1"),
        ({"prompts": "a cat", "seed": 2**32}, "seed: found"),
        ({"prompts": "a cat", "stepz": 3}, "stepz: unknown; did you mean 'steps'"),
        ({"prompts": "a cat", "steps": 0}, "steps: found 0"),
        ({"prompts": "a cat", "sampler": "euler_x"}, "sampler: found 'euler_x'"),
    ],
)
def test_what_cannot_be_sampled(style, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        style.sample(**arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
