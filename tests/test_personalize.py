"""The main job: what a run leaves, that no death changes it, and what feedback does to the next round."""

import hashlib
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from styledrop_jax import personalize
from styledrop_jax import run as run_folder
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.backbones import muse
from styledrop_jax.checkpoint import Checkpoints
from styledrop_jax.data import folders
from styledrop_jax.feedback import scorers
from styledrop_jax.run import JsonLines, read_json, read_jsonl, write_json


class Death(BaseException):
    """In place of SIGKILL: nothing in the package catches it."""


def _dies_after(patch, workdir, count):
    """The process dies when, in all, `count` files have been renamed, lines appended or checkpoints saved."""
    left = [count]

    def counted(function, counts=lambda *args: True):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            left[0] -= counts(*args)
            if left[0] == 0:
                raise Death
            return result

        return call

    def in_run(_, path):  # a checkpoint's own files are one event: its save
        return str(path).startswith(str(workdir)) and "checkpoints" not in str(path)

    patch.setattr(os, "replace", counted(os.replace, in_run))
    patch.setattr(JsonLines, "append", counted(JsonLines.append))
    patch.setattr(Checkpoints, "save", counted(Checkpoints.save))


def _run_until_death(workdir, count, *more, **options):
    """Runs `count` events far; False when the run ended before that."""
    with pytest.MonkeyPatch.context() as patch:
        _dies_after(patch, workdir, count)
        try:
            assert tiny.styledrop(*tiny.arguments(workdir, *more, **options)) == 0
            return False
        except Death:
            return True


def _begun(workdir, *more, **options):
    """A run that died right after its manifest: config, one picture for each reference, manifest."""
    assert _run_until_death(workdir, 2 + options.pop("references", 1), *more, **options)
    return read_json(workdir / "manifest.json")


def _copy(tmp_path):
    return shutil.copytree(tiny.finished(), tmp_path / "run")


def _forget(workdir, *names):
    for name in names:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _back_to_selection(workdir, **select):
    """As if the run had other settings of selection and stood right before scoring round 1."""
    config = read_json(workdir / "config.json")
    config["round_1"]["select"].update(select)
    write_json(workdir / "config.json", config)
    _forget(workdir, "report.html", "round_2", *(f"round_1/{name}" for name in ("selected.json", "grid.png")))
    _forget(workdir, "round_1/scores.jsonl")
    words = [(f"--config.round_1.select.{name}", value) for name, value in select.items()]
    return [word for pair in words for word in pair]


def _results(workdir):
    """Everything that depends on the config alone, as bytes."""
    kept = ("*.png", "*.safetensors", "*.json", "*.jsonl")
    paths = (path for pattern in kept for path in workdir.rglob(pattern) if "checkpoints" not in path.parts)
    files = {str(path.relative_to(workdir)): path.read_bytes() for path in paths}
    manifest = json.loads(files.pop("manifest.json"))
    for counts in manifest["rounds"].values():
        counts.pop("training_seconds")
    return files | {"manifest.json": manifest}


def _one_line(capfd):
    """What the command said on standard error: one line."""
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def _nothing_half_written(workdir):
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]


# -------------------------------------------------------------- what a run leaves


def test_a_run_leaves_adapters_drawings_scores_and_a_report():
    workdir = tiny.finished()
    manifest = read_json(workdir / "manifest.json")
    for number, width in ((1, 4), (2, 16)):
        folder = workdir / f"round_{number}"
        adapter = load_adapter(folder / "adapter.safetensors", base_hash=manifest["base"]["hash"])
        assert adapter.round == number and adapter.config["denoiser"]["bottleneck"] == width
        rows = read_jsonl(folder / "scores.jsonl")
        assert [(row["prompt"], row["image"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {row["text"] for row in rows} == {f"{p} in watercolor painting style" for p in tiny.PROMPTS}
        parts = [row["scores"]["clip_text"] + row["scores"]["clip_style"] for row in rows]
        np.testing.assert_allclose([row["score"] for row in rows], parts, rtol=1e-6)
        pictures = [(folder / row["file"]).read_bytes() for row in rows]
        assert len(set(pictures)) > 1
        assert folders.read_image(folder / rows[0]["file"]).shape == (tiny.RESOLUTION, tiny.RESOLUTION, 3)
        best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
        assert read_json(folder / "selected.json")["selected"] == best
        assert folders.read_image(folder / "grid.png").shape == (76, 48, 3)
    assert len(read_jsonl(workdir / "base" / "scores.jsonl")) == len(tiny.PROMPTS)
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in report and "styledrop personalize --config" in report
    assert not any(word in report for word in ('src="http', 'href="http', "<script"))
    _nothing_half_written(workdir)


def test_the_manifest_says_what_was_used():
    workdir = tiny.finished()
    manifest = read_json(workdir / "manifest.json")
    (reference,) = manifest["references"]
    assert reference["sha256"] == hashlib.sha256(tiny.reference().read_bytes()).hexdigest()
    assert reference["caption"] == "a house in watercolor painting style"
    shown = folders.read_image(workdir / reference["file"])
    assert np.array_equal(shown, folders.to_square(folders.read_image(tiny.reference()), tiny.RESOLUTION))
    weights = (tiny.models() / "muse" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert manifest["base"]["hash"] == hashlib.sha256(weights).hexdigest()
    for number, images in ((1, 1), (2, 2)):
        counts = manifest["rounds"][f"round_{number}"]
        tensors = load_adapter(workdir / f"round_{number}" / "adapter.safetensors").tensors.values()
        assert counts["trainable"] == sum(tensor.size for tensor in tensors)
        assert counts["frozen"] == manifest["base"]["parameters"]
        assert counts["images"] == images
    assert manifest["prompts"] == list(tiny.PROMPTS)
    assert {"jax", "flax", "styledrop_jax", "python"} <= set(manifest["versions"]) and manifest["device"]


def test_metrics_have_every_round_and_the_adapters_learn():
    rows = read_jsonl(tiny.finished() / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [(f"round_{n}", s) for n in (1, 2) for s in (2, 4)]
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows)
    for number in (1, 2):
        tensors = load_adapter(tiny.finished() / f"round_{number}" / "adapter.safetensors").tensors
        assert all(np.abs(tensor).max() > 0 for tensor in tensors.values()), "an up-projection that is 0 never learned"


def test_running_again_does_nothing_and_says_so(tmp_path, capfd):
    workdir = _copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"}
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    out = capfd.readouterr().out
    assert "is finished" in out and str(workdir / "report.html") in out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"} == before


# -------------------------------------------------------------- death and resumption


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    workdir, deaths = tmp_path / "run", 0
    while _run_until_death(workdir, 1 + deaths % 3):  # every file, or every few, after each start
        deaths += 1
        assert deaths < 40
    assert deaths > 12
    assert _results(workdir) == _results(tiny.finished())
    _nothing_half_written(workdir)


def test_a_lost_adapter_is_trained_again_from_the_last_checkpoint(tmp_path):
    workdir = _copy(tmp_path)
    expected = _results(workdir)
    _forget(workdir, "report.html", "round_2/adapter.safetensors", "round_2/checkpoints/4")
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert _results(workdir) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its other reads
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, capfd):
    workdir = _copy(tmp_path)
    expected = _results(workdir)
    _forget(workdir, "report.html", "round_2/adapter.safetensors")
    folder = workdir / "round_2" / "checkpoints" / "4"
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != folder:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    assert str(folder) in _one_line(capfd)
    shutil.rmtree(folder)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert _results(workdir) == expected


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_checkpoint(tmp_path, capfd, monkeypatch):
    workdir = _copy(tmp_path)
    _forget(workdir, "report.html", "round_2/adapter.safetensors", "round_2/checkpoints/4", "round_2/selected.json")
    monkeypatch.setattr(muse.Muse, "loss", lambda *args: (jnp.full(2, jnp.nan), {"accuracy": jnp.zeros(2)}))
    assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    error = _one_line(capfd)
    assert "round_2: not a number" in error and "step 4" in error and str(workdir / "round_2/checkpoints/2") in error
    assert not (workdir / "round_2" / "adapter.safetensors").exists() and not (workdir / "report.html").exists()
    monkeypatch.undo()
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert _results(workdir) == _results(tiny.finished())


@pytest.mark.parametrize("where", ["samples/p001_i000.png", "scores.jsonl", "adapter.safetensors"])
def test_a_full_disk_stops_with_one_line_and_the_run_continues(tmp_path, capfd, where):
    workdir = _copy(tmp_path)
    _forget(workdir, "report.html", *(f"round_2/{name}" for name in ("scores.jsonl", "samples", "adapter.safetensors")))

    def fsync(number):
        if where.rpartition("/")[2] in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    error = _one_line(capfd)
    assert where in error and ("disk is full" in error or "No space left" in error)
    assert not (workdir / "round_2" / where).exists() and not (workdir / "report.html").exists()
    _nothing_half_written(workdir)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert _results(workdir) == _results(tiny.finished())


def test_a_checkpoint_comes_at_least_as_often_as_asked(tmp_path):
    """13 is no multiple of the steps that are run at once."""
    hyper = {"steps": 14, "checkpoint_every": 13}
    words = [word for name, value in hyper.items() for word in (f"--config.round_1.train.{name}", value)]
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalize._Job, "draw_base", lambda self: None)
        assert _run_until_death(workdir, 3 + 13 + 1, *words)  # two of the three are config and manifest
    assert [path.name for path in (workdir / "round_1" / "checkpoints").iterdir() if path.name.isdigit()] == ["13"]


# -------------------------------------------------------------- what must not change under a run


def test_another_config_on_an_old_folder_names_the_fields(tmp_path, capfd):
    changes = ["--config.seed", 1, "--config.round_2.adapter.rank", 8]
    before = _results(tiny.finished())
    assert tiny.styledrop(*tiny.arguments(tiny.finished(), *changes)) == 2
    error = _one_line(capfd)
    assert "seed was 0, now 1" in error and "round_2.adapter.rank was 16, now 8" in error
    assert _results(tiny.finished()) == before


def test_inputs_that_change_under_their_path_are_an_error(tmp_path, capfd):
    image, prompts, base = tmp_path / "mine.png", tmp_path / "mine.txt", tmp_path / "base"
    tiny.picture(image)
    prompts.write_text("a cat\n", encoding="utf-8")
    shutil.copytree(tiny.models() / "muse", base)
    line = tiny.arguments(tmp_path / "run", "--config.prompts", prompts, "--config.base", base, image=image)
    _begun(tmp_path / "run", "--config.prompts", prompts, "--config.base", base, image=image)

    tiny.picture(image, seed=1)
    prompts.write_text("a dog\n", encoding="utf-8")
    assert tiny.styledrop(*line) == 2
    error = _one_line(capfd)
    assert "config.reference" in error and "config.prompts" in error and "has changed" in error

    tiny.picture(image)
    prompts.write_text("a cat\n", encoding="utf-8")
    shutil.copytree(tiny.other_models() / "muse", base, dirs_exist_ok=True)
    assert tiny.styledrop(*line) == 2
    assert "config.base" in _one_line(capfd)


def test_a_run_that_could_not_begin_does_not_keep_its_config(tmp_path, capfd):
    workdir = tmp_path / "run"
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.clip", tmp_path / "nowhere")) == 2
    assert "nowhere" in _one_line(capfd)
    _begun(workdir)


# -------------------------------------------------------------- references


def _adapter(workdir, image, *more):
    """The adapter of round 1, and nothing after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalize._Job, "draw_base", lambda self: None)
        patch.setattr(personalize, "save_adapter", lambda *args, **kwargs: _stop())
        with pytest.raises(Death):
            tiny.styledrop(*tiny.arguments(workdir, *more, image=image))
    return read_jsonl(workdir / "metrics.jsonl")


def _stop():
    raise Death


def test_every_reference_of_a_jsonl_counts(tmp_path, capfd):
    """A second image that changes nothing would be one that is never used."""
    for i in range(3):
        tiny.picture(tmp_path / f"{i}.png", seed=i)
    losses = {}
    for name, second in (("near", 1), ("far", 2)):
        rows = [
            {"image": "0.png", "content": "a house", "descriptor": "in watercolor painting style"},
            {"image": f"{second}.png", "content": "a red cat"},
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        losses[name] = _adapter(tmp_path / name, path)
        captions = [entry["caption"] for entry in read_json(tmp_path / name / "manifest.json")["references"]]
        assert captions == [f"{content} in watercolor painting style" for content in ("a house", "a red cat")]
        assert read_json(tmp_path / name / "manifest.json")["rounds"]["round_1"]["images"] == 2
    assert all(a["loss"] != b["loss"] for a, b in zip(losses["near"], losses["far"], strict=True))


def test_a_folder_of_every_kind_of_image(tmp_path, capfd):
    """CMYK, 16 bits, a palette and a rotated photo: each is shown upright and in its colours, named by its file."""
    upright = np.asarray(Image.open(tiny.picture(tmp_path / "upright.png", size=(16, 32))))
    folder = tmp_path / "references"
    folder.mkdir()
    image = Image.fromarray(upright)
    image.convert("CMYK").save(folder / "a cmyk.tif")
    gray = upright[..., 0].astype(np.uint16) * 257
    Image.fromarray(gray).save(folder / "b_deep.png")
    image.quantize(256).save(folder / "c-palette.png")
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "d rotated.png", exif=exif)

    manifest = _begun(tmp_path / "run", "--config.reference.content=", image=folder, references=4)
    entries = manifest["references"]
    assert [entry["content"] for entry in entries] == ["a cmyk", "b deep", "c palette", "d rotated"]
    expected = folders.to_square(upright, tiny.RESOLUTION).astype(int)
    shown = [folders.read_image(tmp_path / "run" / entry["file"]).astype(int) for entry in entries]
    shown[1], gray = shown[1][..., 0], expected[..., 0]
    for picture, right in zip(shown, (expected, gray, expected, expected), strict=True):
        assert np.abs(picture - right).max() <= 2


# -------------------------------------------------------------- feedback


def test_round_2_trains_a_new_adapter_on_what_was_selected(tmp_path):
    workdir = _copy(tmp_path)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    chosen = [row["file"] for row in read_json(workdir / "round_1" / "selected.json")["selected"]]
    others = [row for row in rows if row["file"] not in chosen]
    write_json(workdir / "round_1" / "selected.json", {"selected": others})
    _forget(workdir, "report.html", "round_2")
    assert _run_until_death(workdir, 4)  # the manifest may stay as it is
    first, second = (read_jsonl(folder / "metrics.jsonl") for folder in (tiny.finished(), workdir))
    assert first[:2] == second[:2]
    assert first[2]["loss"] != second[2]["loss"]
    shapes = [load_adapter(tiny.finished() / f"round_{n}" / "adapter.safetensors") for n in (1, 2)]
    assert [adapter.config["denoiser"]["shared"] for adapter in shapes] == [True, False]


@pytest.mark.parametrize(
    "weights",
    [{"clip_text": 0.0, "random": 1.0}, {"clip_text": 1.0, "clip_style": -2.0}, {"clip_text": 0.0, "clip_style": 1.0}],
)
def test_scorers_decide_by_their_weighted_sum(tmp_path, weights):
    workdir = _copy(tmp_path)
    scorers = {"clip_text": 0.0, "clip_style": 0.0, "random": 0.0} | weights
    _back_to_selection(workdir, scorers=scorers)
    words = [word for name, value in scorers.items() for word in (f"--config.round_1.select.scorers.{name}", value)]
    assert _run_until_death(workdir, 2, *words)
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    for row in rows:
        assert row["score"] == pytest.approx(sum(weights[name] * row["scores"][name] for name in weights), abs=1e-6)
    best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == best


def test_random_feedback_looks_at_nothing_but_the_seed():
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    ids = [(row["prompt"], row["image"]) for row in rows]

    def chance(seed: int) -> list[float]:
        samples = scorers.Samples(images=None, prompts=[], ids=ids, references=None, clip=None, seed=seed)
        return list(scorers.SCORERS["random"](samples))

    assert [row["scores"]["random"] for row in rows] == chance(read_json(tiny.finished() / "config.json")["seed"])
    assert chance(1) != chance(2)


def test_top_k_and_threshold(tmp_path, capfd):
    rows = read_jsonl(tiny.finished() / "round_1" / "scores.jsonl")
    ranked = sorted((row["score"] for row in rows), reverse=True)
    middle = (ranked[0] + ranked[1]) / 2
    for i, (settings, count) in enumerate(
        [({"by": "top_k", "k": 3}, 3), ({"by": "threshold", "threshold": middle}, 1)]
    ):
        workdir = _copy(tmp_path / str(i))
        assert _run_until_death(workdir, 2, *_back_to_selection(workdir, **settings))
        chosen = read_json(workdir / "round_1" / "selected.json")["selected"]
        assert sorted((row["score"] for row in chosen), reverse=True) == ranked[:count]
    workdir = _copy(tmp_path / "none")
    words = _back_to_selection(workdir, by="threshold", threshold=2.0)
    assert tiny.styledrop(*tiny.arguments(workdir, *words)) == 2
    assert "threshold: 2.0" in _one_line(capfd)
    assert not (workdir / "round_1" / "selected.json").exists()


def test_more_to_choose_than_is_drawn_is_found_before_anything_runs(tmp_path, capfd):
    for by, k, most in (("prompt", 3, 2), ("top_k", 5, 4)):
        words = ["--config.round_1.select.by", by, "--config.round_1.select.k", k]
        assert tiny.styledrop(*tiny.arguments(tmp_path / "run", *words)) == 2
        error = _one_line(capfd)
        assert f"config.round_1.select.k: found {k}, expected at most {most}" in error
    assert not (tmp_path / "run").exists()


def test_a_third_round_takes_the_settings_of_the_second(tmp_path):
    workdir = _copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"rounds": 3})
    _forget(workdir, "report.html")
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.rounds", 3)) == 0
    second, third = (load_adapter(workdir / f"round_{n}" / "adapter.safetensors") for n in (2, 3))
    assert third.config == second.config and third.round == 3
    assert not np.array_equal(*(next(iter(adapter.tensors.values())) for adapter in (second, third)))
    assert len(read_jsonl(workdir / "round_3" / "scores.jsonl")) == 4
    assert "Round 3" in (workdir / "report.html").read_text(encoding="utf-8")
    before = _results(tiny.finished())
    after = _results(workdir)
    assert all(after[name] == before[name] for name in before if name.startswith(("round_1", "round_2", "base")))


def test_a_person_chooses(tmp_path, capfd):
    workdir = _copy(tmp_path)
    words = _back_to_selection(workdir, by="human")
    line = tiny.arguments(workdir, *words)
    feedback = workdir / "round_1" / "feedback"
    for _ in range(2):  # asking twice is not an answer
        assert tiny.styledrop(*line) == 0
        said = capfd.readouterr().out
        assert str(feedback / "selected.json") in said and str(feedback / "contact_sheet.png") in said
        assert folders.read_image(feedback / "contact_sheet.png").size
        assert read_json(feedback / "selected.json")["selected"] == []
        assert not (workdir / "round_1" / "selected.json").exists() and not (workdir / "round_2").exists()

    wrong = ("not json", "[1]", "{}", '{"selected": null}', '{"selected": [5]}', '{"selected": [1, 1]}')
    for text in wrong:
        (feedback / "selected.json").write_text(text, encoding="utf-8")
        assert tiny.styledrop(*line) == 2, text
        assert str(feedback / "selected.json") in _one_line(capfd)

    write_json(feedback / "selected.json", {"selected": [3, 2]})
    assert tiny.styledrop(*line) == 0
    rows = read_jsonl(workdir / "round_1" / "scores.jsonl")
    assert read_json(workdir / "round_1" / "selected.json")["selected"] == rows[1:3]
    assert read_json(workdir / "manifest.json")["rounds"]["round_2"]["images"] == 2
    assert (workdir / "report.html").exists()


def test_prompts_of_any_script(tmp_path, capfd):
    """From the pool through names, the contact sheet and the report; and one that is too long, with a warning."""
    prompts = ["赤い家", "قطة", "🐱", "🐶", "a cat " + "and a very long tail " * 4]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    words = ["--config.prompts", path, "--config.rounds", 1, "--config.round_1.sample.images_per_prompt", 1]
    line = tiny.arguments(tmp_path / "run", *words, "--config.round_1.select.by", "human")
    assert tiny.styledrop(*line) == 0
    assert "cut: " in capfd.readouterr().err
    answer = tmp_path / "run" / "round_1" / "feedback" / "selected.json"
    write_json(answer, {"selected": [2]})
    assert tiny.styledrop(*line) == 0
    (chosen,) = read_json(tmp_path / "run" / "round_1" / "selected.json")["selected"]
    assert chosen["content"] == "قطة"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(prompt.strip() in report for prompt in prompts)


def test_true_drawings_are_scored_beside_the_rounds(tmp_path, capfd):
    truth = tmp_path / "truth"
    tiny.picture(truth / "cat.png", seed=5)
    workdir = _copy(tmp_path)
    config = read_json(workdir / "config.json")
    write_json(workdir / "config.json", config | {"truth": str(truth)})
    _forget(workdir, "report.html")
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.truth", truth)) == 0
    (row,) = read_jsonl(workdir / "truth" / "scores.jsonl")
    assert row["content"] == "a cat" and set(row["scores"]) == {"clip_text", "clip_style", "random"}
    assert "True drawing" in (workdir / "report.html").read_text(encoding="utf-8")


def test_two_processes_do_not_share_a_run(tmp_path, capfd):
    workdir = _copy(tmp_path)
    with run_folder.Run.open(workdir, read_json(workdir / "config.json")):
        assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    assert "another process" in _one_line(capfd)
