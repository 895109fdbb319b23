"""The main job: what a run leaves, that no death changes it, and what feedback does to the next round."""

import hashlib
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny
from PIL import Image

from styledrop_jax import personalize
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.pipelines import muse

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
        assert {row["text"] for row in rows} == {
            f"{p} in watercolor painting style" for p in tiny.PROMPTS
        }
        parts = [row["scores"]["clip_text"] + row["scores"]["clip_style"] for row in rows]
        np.testing.assert_allclose([row["score"] for row in rows], parts, rtol=1e-6)
        pictures = [(folder / row["file"]).read_bytes() for row in rows]
        assert len(set(pictures)) > 1
        assert image_files.read_image(folder / rows[0]["file"]).shape == (
            tiny.RESOLUTION,
            tiny.RESOLUTION,
            3,
        )
        best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
        assert read_json(folder / "selected.json")["selected"] == best
        assert image_files.read_image(folder / "grid.png").shape == (76, 48, 3)
    assert len(read_jsonl(workdir / "base" / "scores.jsonl")) == len(tiny.PROMPTS)
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in report and "styledrop personalize --config" in report
    assert not any(word in report for word in ('src="http', 'href="http', "<script"))
    runs.nothing_half_written(workdir)


def test_the_manifest_says_what_was_used():
    workdir = tiny.finished()
    manifest = read_json(workdir / "manifest.json")
    (reference,) = manifest["references"]
    assert reference["sha256"] == hashlib.sha256(tiny.reference().read_bytes()).hexdigest()
    assert reference["caption"] == "a house in watercolor painting style"
    shown = image_files.read_image(workdir / reference["file"])
    assert np.array_equal(
        shown, image_files.to_square(image_files.read_image(tiny.reference()), tiny.RESOLUTION)
    )
    weights = (
        tiny.models() / "muse" / "transformer" / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert manifest["base"]["hash"] == hashlib.sha256(weights).hexdigest()
    for number, images in ((1, 1), (2, 2)):
        counts = manifest["rounds"][f"round_{number}"]
        tensors = load_adapter(workdir / f"round_{number}" / "adapter.safetensors").tensors.values()
        assert counts["trainable"] == sum(tensor.size for tensor in tensors)
        assert counts["frozen"] == manifest["base"]["parameters"]
        assert counts["images"] == images
    assert manifest["prompts"] == list(tiny.PROMPTS)
    assert {"jax", "flax", "styledrop_jax", "python"} <= set(manifest["versions"]) and manifest[
        "device"
    ]


def test_metrics_have_every_round_and_the_adapters_learn():
    rows = read_jsonl(tiny.finished() / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [
        (f"round_{n}", s) for n in (1, 2) for s in (2, 4)
    ]
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows)
    for number in (1, 2):
        tensors = load_adapter(tiny.finished() / f"round_{number}" / "adapter.safetensors").tensors
        assert all(np.abs(tensor).max() > 0 for tensor in tensors.values()), (
            "an up-projection that is 0 never learned"
        )


def test_running_again_does_nothing_and_says_so(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"}
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    out = capfd.readouterr().out
    assert "is finished" in out and str(workdir / "report.html") in out
    assert {
        path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"
    } == before


# -------------------------------------------------------------- death and resumption


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    workdir, deaths = tmp_path / "run", 0
    while runs.run_until_death(
        workdir, 1 + deaths % 3
    ):  # every file, or every few, after each start
        deaths += 1
        assert deaths < 40
    assert deaths > 12
    assert runs.results(workdir) == runs.results(tiny.finished())
    runs.nothing_half_written(workdir)


def test_a_lost_adapter_is_trained_again_from_the_last_checkpoint(tmp_path):
    workdir = runs.copy(tmp_path)
    expected = runs.results(workdir)
    runs.forget(workdir, "report.html", "round_2/adapter.safetensors", "round_2/checkpoints/4")
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == expected


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax drops its other reads
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    expected = runs.results(workdir)
    runs.forget(workdir, "report.html", "round_2/adapter.safetensors")
    folder = workdir / "round_2" / "checkpoints" / "4"
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != folder:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    assert str(folder) in runs.one_line(capfd)
    shutil.rmtree(folder)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == expected


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_checkpoint(
    tmp_path, capfd, monkeypatch
):
    workdir = runs.copy(tmp_path)
    runs.forget(
        workdir,
        "report.html",
        "round_2/adapter.safetensors",
        "round_2/checkpoints/4",
        "round_2/selected.json",
    )
    monkeypatch.setattr(
        muse.Muse, "loss", lambda *args: (jnp.full(2, jnp.nan), {"accuracy": jnp.zeros(2)})
    )
    assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    error = runs.one_line(capfd)
    assert (
        "round_2: not a number" in error
        and "step 4" in error
        and str(workdir / "round_2/checkpoints/2") in error
    )
    assert (
        not (workdir / "round_2" / "adapter.safetensors").exists()
        and not (workdir / "report.html").exists()
    )
    monkeypatch.undo()
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


@pytest.mark.parametrize("where", ["samples/p001_i000.png", "scores.jsonl", "adapter.safetensors"])
def test_a_full_disk_stops_with_one_line_and_the_run_continues(tmp_path, capfd, where):
    workdir = runs.copy(tmp_path)
    runs.forget(
        workdir,
        "report.html",
        *(f"round_2/{name}" for name in ("scores.jsonl", "samples", "adapter.safetensors")),
    )

    def fsync(number):
        if where.rpartition("/")[2] in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert tiny.styledrop(*tiny.arguments(workdir)) == 2
    error = runs.one_line(capfd)
    assert where in error and ("disk is full" in error or "No space left" in error)
    assert not (workdir / "round_2" / where).exists() and not (workdir / "report.html").exists()
    runs.nothing_half_written(workdir)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


def test_a_checkpoint_comes_at_least_as_often_as_asked(tmp_path):
    """13 is no multiple of the steps that are run at once."""
    hyper = {"steps": 14, "checkpoint_every": 13}
    words = [
        word for name, value in hyper.items() for word in (f"--config.round_1.train.{name}", value)
    ]
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalize._Job, "draw_base", lambda self: None)
        assert runs.run_until_death(
            workdir, 3 + 13 + 1, *words
        )  # two of the three are config and manifest
    assert [
        path.name for path in (workdir / "round_1" / "checkpoints").iterdir() if path.name.isdigit()
    ] == ["13"]


# -------------------------------------------------------------- what must not change under a run


def test_another_config_on_an_old_folder_names_the_fields(tmp_path, capfd):
    changes = ["--config.seed", 1, "--config.round_2.adapter.rank", 8]
    before = runs.results(tiny.finished())
    assert tiny.styledrop(*tiny.arguments(tiny.finished(), *changes)) == 2
    error = runs.one_line(capfd)
    assert "seed was 0, now 1" in error and "round_2.adapter.rank was 16, now 8" in error
    assert runs.results(tiny.finished()) == before


def test_inputs_that_change_under_their_path_are_an_error(tmp_path, capfd):
    image, prompts, base = tmp_path / "mine.png", tmp_path / "mine.txt", tmp_path / "base"
    tiny.picture(image)
    prompts.write_text("a cat\n", encoding="utf-8")
    shutil.copytree(tiny.models() / "muse", base)
    line = tiny.arguments(
        tmp_path / "run", "--config.prompts", prompts, "--config.base", base, image=image
    )
    runs.begun(tmp_path / "run", "--config.prompts", prompts, "--config.base", base, image=image)

    tiny.picture(image, seed=1)
    prompts.write_text("a dog\n", encoding="utf-8")
    assert tiny.styledrop(*line) == 2
    error = runs.one_line(capfd)
    assert "config.reference" in error and "config.prompts" in error and "has changed" in error

    tiny.picture(image)
    prompts.write_text("a cat\n", encoding="utf-8")
    shutil.copytree(tiny.other_models() / "muse", base, dirs_exist_ok=True)
    assert tiny.styledrop(*line) == 2
    assert "config.base" in runs.one_line(capfd)


def test_a_run_that_could_not_begin_does_not_keep_its_config(tmp_path, capfd):
    workdir = tmp_path / "run"
    assert tiny.styledrop(*tiny.arguments(workdir, "--config.clip", tmp_path / "nowhere")) == 2
    assert "nowhere" in runs.one_line(capfd)
    assert not workdir.exists()
    runs.begun(workdir)


# -------------------------------------------------------------- references


def _adapter(workdir, image, *more):
    """The adapter of round 1, and nothing after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalize._Job, "draw_base", lambda self: None)
        patch.setattr(personalize, "save_adapter", lambda *args, **kwargs: _stop())
        with pytest.raises(runs.Death):
            tiny.styledrop(*tiny.arguments(workdir, *more, image=image))
    return read_jsonl(workdir / "metrics.jsonl")


def _stop():
    raise runs.Death


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
        captions = [
            entry["caption"] for entry in read_json(tmp_path / name / "manifest.json")["references"]
        ]
        assert captions == [
            f"{content} in watercolor painting style" for content in ("a house", "a red cat")
        ]
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

    manifest = runs.begun(
        tmp_path / "run", "--config.reference.content=", image=folder, references=4
    )
    assert (
        f"{folder / 'a cmyk.tif'} and 3 more: not of an aspect that this model draws"
        in capfd.readouterr().out
    )
    entries = manifest["references"]
    assert [entry["content"] for entry in entries] == ["a cmyk", "b deep", "c palette", "d rotated"]
    expected = image_files.to_square(upright, tiny.RESOLUTION).astype(int)
    shown = [
        image_files.read_image(tmp_path / "run" / entry["file"]).astype(int) for entry in entries
    ]
    shown[1], gray = shown[1][..., 0], expected[..., 0]
    for picture, right in zip(shown, (expected, gray, expected, expected), strict=True):
        assert np.abs(picture - right).max() <= 2
