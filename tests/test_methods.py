"""Methods: their prompts, their further streams, and a run of each from the command line."""

from types import SimpleNamespace

import numpy as np
import pytest
import runs
import tiny

from styledrop_jax import config, personalize
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.methods import side_by_side
from styledrop_jax.methods.base import spread
from styledrop_jax.methods.table import METHODS
from styledrop_jax.sampling import schedulers
from styledrop_jax.stages import sources

WORDS = {"words": {"identifier": "sks", "noun": "dog"}}


def test_prompts_of_every_method():
    dreambooth, styleforge = METHODS["dreambooth"], METHODS["styleforge"]
    assert [dreambooth.caption(stream, WORDS) for stream in dreambooth.streams] == [
        "a sks dog",
        "a dog",
    ]
    assert (
        dreambooth.prompt(WORDS, "a {subject} on a blue background")
        == "a sks dog on a blue background"
    )
    assert (
        dreambooth.judgement(WORDS, "a {subject} on a blue background")
        == "a dog on a blue background"
    )
    assert [styleforge.caption(stream, WORDS) for stream in styleforge.streams] == [
        "sks style",
        "style",
    ]
    assert (
        styleforge.prompt(WORDS, "a cat") == "a cat in sks style"
        and styleforge.judgement(WORDS, "a cat") == "a cat"
    )
    styledrop, empty = METHODS["styledrop"], {"words": {"identifier": "", "noun": ""}}
    assert styledrop.prompt(empty, "a cat {odd}", "in red") == "a cat {odd} in red"
    assert styledrop.prompt(empty, "a cat in red", "in red") == "a cat in red"
    assert "'a dog' does not say 'sks dog'" in dreambooth.remark(WORDS, "a dog")
    assert not any(dreambooth.remark(WORDS, prompt) for prompt in ("a {subject}", "a sks dog"))
    assert not styledrop.remark(empty, "a cat") and not styleforge.remark(WORDS, "a cat")
    with pytest.raises(UserError, match="stands for nothing here"):
        styledrop.prompt(empty, "a {subject}", "in red")
    with pytest.raises(UserError, match="identifier: empty.* `styledrop rare-tokens`"):
        styleforge.prompt(empty, "a cat")
    with pytest.raises(UserError, match="config.words.noun: empty"):
        dreambooth.caption(dreambooth.streams[0], {"words": {"identifier": "sks", "noun": ""}})


def test_sampling_warns_of_a_prompt_without_the_subject():
    style = SimpleNamespace(
        method=METHODS["dreambooth"], config=WORDS, adapted=object(), descriptor=""
    )
    with pytest.warns(UserWarning) as said:
        style._jobs(
            SimpleNamespace(descriptor=None, seed=0, num=2), style, ["a {subject}", "a dog"]
        )
    (remark,) = said
    assert str(remark.message).startswith("prompt 'a dog' does not say 'sks dog'")


STYO = {
    "method": "styo",
    "words": {"identifier": "", "noun": "portrait"},
    "source": {"style": "ak47", "content": "sks"},
    "target": {"style": "aug", "content": "m4a1"},
    "contrast": {
        "negator": "not",
        "style_repeats": 3,
        "content_repeats": 1,
        "repeat_training": True,
        "repeat_drawing": True,
    },
}
COMPONENTS = {
    "words": {"identifier": "", "noun": ""},
    "component_2": {"identifier": "aug"},
    "component_10": {"identifier": "xyz"},
    "component_1": {"identifier": "sks"},
}


def _contrast(**changes):
    return STYO | {"contrast": STYO["contrast"] | changes}


def _captions(method, values):
    return {
        stream.section: method.caption(stream, values) for stream in spread(method.streams, values)
    }


def test_prompts_of_styo_are_the_papers():
    styo = METHODS["styo"]
    again = "a drawing with aug not ak47 aug not ak47 aug not ak47 style of sks not m4a1 portrait"
    assert _captions(styo, STYO) == {
        "source": "a drawing with ak47 not aug ak47 not aug ak47 not aug style of sks not m4a1 portrait",
        "target": "a drawing with aug not ak47 aug not ak47 aug not ak47 style of m4a1 not sks portrait",
        "aux": "a drawing with ak47 not aug style of portrait",
    }
    assert styo.prompt(STYO, *styo.pool) == again and styo.judgement(STYO, *styo.pool) == "portrait"
    assert styo.kept(STYO) == "sks not m4a1 portrait" and again.endswith(styo.kept(STYO))
    drawn_only = _contrast(negator="without", content_repeats=2, repeat_training=False)
    source = "a drawing with ak47 without aug style of sks without m4a1 portrait"
    assert _captions(styo, drawn_only)["source"] == source
    assert styo.prompt(drawn_only, "{subject}").endswith(
        "style of sks without m4a1 sks without m4a1 portrait"
    )
    plain = _contrast(negator="")
    assert _captions(styo, plain)["target"] == "a drawing with aug aug aug style of m4a1 portrait"
    assert (
        styo.prompt(plain, "{subject}").endswith(styo.kept(plain))
        and styo.kept(plain) == "sks portrait"
    )
    trained_only = _contrast(repeat_drawing=False)
    assert _captions(styo, trained_only)["source"].count("ak47 not aug") == 3
    assert (
        styo.prompt(trained_only, "{subject}")
        == "a drawing with aug not ak47 style of sks not m4a1 portrait"
    )


def test_multi_styleforge_has_streams_of_every_component_and_draws_them_all():
    multi = METHODS["multi_styleforge"]
    components = [f"component_{i}" for i in (1, 2, 10)]
    taught = dict(zip(components, ("sks style", "aug style", "xyz style"), strict=True))
    assert _captions(multi, COMPONENTS) == taught | {f"{name}.aux": "style" for name in components}
    assert multi.prompt(COMPONENTS, "a cat") == "a cat in sks style and aug style and xyz style"
    assert multi.judgement(COMPONENTS, "a cat") == "a cat"
    assert multi.identifiers(COMPONENTS) == ["sks", "aug", "xyz"]


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        (
            "styo",
            STYO | {"target": {"style": "SKS", "content": "m4a1"}},
            "config.target.style: .SKS., as config",
        ),
        (
            "multi_styleforge",
            COMPONENTS | {"component_10": {"identifier": "aug"}},
            "config.component_10.identifier",
        ),
    ],
)
def test_no_word_stands_for_two_things(method, values, words):
    with pytest.raises(UserError, match=words):
        METHODS[method].identifiers(values)


def test_the_schema_knows_every_method_and_sampler():
    assert set(config.METHODS) == set(METHODS) and set(config.SAMPLERS) == set(schedulers.SAMPLERS)


def _flags(**fields):
    return [
        word
        for name, value in fields.items()
        for word in (f"--config.{name.replace('__', '.')}", value)
    ]


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
    assert "warning: prompt 'a cat' does not say 'sks house'" in capfd.readouterr().out
    assert _run(tmp_path / "more", "dreambooth", *words, *_flags(prior__generate=4)) == 0
    assert "drawing 'a house' with the frozen model: 1 of 4" in capfd.readouterr().out
    assert len(list(cache.iterdir())) == 4 and all(
        (cache / name).read_bytes() == drawn[name] for name in drawn
    )
    assert _run(tmp_path / "same", "dreambooth", *words, *_flags(prior__generate=4)) == 0
    assert (
        f"images of 'a house' by the frozen model: 4 drawn before, in {cache}"
        in capfd.readouterr().out
    )


def test_an_identifier_that_names_a_thing_to_the_shipped_model_is_warned_of(tmp_path, capfd):
    given = _flags(base="emoji64/sd", clip="emoji64/clip", words__identifier="car")
    assert _run(tmp_path / "run", "styleforge", *given) == 2, "no aux"
    assert (
        "warning: identifier 'car' already names something to emoji64/sd" in capfd.readouterr().out
    )


def test_styleforge_takes_its_aux_from_the_user(tmp_path, capfd):
    words = _flags(words__identifier="sks")
    assert _run(tmp_path / "none", "styleforge", *words) == 2
    said = capfd.readouterr().err
    assert "config.aux.image: empty" in said and "config.aux.generate above 0" in said
    for i in range(3):
        tiny.picture(tmp_path / "aux" / f"{i}.png", seed=i)
    assert _run(tmp_path / "run", "styleforge", *words, *_flags(aux__image=tmp_path / "aux")) == 0
    (stream,) = read_json(tmp_path / "run" / "manifest.json")["streams"]
    assert stream["prompt"] == "style" and len(set(stream["sha256"])) == 3
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]
    assert row["text"] == "a cat in sks style"
    assert row["judged"] == "a cat in watercolor painting style", "in words that a scorer can know"


def _own(workdir, method, preset, *more):
    """The smallest run of a config without a reference."""
    line = [
        "personalize",
        "--config",
        f"{tiny.ROOT / 'configs' / method}.py:{preset}",
        "--workdir",
        workdir,
    ]
    small = _flags(
        clip=tiny.models() / "clip",
        dtype="float32",
        round_1__train__steps=2,
        round_1__sample__steps=2,
        round_1__sample__batch_size=2,
        round_1__sample__images_per_prompt=1,
    )
    return tiny.styledrop(*line, *small, *more)


def _multi(workdir, *more):
    """Two components, of which the second has no Aux."""
    given = {
        "base": tiny.models() / "muse",
        "prompts": tiny.prompt_file(),
        "component_1__image": tiny.reference(),
        "component_1__aux__image": tiny.picture(workdir.parent / "aux.png", seed=6),
        "component_2__image": tiny.picture(workdir.parent / "background.png", seed=5),
    }
    return _own(workdir, "multi_styleforge", "emoji64", *_flags(**given), *more)


def test_multi_styleforge_learns_a_word_for_each_component(tmp_path, capfd):
    assert _multi(tmp_path / "run") == 2
    assert (
        "config.component_2.aux.image: empty; expected images of 'style'" in capfd.readouterr().err
    )
    assert not (tmp_path / "run" / "manifest.json").exists()
    aux = _flags(component_2__aux__image=tmp_path / "aux.png", component_2__aux__weight=0.5)
    same = _flags(component_2__identifier="SKS")
    assert _multi(tmp_path / "run", *aux, *same) == 2
    assert "config.component_2.identifier: 'SKS', as config.component_1" in capfd.readouterr().err

    words = _flags(
        component_1__identifier="<v>", component_2__identifier="<w>", round_1__train__text_dropout=0
    )
    words += _flags(round_1__adapter__kind="textual_inversion", round_1__adapter__initializer="cat")
    assert _multi(tmp_path / "run", *aux, *words) == 0
    manifest = read_json(tmp_path / "run" / "manifest.json")
    shown = [(entry["section"], entry["caption"]) for entry in manifest["references"]]
    assert shown == [("component_1", "<v> style"), ("component_2", "<w> style")]
    assert [(stream["prompt"], stream["weight"]) for stream in manifest["streams"]] == [
        ("style", 1.0),
        ("style", 0.5),
    ]
    for row in read_jsonl(tmp_path / "run" / "metrics.jsonl"):
        losses = [row[f"loss_{i}"] for i in range(4)]
        np.testing.assert_allclose(row["loss"], np.dot(losses, [1, 1, 1, 0.5]), rtol=1e-5)
    (rows,) = load_adapter(tmp_path / "run" / "round_1" / "adapter.safetensors").tensors.values()
    assert len(rows) == 2 and (rows[0] != rows[1]).any(), "two words that began alike"
    assert (
        read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[0]["text"]
        == "a cat in <v> style and <w> style"
    )


def _styo(workdir, *more):
    given = {
        "base": tiny.stable_diffusion(),
        "source__image": tiny.picture(workdir.parent / "face.png", seed=1),
        "target__image": tiny.picture(workdir.parent / "art.png", seed=2),
        "aux__generate": 2,
        "contrast__style_repeats": 2,
    }
    return _own(workdir, "styo", "sd15", *_flags(**given), *more)


def test_styo_redraws_the_source_in_the_targets_style(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _styo(tmp_path / "run", *_flags(contrast__repeat_training="false")) == 2
    error = capfd.readouterr().err
    assert error.startswith(
        "error: config.source.control: the prompts 'a drawing with ak47 not aug style of sks not m4a1"
    )
    assert "do not align" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "manifest.json").exists()

    tiny.picture(tmp_path / "faces" / "anna.png", seed=1)
    tiny.picture(tmp_path / "faces" / "bert.png", seed=3)
    assert _styo(tmp_path / "run", *_flags(source__image=tmp_path / "faces")) == 0
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert [entry["section"] for entry in manifest["references"]] == ["target", "source", "source"]
    (aux,) = manifest["streams"]
    assert (
        aux["prompt"] == "a drawing with ak47 not aug style of portrait" and len(aux["sha256"]) == 2
    )
    counts = manifest["rounds"]["round_1"]
    assert counts["frozen"] == 0 and counts["trainable"] == manifest["base"]["parameters"], (
        "not the text tower"
    )
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    np.testing.assert_allclose(
        row["loss"], row["loss_0"] + row["loss_1"] + row["loss_2"], rtol=1e-5
    )

    rows = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")
    assert [(row["content"], row["source"]) for row in rows] == [
        ("anna", "references/001.png"),
        ("bert", "references/002.png"),
    ]
    assert {row["text"] for row in rows} == {
        "a drawing with aug not ak47 aug not ak47 style of sks not m4a1 portrait"
    }
    pictures = [image_files.read_image(tmp_path / "run" / "round_1" / row["file"]) for row in rows]
    assert (pictures[0] != pictures[1]).any(), "each follows its own source"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert report.count('alt="anna: source"') == 1 and 'alt="bert: Round 1"' in report


def test_styo_trains_its_three_streams_on_muse_and_draws_from_words_alone(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    muse = _flags(base=tiny.models() / "muse")
    assert _styo(tmp_path / "run", *muse) == 2
    assert (
        "config.source.control: found 1.0, expected 0: control of the attention needs"
        in capfd.readouterr().err
    )
    more = _flags(source__control=0, round_1__adapter__kind="styledrop", round_1__adapter__rank=4)
    assert _styo(tmp_path / "run", *muse, *more) == 0
    assert {"loss_0", "loss_1", "loss_2"} <= set(read_jsonl(tmp_path / "run" / "metrics.jsonl")[0])
    (row,) = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")
    assert "source" not in row and row["text"].startswith("a drawing with aug not ak47")


@pytest.mark.parametrize("method", ["lora", "textual_inversion", "custom_diffusion", "svdiff"])
def test_a_baseline_runs_and_sample_draws_what_it_drew(method, tmp_path):
    assert _run(tmp_path / "run", method, *_flags(round_1__adapter__initializer="cat")) == 0
    file = load_adapter(tmp_path / "run" / "round_1" / "adapter.safetensors")
    trained = {part["adapter"] for part in file.config.values() if part}
    assert method in trained and any(np.abs(tensor).max() > 0 for tensor in file.tensors.values())
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[1]
    words = [
        "--prompt",
        row["content"],
        "--seed",
        row["seed"],
        "--num",
        1,
        "--out",
        tmp_path / "out",
    ]
    assert tiny.styledrop("sample", "--run", tmp_path / "run", *words) == 0
    (line,) = read_jsonl(tmp_path / "out" / "images.jsonl")
    assert line["text"] == row["text"]
    paths = tmp_path / "out" / line["file"], tmp_path / "run" / "round_1" / row["file"]
    np.testing.assert_array_equal(*map(image_files.read_image, paths))


@pytest.mark.parametrize("method", ["lora", "styledrop"])
def test_stable_diffusion_runs_by_the_same_commands(method, tmp_path):
    words = _flags(base=tiny.stable_diffusion(), dtype="float32", round_1__adapter__rank=2)
    words += _flags(
        round_1__train__ema_decay=0.9, round_1__train__accumulate=2, round_1__train__remat="true"
    )
    assert _run(tmp_path / "run", f"{method}:sd15", *words) == 0
    row = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")[1]
    words = ["--prompt", row["content"], "--seed", row["seed"], "--num", 1]
    assert (
        tiny.styledrop("sample", "--run", tmp_path / "run", *words, "--out", tmp_path / "out") == 0
    )
    (line,) = read_jsonl(tmp_path / "out" / "images.jsonl")
    paths = tmp_path / "out" / line["file"], tmp_path / "run" / "round_1" / row["file"]
    np.testing.assert_array_equal(*map(image_files.read_image, paths))
    picture = tiny.picture(tmp_path / "photo.png", size=(16, 16))
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    image_files.write_png(tmp_path / "mask.png", mask)
    edit = [
        "edit",
        "--run",
        tmp_path / "run",
        "--image",
        picture,
        "--mask",
        tmp_path / "mask.png",
        *words,
    ]
    assert tiny.styledrop(*edit, "--out", tmp_path / "edited") == 0
    (line,) = read_jsonl(tmp_path / "edited" / "images.jsonl")
    drawn, before = (
        image_files.read_image(tmp_path / "edited" / line["file"]),
        image_files.read_image(picture),
    )
    np.testing.assert_array_equal(drawn[:, :8], before[:, :8])
    assert (drawn[:, 8:] != before[:, 8:]).any()
    wide = tiny.picture(tmp_path / "photos" / "a wide cat.png", size=(64, 32))
    tiny.picture(tmp_path / "photos" / "a house.png", size=(16, 16))
    stylize = ["stylize", "--run", tmp_path / "run", "--num", 2, "--out", tmp_path / "stylized"]
    assert tiny.styledrop(*stylize, "--image", tmp_path / "photos", "--strength", 0.5) == 0
    rows = read_jsonl(tmp_path / "stylized" / "images.jsonl")
    images = [image_files.read_image(tmp_path / "stylized" / row["file"]) for row in rows]
    assert [image.shape[:2] for image in images] == [(16, 16)] * 2 + [(12, 22)] * 2, (
        "each of its own aspect"
    )
    assert rows[2]["image"] == str(wide) and (images[2] != images[3]).any()


def test_a_word_that_starts_as_too_many_tokens_stops_at_once(tmp_path, capfd):
    assert (
        _run(
            tmp_path / "run",
            "custom_diffusion",
            *_flags(round_1__adapter__initializer="a red house"),
        )
        == 2
    )
    assert "its initializer 'a red house'" in capfd.readouterr().err
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.parametrize(
    ("method", "identifier", "message"),
    [
        (
            "dreambooth",
            " ",
            "error: config.reference: trains under 'a house', as config.prior does",
        ),
        ("styleforge", " ", "error: config.reference: trains under 'style', as config.aux does"),
        ("styleforge", "xqzzyqxvwk", "warning: identifier 'xqzzyqxvwk' is "),
    ],
)
def test_identifiers_that_cannot_or_should_not_be(method, identifier, message, tmp_path, capfd):
    words = _flags(words__noun="house") + [f"--config.words.identifier={identifier}"]
    assert _run(tmp_path / "run", method, *words) == 2, "the last has no Aux"
    said = capfd.readouterr()
    assert message in said.out + said.err and not (tmp_path / "run" / "base").exists()


def test_two_subjects_are_cut_and_put_side_by_side_under_a_prompt_that_says_so():
    left, right = np.full((6, 6, 3), 1, np.uint8), np.full((6, 6, 3), 2, np.uint8)
    left[:, 1:4] += np.arange(10, 40, 10, dtype=np.uint8)[:, None]
    mixed = side_by_side.cut_mix(left, right)
    np.testing.assert_array_equal(mixed[3, :, 0], [11, 21, 31, 2, 2, 2], "the middle half of each")
    method = METHODS["cut_mix"]
    images = ((left, "a sks dog"), (left, "a sks dog"), (right, "b"))
    examples = [SimpleNamespace(image=image, content=content) for image, content in images]
    model = SimpleNamespace(resolution=6)
    (stream,) = sources.mixed(method, {"mix": {"weight": 1.5, "unmix": 0.0}}, examples, model)
    sides = {
        (int(image[0, 0, 0]), int(image[0, 3, 0])): prompt
        for image, prompt in zip(*stream[:2], strict=True)
    }
    assert len(stream.images) == 4 and stream.weight == 1.5, "a subject is not mixed with itself"
    assert sides == {
        (11, 2): "photo of a sks dog on the left and b on the right",
        (2, 11): "photo of b on the left and a sks dog on the right",
    }
    assert method.prompts(["a sks dog", "a sks dog", "b"])[:3] == [
        "a sks dog",
        "b",
        "a sks dog sitting beside b",
    ]
    assert METHODS["dreambooth"].prompts(["x", "y"]) == list(METHODS["dreambooth"].pool)
    assert len(METHODS["styledrop"].prompts(["x"])) == 30


def test_cut_mix_trains_on_each_subject_and_on_pairs(tmp_path, capfd):
    for i, name in enumerate(("a sks dog-1", "a sks dog-2", "a aug cat-1")):
        tiny.picture(tmp_path / "pets" / f"{name}.png", seed=i)
    words = _flags(reference__image=tmp_path / "pets") + [
        "--config.reference.content=",
        "--config.prompts=",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            personalize._Job, "_score", lambda self, stage, pool, weights: _stop(stage, pool)
        )
        with pytest.raises(runs.Death) as stopped:
            _run(tmp_path / "run", "cut_mix", *words)
    stage, texts = stopped.value.args
    assert stage == "round_1" and "photo of a aug cat sitting beside a sks dog" in texts
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(
        np.isclose(row["loss"], row["loss_0"] + 1.5 * row["loss_1"], rtol=1e-5) for row in rows
    )
    captions = {
        entry["caption"] for entry in read_json(tmp_path / "run" / "manifest.json")["references"]
    }
    assert captions == {"photo of a sks dog", "photo of a aug cat"}
    assert _run(tmp_path / "one", "cut_mix", "--config.reference.content", "a dog") == 2
    assert "all images show 'a dog'; expected two subjects" in capfd.readouterr().err
    assert _run(tmp_path / "muse", "cut_mix", *words, *_flags(mix__unmix=1.0)) == 2
    assert "config.mix.unmix: found 1.0, expected 0: the attention of" in capfd.readouterr().err
    words += _flags(mix__unmix=1.0, base=tiny.stable_diffusion(), round_1__train__remat="true")
    assert _run(tmp_path / "remat", "cut_mix", *words) == 2
    assert "expected 0 beside train.remat" in capfd.readouterr().err


def _stop(stage, pool):
    if stage == "round_1":
        raise runs.Death(stage, [row["text"] for row in pool])


def test_a_batch_of_uneven_parts_stops_at_once(tmp_path, capfd):
    assert _run(tmp_path / "run", "lora", *_flags(round_1__train__accumulate=3)) == 2
    assert (
        "config.round_1.train.accumulate: found 3, expected a divisor of batch_size 2"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_words_that_are_missing_stop_before_anything_is_made(tmp_path, capfd):
    assert _run(tmp_path / "run", "dreambooth", *_flags(words__noun="house")) == 2
    assert "config.words.identifier: empty" in capfd.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()
