"""Methods: their prompts, their further streams, and a run of each from the command line."""

import numpy as np
import pytest
import tiny

from styledrop_jax import config
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.data import folders
from styledrop_jax.errors import UserError
from styledrop_jax.methods.table import METHODS
from styledrop_jax.run import read_json, read_jsonl
from styledrop_jax.samplers import diffusion

WORDS = {"identifier": "sks", "noun": "dog"}


def test_prompts_of_every_method():
    dreambooth, styleforge = METHODS["dreambooth"], METHODS["styleforge"]
    assert [dreambooth.caption(stream, WORDS) for stream in dreambooth.streams] == ["a sks dog", "a dog"]
    assert dreambooth.prompt(WORDS, "a {subject} on a blue background") == "a sks dog on a blue background"
    assert dreambooth.judgement(WORDS, "a {subject} on a blue background") == "a dog on a blue background"
    assert [styleforge.caption(stream, WORDS) for stream in styleforge.streams] == ["sks style", "style"]
    assert styleforge.prompt(WORDS, "a cat") == "a cat in sks style" and styleforge.judgement(WORDS, "a cat") == "a cat"
    styledrop, empty = METHODS["styledrop"], {"identifier": "", "noun": ""}
    assert styledrop.prompt(empty, "a cat {odd}", "in red") == "a cat {odd} in red"
    assert styledrop.prompt(empty, "a cat in red", "in red") == "a cat in red"
    with pytest.raises(UserError, match="config.words.noun: empty"):
        dreambooth.caption(dreambooth.streams[0], WORDS | {"noun": ""})
    assert all(method.streams[0].section == "reference" for method in METHODS.values())


def test_the_schema_knows_every_method_and_sampler():
    assert set(config.METHODS) == set(METHODS) and set(config.SAMPLERS) == set(diffusion.SAMPLERS)


def _flags(**fields):
    return [word for name, value in fields.items() for word in (f"--config.{name.replace('__', '.')}", value)]


def _run(workdir, method, *more):
    line = tiny.arguments(workdir, "--config.rounds", 1, *more)
    file, _, preset = method.partition(":")
    line[line.index("--config") + 1] = f"{tiny.ROOT / 'configs' / file}.py:{preset or 'emoji64'}"
    small = _flags(
        round_1__train__steps=4,
        round_1__train__batch_size=2,
        round_1__sample__steps=2,
        round_1__sample__images_per_prompt=1,
    )
    return tiny.styledrop(*line, *small)


def test_dreambooth_keeps_the_class_by_drawings_of_the_frozen_model(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = _flags(words__identifier="sks", words__noun="house")
    assert _run(tmp_path / "run", "dreambooth", *words, *_flags(prior__generate=3)) == 0
    (cache,) = (tmp_path / "cache" / "styledrop_jax" / "class_images").iterdir()
    drawn = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert len(drawn) == 3
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isclose(row["loss"], row["loss_0"] + row["loss_1"], rtol=1e-5) for row in rows)
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["references"][0]["caption"] == "a sks house"
    rounds = manifest["rounds"]["round_1"]
    assert rounds["frozen"] == 0 and rounds["trainable"] == manifest["base"]["parameters"]
    capfd.readouterr()
    assert _run(tmp_path / "more", "dreambooth", *words, *_flags(prior__generate=4)) == 0
    assert "drawing 'a house' with the frozen model: 1 of 4" in capfd.readouterr().out
    assert len(list(cache.iterdir())) == 4 and all((cache / name).read_bytes() == drawn[name] for name in drawn)


def test_styleforge_takes_its_aux_from_the_user(tmp_path, capfd):
    words = _flags(words__identifier="sks")
    assert _run(tmp_path / "none", "styleforge", *words) == 2
    assert "config.aux.image: empty" in capfd.readouterr().err
    for i in range(3):
        tiny.picture(tmp_path / "aux" / f"{i}.png", seed=i)
    assert _run(tmp_path / "run", "styleforge", *words, *_flags(aux__image=tmp_path / "aux")) == 0
    (stream,) = read_json(tmp_path / "run" / "manifest.json")["streams"]
    assert stream["prompt"] == "style" and len(set(stream["sha256"])) == 3
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]
    assert row["text"] == "a cat in sks style"
    assert row["judged"] == "a cat in watercolor painting style", "in words that a scorer can know"


@pytest.mark.parametrize("method", ["lora", "textual_inversion", "custom_diffusion", "svdiff"])
def test_a_baseline_runs_and_sample_draws_what_it_drew(method, tmp_path):
    assert _run(tmp_path / "run", method, *_flags(round_1__adapter__initializer="cat")) == 0
    file = load_adapter(tmp_path / "run" / "round_1" / "adapter.safetensors")
    trained = {part["adapter"] for part in file.config.values() if part}
    assert method in trained and any(np.abs(tensor).max() > 0 for tensor in file.tensors.values())
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[1]
    words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1, "--out", tmp_path / "out"]
    assert tiny.styledrop("sample", "--run", tmp_path / "run", *words) == 0
    (line,) = read_jsonl(tmp_path / "out" / "images.jsonl")
    assert line["text"] == row["text"]
    paths = tmp_path / "out" / line["file"], tmp_path / "run" / "round_1" / row["file"]
    np.testing.assert_array_equal(*map(folders.read_image, paths))


@pytest.mark.parametrize("method", ["lora", "styledrop"])
def test_stable_diffusion_runs_by_the_same_commands(method, tmp_path):
    words = _flags(base=tiny.stable_diffusion(), dtype="float32", round_1__adapter__rank=2)
    words += _flags(round_1__train__ema_decay=0.9, round_1__train__accumulate=2, round_1__train__remat="true")
    assert _run(tmp_path / "run", f"{method}:sd15", *words) == 0
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[1]
    words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1]
    assert tiny.styledrop("sample", "--run", tmp_path / "run", *words, "--out", tmp_path / "out") == 0
    (line,) = read_jsonl(tmp_path / "out" / "images.jsonl")
    paths = tmp_path / "out" / line["file"], tmp_path / "run" / "round_1" / row["file"]
    np.testing.assert_array_equal(*map(folders.read_image, paths))
    picture = tiny.picture(tmp_path / "photo.png", size=(16, 16))
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    folders.write_png(tmp_path / "mask.png", mask)
    edit = ["edit", "--run", tmp_path / "run", "--image", picture, "--mask", tmp_path / "mask.png", *words]
    assert tiny.styledrop(*edit, "--out", tmp_path / "edited") == 0
    (line,) = read_jsonl(tmp_path / "edited" / "images.jsonl")
    drawn, before = folders.read_image(tmp_path / "edited" / line["file"]), folders.read_image(picture)
    np.testing.assert_array_equal(drawn[:, :8], before[:, :8])
    assert (drawn[:, 8:] != before[:, 8:]).any()
    wide = tiny.picture(tmp_path / "photos" / "a wide cat.png", size=(64, 32))
    tiny.picture(tmp_path / "photos" / "a house.png", size=(16, 16))
    stylize = ["stylize", "--run", tmp_path / "run", "--num", 2, "--out", tmp_path / "stylized"]
    assert tiny.styledrop(*stylize, "--image", tmp_path / "photos", "--strength", 0.5) == 0
    rows = read_jsonl(tmp_path / "stylized" / "images.jsonl")
    images = [folders.read_image(tmp_path / "stylized" / row["file"]) for row in rows]
    assert [image.shape[:2] for image in images] == [(16, 16)] * 2 + [(12, 22)] * 2, "each of its own aspect"
    assert rows[2]["image"] == str(wide) and (images[2] != images[3]).any()


def test_a_word_that_starts_as_too_many_tokens_stops_at_once(tmp_path, capfd):
    assert _run(tmp_path / "run", "custom_diffusion", *_flags(round_1__adapter__initializer="a red house")) == 2
    assert "its initializer 'a red house'" in capfd.readouterr().err
    assert not (tmp_path / "run" / "base").exists()


def test_a_batch_of_uneven_parts_stops_at_once(tmp_path, capfd):
    assert _run(tmp_path / "run", "lora", *_flags(round_1__train__accumulate=3)) == 2
    assert "config.round_1.train.accumulate: found 3, expected a divisor of batch_size 2" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_words_that_are_missing_stop_before_anything_is_made(tmp_path, capfd):
    assert _run(tmp_path / "run", "dreambooth", *_flags(words__noun="house")) == 2
    assert "config.words.identifier: empty" in capfd.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()
