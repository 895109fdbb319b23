"""Files that a user gives to the command line and that are wrong: one line, exit code 2, nothing
half-written.
"""

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import runs
import tiny
from PIL import Image

from styledrop_jax.io import hub
from styledrop_jax.io.files import write_json


def _nothing_left(workdir):
    """No result, and no file that is half one."""
    made = (".html", ".png", ".safetensors", ".jsonl")
    for path in workdir.rglob("*") if workdir.exists() else []:
        assert "tmp" not in path.name and not path.name.endswith(made), path


# -------------------------------------------------------------- bad images


def _header(width, height):
    """A PNG that only promises its pixels."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _write_bad_image(path, kind):
    tiny.picture(path)
    if kind == "text":
        path.write_text("this is no image", encoding="utf-8")
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    if kind == "huge":
        path.write_bytes(_header(60_000, 60_000))
    if kind == "animated":
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    if kind == "missing":
        path.rename(path.with_name("mine2.png"))
    if kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not an image"),
        ("empty", "the file is empty"),
        ("truncated", "damaged or cut short"),
        ("huge", "60,000 x 60,000 pixels"),
        ("animated", "animated, with 2 frames"),
        ("missing", "did you mean 'mine2.png'?"),
        ("folder", "no image in this folder"),
    ],
)
def test_an_image_that_cannot_be_used(tmp_path, capfd, kind, message):
    image = tmp_path / "mine.png"
    _write_bad_image(image, kind)
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", image=image))
    assert str(image) in error and message in error
    assert not (tmp_path / "run").exists()


def test_an_image_without_words(tmp_path, capfd):
    for word in ("content", "descriptor"):
        words = [f"--config.reference.{word}="]
        error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", *words))
        assert f"config.reference.{word}" in error
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------- bad prompts, folders and disks


def test_prompt_files_that_hold_none(tmp_path, capfd):
    for name, content, message in (
        ("empty.txt", b" \n\n", "holds no prompt"),
        ("latin.txt", "Stra\u00dfe".encode("latin-1"), "UTF-8"),
        ("nowhere.txt", None, "no such file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for field in ("prompts", "round_2__prompts"):
            words = runs.flags(**{field: path})
            error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", *words))
            assert str(path) in error and message in error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("here is no folder", encoding="utf-8")
    error = runs.refused(capfd, *tiny.arguments(tmp_path / "file" / "run"))
    assert str(tmp_path / "file" / "run") in error and "expected folders" in error

    run = tmp_path / "run"
    sample = ["sample", "--run", tiny.finished(), "--prompt", "a cat", "--out", run]
    mkdir = Path.mkdir

    def read_only(path, *args, **kwargs):
        if path.is_relative_to(tmp_path):
            raise OSError(30, "Read-only file system")
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    for words in (tiny.arguments(run), sample):
        error = runs.refused(capfd, *words)
        assert str(run) in error and "read-only" in error


def test_a_folder_of_something_else(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"task": ', encoding="utf-8")
    assert "expected JSON" in runs.refused(capfd, *tiny.arguments(tmp_path))
    for config in ({"task": "vq"}, {"round_1": 3}, {"method": ["styo"]}, {}):
        write_json(tmp_path / "config.json", config)
        error = runs.refused(capfd, *tiny.arguments(tmp_path))
        assert "holds a run of another config" in error
    (tmp_path / "config.json").write_text("[" * 200_000, encoding="utf-8")
    assert "expected JSON" in runs.refused(capfd, *tiny.arguments(tmp_path))


# -------------------------------------------------------------- bad weights


class _Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_never_opened(tmp_path, capfd):
    mark = tmp_path / "opened"
    trap = pickle.dumps(_Trap(mark))
    models = shutil.copytree(tiny.models(), tmp_path / "models")
    weights = models / "muse" / "transformer" / "diffusion_pytorch_model.safetensors"
    for name in (weights.name, "diffusion_pytorch_model.bin"):
        weights.unlink(missing_ok=True)
        (weights.parent / name).write_bytes(trap)
        words = runs.flags(base=models / "muse")
        error = runs.refused(capfd, *tiny.arguments(tmp_path / "run", *words))
        assert "pickle" in error and str(weights.parent) in error
        _nothing_left(tmp_path / "run")

    run = shutil.copytree(tiny.finished(), tmp_path / "finished")
    (run / "round_2" / "adapter.safetensors").write_bytes(trap)
    words = ["sample", "--run", run, "--round", 2, "--prompt", "a cat"]
    error = runs.refused(capfd, *words)
    assert "round_2/adapter.safetensors" in error and "pickle" in error
    assert not mark.exists() and not (run / "drawn").exists()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_corrupted_adapter_is_named(tmp_path, capfd, how):
    run = shutil.copytree(tiny.finished(), tmp_path / "run")
    path = run / "round_2" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes({"truncated": bytes(data[:-9]), "flipped": bytes(data), "empty": b""}[how])
    words = ["sample", "--run", run, "--round", 2, "--prompt", "a cat"]
    assert str(path) in runs.refused(capfd, *words)
    assert not (run / "drawn").exists()
    runs.forget(run, "report.html", "round_2/samples", "round_2/scores.jsonl")
    assert str(path) in runs.refused(capfd, *tiny.arguments(run))


def test_a_model_that_is_not_there_says_how_to_get_it(tmp_path, capfd, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError

    for name in ("snapshot_download", "hf_hub_download", "HfApi"):
        monkeypatch.setattr(hub, name, unreachable)
    run = tmp_path / "run"

    def error(base):
        return runs.refused(capfd, *tiny.arguments(run, *runs.flags(base=base)))

    assert "styledrop fetch amused/amused-none" in error("amused/amused-none")
    said = error(tmp_path / "nowhere")
    assert "nowhere" in said and "no such folder" in said
    shutil.copytree(tiny.models() / "muse", tmp_path / "muse")
    shutil.rmtree(tmp_path / "muse" / "vqvae")
    assert "vqvae" in error(tmp_path / "muse")
    _nothing_left(run)
