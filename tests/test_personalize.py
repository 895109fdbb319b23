"""The main job: what a run leaves, that no death changes it, and what must not change under it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny
from PIL import Image

from styledrop_jax import rounds
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl
from styledrop_jax.pipelines import muse
from styledrop_jax.pipelines.load import load
from styledrop_jax.spec import from_config, to_config
from styledrop_jax.stages import report

# -------------------------------------------------------------- what a run leaves


def test_a_run_leaves_adapters_samples_scores_and_a_report():
    workdir = tiny.finished()
    manifest = read_json(workdir / "manifest.json")
    texts = {f"{prompt} in watercolor painting style" for prompt in tiny.PROMPTS}
    for number, width in ((1, 4), (2, 16)):
        folder = workdir / f"round_{number}"
        adapter = load_adapter(folder / "adapter.safetensors", base_hash=manifest["base"]["hash"])
        assert adapter.round == number and adapter.config["denoiser"]["bottleneck"] == width
        rows = read_jsonl(folder / "scores.jsonl")
        assert [(row["prompt"], row["image"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {row["text"] for row in rows} == texts
        parts = [row["scores"]["clip_text"] + row["scores"]["clip_style"] for row in rows]
        np.testing.assert_allclose([row["score"] for row in rows], parts, rtol=1e-6)
        samples = [(folder / row["file"]).read_bytes() for row in rows]
        assert len(set(samples)) > 1
        size = (tiny.RESOLUTION, tiny.RESOLUTION, 3)
        assert image_files.read_image(folder / rows[0]["file"]).shape == size
        best = [max(rows[i : i + 2], key=lambda row: row["score"]) for i in (0, 2)]
        assert read_json(folder / "selected.json")["selected"] == best
        assert image_files.read_image(folder / "grid.png").shape == (76, 48, 3)
        assert not (folder / "checkpoints").exists(), "of no more use once there is an adapter"
    assert len(read_jsonl(workdir / "base" / "scores.jsonl")) == len(tiny.PROMPTS)
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in report and "styledrop personalize --config" in report
    assert not any(word in report for word in ('src="http', 'href="http', "<script"))
    runs.nothing_half_written(workdir)


def test_the_config_holds_the_resolved_settings():
    config = read_json(tiny.finished() / "config.json")
    assert to_config(from_config(config)) == config
    assert config["round_1"]["adapter"] == {
        "kind": "styledrop",
        "rank": 4,
        "shared": True,
        "blocks": "all",
    }
    assert config["base"] == str(tiny.models() / "muse") and config["rounds"] == 2
    assert config["round_2"]["train"]["min_snr_gamma"] == 0.0, "what no config says is there too"


def test_the_manifest_says_what_was_used():
    workdir = tiny.finished()
    manifest = read_json(workdir / "manifest.json")
    (reference,) = manifest["references"]
    assert reference["sha256"] == hashlib.sha256(tiny.reference().read_bytes()).hexdigest()
    assert reference["caption"] == "a house in watercolor painting style"
    shown = image_files.read_image(workdir / reference["file"])
    given = image_files.read_image(tiny.reference())
    assert np.array_equal(shown, image_files.to_square(given, tiny.RESOLUTION))
    assert manifest["base"]["hash"] == load(str(tiny.models() / "muse")).base_hash
    for number, images in ((1, 1), (2, 2)):
        counts = manifest["rounds"][f"round_{number}"]
        tensors = load_adapter(workdir / f"round_{number}" / "adapter.safetensors").tensors.values()
        assert counts["trainable"] == sum(tensor.size for tensor in tensors)
        assert counts["frozen"] == manifest["base"]["parameters"]
        assert counts["images"] == images
        assert counts["training_seconds"] >= 0
    assert manifest["prompts"] == list(tiny.PROMPTS) and manifest["device"]
    assert {"jax", "flax", "styledrop_jax", "python"} <= set(manifest["versions"])


def test_metrics_have_every_round_and_the_adapters_learn():
    rows = read_jsonl(tiny.finished() / "metrics.jsonl")
    steps = [(row["stage"], row["step"]) for row in rows]
    assert steps == [(f"round_{number}", step) for number in (1, 2) for step in (2, 4)]
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows)
    for number in (1, 2):
        tensors = load_adapter(tiny.finished() / f"round_{number}" / "adapter.safetensors").tensors
        for name, tensor in tensors.items():
            assert np.abs(tensor).max() > 0, f"{name} began at 0 and never learned"


def _times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"}


def test_running_again_does_nothing_and_says_so(tmp_path, capfd):
    workdir = runs.copy(tmp_path)
    before = _times(workdir)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    out = capfd.readouterr().out
    assert "is finished" in out and str(workdir / "report.html") in out
    assert _times(workdir) == before


# -------------------------------------------------------------- death and resumption


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    workdir = tmp_path / "run"
    deaths = 0
    while runs.run_until_death(workdir, (1, 4, 2, 5)[deaths % 4]):
        deaths += 1
        assert deaths < 40
    assert deaths > 9
    assert runs.results(workdir) == runs.results(tiny.finished())
    runs.nothing_half_written(workdir)


def _in_the_middle(tmp_path, checkpoints=1):
    """A run that died while it trained its second round."""
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html", "round_2")
    runs.train_until_death(workdir, checkpoints)
    assert not (workdir / "round_2" / "adapter.safetensors").exists()
    return workdir


def test_training_goes_on_from_the_last_checkpoint(tmp_path, capfd):
    workdir = _in_the_middle(tmp_path)
    capfd.readouterr()
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert "round_2: 2 of 4" in capfd.readouterr().out
    assert runs.results(workdir) == runs.results(tiny.finished())
    assert not (workdir / "round_2" / "checkpoints").exists()


def test_a_padded_image_is_padded_in_all_of_a_run_and_after_a_death(tmp_path, capfd, caplog):
    """In its copy, in what trains, in what judges, and in the true images of its prompts."""
    banner = tmp_path / "banner.png"
    Image.fromarray(np.repeat(np.arange(60, dtype=np.uint8), 3).reshape(1, 60, 3) % 9).save(banner)
    truth = tmp_path / "truth"
    truth.mkdir()
    shutil.copy(banner, truth / "cat.png")
    flags = runs.flags(truth=truth, round_1__train__random_crop="true", reference__fit="pad")
    workdir = tmp_path / "run"
    assert tiny.styledrop(*tiny.arguments(workdir, *flags, image=banner)) == 0
    pads = "config.reference.fit: padded to a square with the colour of the ground:"
    assert f"{pads} banner.png" in caplog.text and f"{pads} cat.png" in caplog.text
    (entry,) = read_json(workdir / "manifest.json")["references"]
    assert (entry["fit"], entry["ground"]) == ("pad", "#040404")
    square = image_files.to_square(
        image_files.read_image(banner), tiny.RESOLUTION, ground="#040404"
    )
    for file in ("references/000.png", "truth/cat.png"):
        np.testing.assert_array_equal(image_files.read_image(workdir / file), square)
    expected = runs.results(workdir)
    shown = report.embedded(workdir / "references/000.png")[0]
    assert shown in (workdir / "report.html").read_text(encoding="utf-8")

    runs.forget(workdir, "report.html", "round_1", "round_2", "truth")
    runs.train_until_death(workdir, 1, *flags, image=banner)
    assert tiny.styledrop(*tiny.arguments(workdir, *flags, image=banner)) == 0
    assert runs.results(workdir) == expected

    cut = runs.flags(reference__fit="crop")
    error = runs.refused(capfd, *tiny.arguments(workdir, *flags, *cut, image=banner))
    assert 'reference.fit was "pad", now "crop"' in error


def test_a_lost_adapter_is_trained_again(tmp_path):
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html", "round_2/adapter.safetensors")
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


def test_checkpoints_that_death_left_beside_an_adapter_are_removed(tmp_path):
    workdir = runs.copy(tmp_path)
    runs.forget(workdir, "report.html")
    (workdir / "round_1" / "checkpoints" / "4").mkdir(parents=True)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert not (workdir / "round_1" / "checkpoints").exists()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax drops its other reads
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, capfd):
    workdir = _in_the_middle(tmp_path, checkpoints=2)
    folder = workdir / "round_2" / "checkpoints" / "4"
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != folder:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(folder) in runs.refused(capfd, *tiny.arguments(workdir))
    shutil.rmtree(folder)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_checkpoint(
    tmp_path, capfd, monkeypatch
):
    workdir = _in_the_middle(tmp_path)

    def no_number(*_):
        return jnp.full(2, jnp.nan), {"accuracy": jnp.zeros(2)}

    monkeypatch.setattr(muse.Muse, "loss", lambda *_: no_number)
    error = runs.refused(capfd, *tiny.arguments(workdir))
    assert "round_2: not a number" in error and "step 4" in error
    assert str(workdir / "round_2/checkpoints/2") in error
    assert not (workdir / "round_2" / "adapter.safetensors").exists()
    assert not (workdir / "report.html").exists()
    monkeypatch.undo()
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


@pytest.mark.parametrize("where", ["samples/p001_i000.png", "scores.jsonl", "adapter.safetensors"])
def test_a_full_disk_stops_with_one_line_and_the_run_continues(tmp_path, capfd, where):
    workdir = runs.copy(tmp_path)
    made = ("scores.jsonl", "samples", "adapter.safetensors")
    runs.forget(workdir, "report.html", *(f"round_2/{name}" for name in made))

    def fsync(number):
        if where.rpartition("/")[2] in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        error = runs.refused(capfd, *tiny.arguments(workdir))
    assert where in error and ("disk is full" in error or "No space left" in error)
    assert not (workdir / "round_2" / where).exists() and not (workdir / "report.html").exists()
    runs.nothing_half_written(workdir)
    assert tiny.styledrop(*tiny.arguments(workdir)) == 0
    assert runs.results(workdir) == runs.results(tiny.finished())


def test_a_checkpoint_comes_at_least_as_often_as_asked(tmp_path):
    """13 is no multiple of the steps that are run at once."""
    workdir = tmp_path / "run"
    words = runs.flags(round_1__train__steps=14, round_1__train__checkpoint_every=13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "sample_base", lambda job: [])
        patch.setattr(rounds, "score_base", lambda job, samples: [])
        runs.train_until_death(workdir, 1, *words)
    names = [path.name for path in (workdir / "round_1" / "checkpoints").iterdir()]
    assert [name for name in names if name.isdigit()] == ["13"]


# -------------------------------------------------------------- what must not change under a run


def test_another_config_on_an_old_folder_names_the_fields(capfd):
    before = runs.results(tiny.finished())
    changes = runs.flags(seed=1, round_2__adapter__rank=8)
    error = runs.refused(capfd, *tiny.arguments(tiny.finished(), *changes))
    assert "seed was 0, now 1" in error and "round_2.adapter.rank was 16, now 8" in error
    assert runs.results(tiny.finished()) == before


def test_a_field_of_an_adapter_that_is_not_chosen_is_no_change(capfd):
    words = runs.flags(round_1__adapter__vectors=3)
    assert tiny.styledrop(*tiny.arguments(tiny.finished(), *words)) == 0
    assert "is finished" in capfd.readouterr().out


def test_inputs_that_change_under_their_path_are_an_error(tmp_path, capfd):
    image = tiny.picture(tmp_path / "mine.png")
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    base = shutil.copytree(tiny.models() / "muse", tmp_path / "base")
    words = runs.flags(prompts=prompts, base=base)
    line = tiny.arguments(tmp_path / "run", *words, image=image)
    runs.begun(tmp_path / "run", *words, image=image)

    tiny.picture(image, seed=1)
    prompts.write_text("a dog\n", encoding="utf-8")
    error = runs.refused(capfd, *line)
    assert "config.reference" in error and "config.prompts" in error and "has changed" in error

    tiny.picture(image)
    prompts.write_text("a cat\n", encoding="utf-8")
    shutil.copytree(tiny.other_models() / "muse", base, dirs_exist_ok=True)
    assert "config.base" in runs.refused(capfd, *line)


def test_a_run_that_could_not_begin_does_not_keep_its_config(tmp_path, capfd):
    workdir = tmp_path / "run"
    line = tiny.arguments(workdir, *runs.flags(clip=tmp_path / "nowhere"))
    assert "nowhere" in runs.refused(capfd, *line)
    assert not workdir.exists()
    runs.begun(workdir)


# -------------------------------------------------------------- files that have moved


def test_a_base_model_that_has_moved_is_pointed_to(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.models() / "muse", tmp_path / "models" / "muse")
    words = runs.flags(base="models/muse")
    runs.begun(tmp_path / "run", *words)
    line = tiny.arguments(tmp_path / "run", *words)
    (tmp_path / "models").rename(tmp_path / "moved")
    assert "models/muse" in runs.refused(capfd, *line)
    assert "models/muse" in runs.refused(capfd, *line, "--base", "models/muse")

    other = tiny.other_models() / "muse"
    error = runs.refused(capfd, *line, "--base", other)
    assert str(other) in error and "is not the base model that this run began on" in error

    assert tiny.styledrop(*line, "--base", "moved/muse") == 0
    config = read_json(tmp_path / "run" / "config.json")
    assert config["base"] == str(tmp_path / "models" / "muse"), "where it was when the run began"
    for number in (1, 2):
        adapter = f"round_{number}/adapter.safetensors"
        found, expected = (
            load_adapter(run / adapter) for run in (tmp_path / "run", tiny.finished())
        )
        for name, tensor in expected.tensors.items():
            np.testing.assert_array_equal(found.tensors[name], tensor)

    sample = ["sample", "--run", tmp_path / "run", "--prompt", "a cat", "--num", 1]
    assert "models/muse" in runs.refused(capfd, *sample)
    assert "trained on base model" in runs.refused(capfd, *sample, "--base", other)
    assert tiny.styledrop(*sample, "--base", "moved/muse") == 0


def test_a_run_goes_on_from_another_folder(tmp_path, capfd, monkeypatch):
    home = tmp_path / "home"
    tiny.picture(home / "mine.png")
    shutil.copytree(tiny.ROOT / "configs", home / "configs")
    (home / "words.txt").write_text("a cat\n", encoding="utf-8")
    monkeypatch.chdir(home)
    words = ["--config", "configs/debug.py:emoji128-muse", "--config.prompts", "words.txt"]
    runs.begun(Path("run"), *words, image="mine.png")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    moved = ["--config", "../home/configs/debug.py:emoji128-muse"]
    moved += ["--config.prompts", "../home/words.txt"]
    line = tiny.arguments("../home/run", *moved, image="../home/mine.png")
    assert tiny.styledrop(*line) == 0
    report = "report: ../home/run/report.html"
    assert capfd.readouterr().out.splitlines()[-1] == report
    config = read_json(home / "run" / "config.json")
    assert config["reference"]["image"] == str(home / "mine.png")
    assert not list(elsewhere.iterdir())


# -------------------------------------------------------------- references


def _adapter(workdir, image):
    """The losses of round 1, and nothing after it."""
    with pytest.MonkeyPatch.context() as patch:
        runs.train_only(patch)
        with pytest.raises(runs.Death):
            tiny.styledrop(*tiny.arguments(workdir, image=image))
    return read_jsonl(workdir / "metrics.jsonl")


def test_every_reference_of_a_jsonl_counts(tmp_path):
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
        manifest = read_json(tmp_path / name / "manifest.json")
        captions = [entry["caption"] for entry in manifest["references"]]
        assert captions == [
            "a house in watercolor painting style",
            "a red cat in watercolor painting style",
        ]
        assert manifest["rounds"]["round_1"]["images"] == 2
    assert all(a["loss"] != b["loss"] for a, b in zip(losses["near"], losses["far"], strict=True))


def test_a_folder_of_every_kind_of_image(tmp_path, caplog):
    """CMYK, 16 bits, a palette, a rotated photo: each upright, in its colours, by its name."""
    upright = np.asarray(Image.open(tiny.picture(tmp_path / "upright.png", size=(16, 32))))
    folder = tmp_path / "references"
    folder.mkdir()
    image = Image.fromarray(upright)
    image.convert("CMYK").save(folder / "a cmyk.tif")
    deep = upright[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "b_deep.png")
    image.quantize(256).save(folder / "c-palette.png")
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "d rotated.png", exif=exif)

    words = ["--config.reference.content="]
    manifest = runs.begun(tmp_path / "run", *words, image=folder, references=4)
    named = "a cmyk.tif, b_deep.png, c-palette.png and 1 more"
    assert f"config.reference.fit: cut to the middle square: {named}" in caplog.text
    entries = manifest["references"]
    assert [entry["content"] for entry in entries] == ["a cmyk", "b deep", "c palette", "d rotated"]
    expected = image_files.to_square(upright, tiny.RESOLUTION).astype(int)
    for entry in entries:
        shown = image_files.read_image(tmp_path / "run" / entry["file"]).astype(int)
        if entry["content"] == "b deep":
            assert np.abs(shown[..., 0] - expected[..., 0]).max() <= 2
        else:
            assert np.abs(shown - expected).max() <= 2


def test_pictures_while_it_trains_change_nothing_else(tmp_path):
    """They are of the first prompts, at the steps asked for, and what is learnt is the same."""
    every = runs.flags(round_1__preview_every=2, rounds=1)
    assert tiny.styledrop(*tiny.arguments(tmp_path / "run", *every)) == 0
    watched = tmp_path / "run" / "round_1"
    assert sorted(path.name for path in (watched / "preview").iterdir()) == [
        "000002_000.png",
        "000002_001.png",
    ]
    adapter = "round_1/adapter.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (tiny.finished() / adapter).read_bytes()


# -------------------------------------------------------------- photographs


def _photographs(folder):
    """Two that are wide, one that is tall."""
    rng = np.random.default_rng(0)
    for name, shape in (("a", (30, 45)), ("b", (60, 100)), ("c", (48, 32))):
        image_files.write_png(folder / f"{name}.png", rng.integers(0, 256, (*shape, 3), np.uint8))
    return folder


def test_photographs_train_in_their_sizes_and_a_death_changes_nothing(tmp_path, capfd):
    more = runs.flags(base=tiny.stable_diffusion(), reference__fit="keep", rounds=1)
    image = _photographs(tmp_path / "photographs")
    runs.train_until_death(tmp_path / "died", 1, *more, image=image)
    assert (
        "images train in 2 sizes, width x height: 2 at 20x12, 1 at 12x20" in capfd.readouterr().out
    )
    learnt = []
    for name in ("died", "whole"):
        with pytest.MonkeyPatch.context() as patch:
            runs.sample_nothing(patch)
            with pytest.raises(runs.Death):
                tiny.styledrop(*tiny.arguments(tmp_path / name, *more, image=image))
        learnt.append((tmp_path / name / "round_1" / "adapter.safetensors").read_bytes())
    assert learnt[0] == learnt[1]


def test_muse_refuses_to_keep_the_shape_of_a_photograph(tmp_path, capfd):
    image = _photographs(tmp_path / "photographs")
    more = runs.flags(reference__fit="keep")
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", *more, image=image))
    assert "config.reference.fit: found 'keep', expected auto, crop or pad" in error
