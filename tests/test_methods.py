"""A run of every method from the command line: what it leaves, what it learns, what stops it."""

import numpy as np
import pytest
import runs
import tiny
from runs import flags

from styledrop_jax import rounds
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl


def _run(workdir, method, *more):
    """The smallest run of a method that takes a reference."""
    name, _, preset = method.partition(":")
    line = tiny.arguments(workdir, *flags(rounds=1), *more)
    line[line.index("--config") + 1] = f"{name}:{preset or 'emoji128'}"
    small = flags(
        round_1__train__steps=4,
        round_1__train__batch_size=2,
        round_1__sample__steps=2,
        round_1__sample__images_per_prompt=1,
    )
    return tiny.styledrop(*line, *small)


def _own(workdir, method, *more):
    """The smallest run of a config without a reference."""
    small = flags(
        clip=tiny.models() / "clip",
        dtype="float32",
        round_1__train__steps=2,
        round_1__sample__steps=2,
        round_1__sample__batch_size=2,
        round_1__sample__images_per_prompt=1,
    )
    line = ["personalize", "--config", method, "--workdir", workdir]
    return tiny.styledrop(*line, *small, *more)


def _metrics(workdir):
    return read_jsonl(workdir / "metrics.jsonl")


def _adapter(workdir):
    return load_adapter(workdir / "round_1" / "adapter.safetensors")


def _sampled_again(workdir, row, out):
    """Whether `sample` makes what the run made of a prompt, from its words and seed alone."""
    words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1, "--out", out]
    assert tiny.styledrop("sample", "--run", workdir, *words) == 0
    (line,) = read_jsonl(out / "images.jsonl")
    assert line["text"] == row["text"]
    again = image_files.read_image(out / line["file"])
    first = image_files.read_image(workdir / "round_1" / row["file"])
    np.testing.assert_array_equal(again, first)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of images of classes of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "styledrop_jax" / "class_images"


# -------------------------------------------------------------- images that keep what a model knows


def test_dreambooth_keeps_the_class_by_images_of_the_frozen_model(tmp_path, cache, capfd, caplog):
    words = flags(words__identifier="sks", words__noun="house")
    assert _run(tmp_path / "run", "dreambooth", *words, *flags(prior__generate=3)) == 0
    (folder,) = cache.iterdir()
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(made) == 3
    for row in _metrics(tmp_path / "run"):
        assert np.isclose(row["loss"], row["loss_0"] + row["loss_1"], rtol=1e-5)
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["references"][0]["caption"] == "a sks house"
    assert manifest["streams"][0]["prompt"] == "a house"
    rounds = manifest["rounds"]["round_1"]
    assert rounds["frozen"] == 0 and rounds["trainable"] == manifest["base"]["parameters"]
    assert "prompt 'a cat' does not say 'sks house'" in caplog.text
    assert _run(tmp_path / "more", "dreambooth", *words, *flags(prior__generate=4)) == 0
    assert "sampling 'a house' with the frozen model: 1 of 4" in capfd.readouterr().out
    assert len(list(folder.iterdir())) == 4
    assert all((folder / name).read_bytes() == content for name, content in made.items())
    assert _run(tmp_path / "same", "dreambooth", *words, *flags(prior__generate=4)) == 0
    said = f"images of 'a house' by the frozen model: 4 made before, in {folder}"
    assert said in capfd.readouterr().out


def test_the_frozen_model_tops_up_the_users_own_images_of_the_class(tmp_path, cache, capfd):
    own = [tiny.picture(tmp_path / "houses" / f"{i}.png", seed=i) for i in range(2)]
    words = flags(words__identifier="sks", words__noun="house", prior__image=own[0].parent)
    assert _run(tmp_path / "run", "dreambooth", *words, *flags(prior__generate=3)) == 0
    assert "config.prior: 2 images given, 1 more are made" in capfd.readouterr().out
    (folder,) = cache.iterdir()
    assert len(list(folder.iterdir())) == 1
    (stream,) = read_json(tmp_path / "run" / "manifest.json")["streams"]
    assert len(set(stream["sha256"])) == 3
    assert _run(tmp_path / "enough", "dreambooth", *words, *flags(prior__generate=2)) == 0
    assert len(list(folder.iterdir())) == 1, "there are enough"


def test_styleforge_takes_its_aux_from_the_user(tmp_path, capfd):
    words = flags(words__identifier="sks")
    assert _run(tmp_path / "none", "styleforge", *words) == 2
    said = capfd.readouterr().err
    assert "config.aux.image: empty" in said and "config.aux.generate above 0" in said
    for i in range(3):
        tiny.picture(tmp_path / "aux" / f"{i}.png", seed=i)
    assert _run(tmp_path / "run", "styleforge", *words, *flags(aux__image=tmp_path / "aux")) == 0
    (stream,) = read_json(tmp_path / "run" / "manifest.json")["streams"]
    assert stream["prompt"] == "style" and len(set(stream["sha256"])) == 3
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]
    assert row["text"] == "a cat in sks style"
    assert row["judged"] == "a cat in watercolor painting style", "in words that a scorer can know"

    (tmp_path / "aux" / "0.png").unlink()
    runs.forget(tmp_path / "run", "report.html")
    assert _run(tmp_path / "run", "styleforge", *words, *flags(aux__image=tmp_path / "aux")) == 2
    assert "the images of a further stream have changed" in capfd.readouterr().err


# -------------------------------------------------------------- several streams


def _multi(workdir, *more):
    """Two components, of which the second has no Aux."""
    given = flags(
        base=tiny.models() / "muse",
        prompts=tiny.prompt_file(),
        component_1__image=tiny.reference(),
        component_1__aux__image=tiny.picture(workdir.parent / "aux.png", seed=6),
        component_2__image=tiny.picture(workdir.parent / "background.png", seed=5),
    )
    return _own(workdir, "multi_styleforge:emoji128", *given, *more)


def test_multi_styleforge_learns_a_word_for_each_component(tmp_path, capfd):
    assert _multi(tmp_path / "run") == 2
    said = capfd.readouterr().err
    assert "config.component_2.aux.image: empty; expected images of 'style'" in said
    assert not (tmp_path / "run").exists()
    aux = flags(component_2__aux__image=tmp_path / "aux.png", component_2__aux__weight=0.5)
    assert _multi(tmp_path / "run", *aux, *flags(component_2__identifier="SKS")) == 2
    assert "config.component_2.identifier: 'SKS', as config.component_1" in capfd.readouterr().err

    words = flags(
        component_1__identifier="<v>",
        component_2__identifier="<w>",
        round_1__train__text_dropout=0,
        round_1__adapter__kind="textual_inversion",
        round_1__adapter__initializer="cat",
    )
    assert _multi(tmp_path / "run", *aux, *words) == 0
    manifest = read_json(tmp_path / "run" / "manifest.json")
    shown = [(entry["section"], entry["caption"]) for entry in manifest["references"]]
    assert shown == [("component_1", "<v> style"), ("component_2", "<w> style")]
    weights = [(stream["prompt"], stream["weight"]) for stream in manifest["streams"]]
    assert weights == [("style", 1.0), ("style", 0.5)]
    for row in _metrics(tmp_path / "run"):
        losses = [row[f"loss_{i}"] for i in range(4)]
        np.testing.assert_allclose(row["loss"], np.dot(losses, [1, 1, 1, 0.5]), rtol=1e-5)
    (rows,) = _adapter(tmp_path / "run").tensors.values()
    assert len(rows) == 2 and (rows[0] != rows[1]).any(), "two words that began alike"
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]
    assert row["text"] == "a cat in <v> style and <w> style"


def _styo(workdir, *more):
    given = flags(
        base=tiny.stable_diffusion(),
        source__image=tiny.picture(workdir.parent / "face.png", seed=1),
        target__image=tiny.picture(workdir.parent / "art.png", seed=2),
        aux__generate=2,
        contrast__style_repeats=2,
    )
    return _own(workdir, "styo:sd15", *given, *more)


def test_styo_makes_the_source_anew_in_the_targets_style(tmp_path, cache, capfd):
    assert _styo(tmp_path / "run", *flags(contrast__repeat_training="false")) == 2
    error = capfd.readouterr().err
    start = "error: config.source.control: the prompts do not align: 'a drawing with ak47 not aug"
    assert error.startswith(start) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()

    tiny.picture(tmp_path / "faces" / "anna.png", seed=1)
    tiny.picture(tmp_path / "faces" / "bert.png", seed=3)
    assert _styo(tmp_path / "run", *flags(source__image=tmp_path / "faces")) == 0
    manifest = read_json(tmp_path / "run" / "manifest.json")
    sections = [entry["section"] for entry in manifest["references"]]
    assert sections == ["target", "source", "source"]
    (aux,) = manifest["streams"]
    assert aux["prompt"] == "a drawing with ak47 not aug style of portrait"
    assert len(aux["sha256"]) == 2
    counts = manifest["rounds"]["round_1"]
    assert counts["frozen"] == 0, "the text tower is not counted"
    assert counts["trainable"] == manifest["base"]["parameters"]
    row = _metrics(tmp_path / "run")[0]
    total = row["loss_0"] + row["loss_1"] + row["loss_2"]
    np.testing.assert_allclose(row["loss"], total, rtol=1e-5)

    rows = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")
    assert [(row["content"], row["source"]) for row in rows] == [
        ("anna", "references/001.png"),
        ("bert", "references/002.png"),
    ]
    text = "a drawing with aug not ak47 aug not ak47 style of sks not m4a1 portrait"
    assert {row["text"] for row in rows} == {text}
    folder = tmp_path / "run" / "round_1"
    first, second = (image_files.read_image(folder / row["file"]) for row in rows)
    assert (first != second).any(), "each follows its own source"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "anna" in report and "bert" in report


def test_styo_trains_its_three_streams_on_muse_and_samples_from_words_alone(tmp_path, cache, capfd):
    muse = flags(base=tiny.models() / "muse")
    assert _styo(tmp_path / "run", *muse) == 2
    said = "config.source.control: found 1.0, expected 0: control of the attention needs"
    assert said in capfd.readouterr().err
    more = flags(source__control=0, round_1__adapter__kind="styledrop", round_1__adapter__rank=4)
    assert _styo(tmp_path / "run", *muse, *more) == 0
    assert {"loss_0", "loss_1", "loss_2"} <= set(_metrics(tmp_path / "run")[0])
    (row,) = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")
    assert "source" not in row and row["text"].startswith("a drawing with aug not ak47")


def test_cut_mix_trains_on_each_subject_and_on_pairs(tmp_path, capfd):
    for i, name in enumerate(("a sks dog-1", "a sks dog-2", "a aug cat-1")):
        tiny.picture(tmp_path / "pets" / f"{name}.png", seed=i)
    words = flags(reference__image=tmp_path / "pets", reference__content="", prompts="")
    with pytest.MonkeyPatch.context() as patch:
        runs.train_only(patch)
        with pytest.raises(runs.Death):
            _run(tmp_path / "run", "cut_mix", *words)
    for row in _metrics(tmp_path / "run"):
        assert np.isclose(row["loss"], row["loss_0"] + 1.5 * row["loss_1"], rtol=1e-5)
    manifest = read_json(tmp_path / "run" / "manifest.json")
    captions = {entry["caption"] for entry in manifest["references"]}
    assert captions == {"photo of a sks dog", "photo of a aug cat"}
    assert "a aug cat sitting beside a sks dog" in manifest["prompts"]
    assert manifest["rounds"]["round_1"]["images"] == 3, "pairs are not counted"

    assert _run(tmp_path / "one", "cut_mix", *flags(reference__content="a dog")) == 2
    assert "all images show 'a dog'; expected two subjects" in capfd.readouterr().err
    assert _run(tmp_path / "muse", "cut_mix", *words, *flags(mix__unmix=1.0)) == 2
    assert "config.mix.unmix: found 1.0, expected 0: the attention of" in capfd.readouterr().err
    words += flags(mix__unmix=1.0, base=tiny.stable_diffusion(), round_1__train__remat="true")
    assert _run(tmp_path / "remat", "cut_mix", *words) == 2
    assert "expected 0 beside train.remat" in capfd.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("one", "muse", "remat"))


# -------------------------------------------------------------- adapters on both pipelines


@pytest.mark.parametrize("config", ["lora", "textual_inversion", "custom_diffusion", "svdiff"])
def test_a_baseline_runs_and_sample_makes_what_it_made(config, tmp_path):
    assert _run(tmp_path / "run", config, *flags(round_1__adapter__initializer="cat")) == 0
    file = _adapter(tmp_path / "run")
    trained = {part["adapter"] for part in file.config.values() if part}
    assert config in trained and any(np.abs(tensor).max() > 0 for tensor in file.tensors.values())
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]
    _sampled_again(tmp_path / "run", row, tmp_path / "out")


@pytest.mark.parametrize("by", ["search", "phrases"])
def test_words_are_found_and_draw_and_nothing_trains(by, tmp_path, capfd):
    run = tmp_path / "run"
    found = flags(round_1__adapter__by=by, round_1__adapter__words=2)
    assert _run(run, "hard_prompt", *found) == 0
    words = read_json(run / "manifest.json")["rounds"]["round_1"]["words"]
    assert words.startswith("in ") and words.endswith(" style")
    assert f"found the words '{words}'" in capfd.readouterr().out
    assert words in (run / "report.html").read_text(encoding="utf-8")
    assert not _adapter(run).tensors
    given = read_jsonl(run / "base" / "scores.jsonl")[0]
    row = read_jsonl(run / "round_1" / "scores.jsonl")[0]
    assert given["text"] == "a cat in watercolor painting style"
    assert row["text"] == row["judged"] == f"a cat {words}"
    _sampled_again(run, row, tmp_path / "out")
    assert tiny.styledrop("export", "--run", run, "--format", "kohya") == 2
    assert (
        f"nothing trained; the words alone draw, in any tool: '{words}'" in capfd.readouterr().err
    )

    runs.forget(run, "report.html", "verdict.json", "round_1/scores.jsonl")
    assert _run(run, "hard_prompt", *found) == 0
    assert read_json(run / "manifest.json")["rounds"]["round_1"]["words"] == words
    assert "found the words" not in capfd.readouterr().out, "they were found before"


def test_stable_diffusion_runs_by_the_same_commands(tmp_path):
    words = flags(
        base=tiny.stable_diffusion(),
        dtype="float32",
        round_1__adapter__rank=2,
        round_1__train__ema_decay=0.9,
        round_1__train__accumulate=2,
        round_1__train__remat="true",
    )
    run = tmp_path / "run"
    assert _run(run, "styledrop:sd15", *words) == 0
    row = read_jsonl(run / "round_1" / "scores.jsonl")[0]
    _sampled_again(run, row, tmp_path / "out")

    picture = tiny.picture(tmp_path / "photo.png", size=(16, 16))
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    image_files.write_png(tmp_path / "mask.png", mask)
    edit = ["edit", "--run", run, "--image", picture, "--mask", tmp_path / "mask.png"]
    edit += ["--prompt", "a cat", "--num", 1, "--out", tmp_path / "edited"]
    assert tiny.styledrop(*edit) == 0
    (line,) = read_jsonl(tmp_path / "edited" / "images.jsonl")
    after = image_files.read_image(tmp_path / "edited" / line["file"])
    before = image_files.read_image(picture)
    np.testing.assert_array_equal(after[:, :8], before[:, :8])
    assert (after[:, 8:] != before[:, 8:]).any()

    wide = tiny.picture(tmp_path / "photos" / "a wide cat.png", size=(64, 32))
    tiny.picture(tmp_path / "photos" / "a house.png", size=(16, 16))
    stylize = ["stylize", "--run", run, "--num", 2, "--out", tmp_path / "stylized"]
    assert tiny.styledrop(*stylize, "--image", tmp_path / "photos", "--strength", 0.5) == 0
    rows = read_jsonl(tmp_path / "stylized" / "images.jsonl")
    images = [image_files.read_image(tmp_path / "stylized" / row["file"]) for row in rows]
    shapes = [image.shape[:2] for image in images]
    assert shapes == [(16, 16)] * 2 + [(32, 64)] * 2, "each of its own size"
    assert rows[2]["image"] == str(wide) and (images[2] != images[3]).any()


# -------------------------------------------------------------- what stops a run before it begins


def test_a_word_that_starts_as_too_many_tokens_stops_at_once(tmp_path, capfd):
    words = flags(round_1__adapter__initializer="a red house")
    assert _run(tmp_path / "run", "custom_diffusion", *words) == 2
    assert "its initializer 'a red house'" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dreambooth", "styleforge"])
def test_an_identifier_of_spaces_stops_at_once(method, tmp_path, capfd):
    words = [*flags(words__noun="house"), "--config.words.identifier= "]
    assert _run(tmp_path / "run", method, *words) == 2
    assert "config.words.identifier: empty" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_identifiers_that_should_not_be_are_warned_of(tmp_path, caplog):
    aux = flags(aux__image=tiny.picture(tmp_path / "aux.png", seed=1))
    shipped = flags(base="emoji128", clip="emoji64/clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "sample_base", runs.stop)
        for word, more in (("xqzzyqxvwk", []), ("car", shipped)):
            with pytest.raises(runs.Death):
                _run(tmp_path / word, "styleforge", *aux, *more, *flags(words__identifier=word))
    assert "identifier 'xqzzyqxvwk' is " in caplog.text
    assert "identifier 'car' already names something to emoji128" in caplog.text


def test_a_batch_of_uneven_parts_stops_at_once(tmp_path, capfd):
    assert _run(tmp_path / "run", "lora", *flags(round_1__train__accumulate=3)) == 2
    said = "config.round_1.train.accumulate: found 3, expected a divisor of batch_size 2"
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_words_that_are_missing_stop_before_anything_is_made(tmp_path, capfd):
    assert _run(tmp_path / "run", "dreambooth", *flags(words__noun="house")) == 2
    assert "config.words.identifier: empty" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
