"""Runs of the main job that die, resume, are copied and compared: what their tests share."""

import json
import os
import shutil

import pytest
import tiny

from styledrop_jax.io.files import JsonLines, read_json, write_json
from styledrop_jax.training.checkpoint import Checkpoints


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


def run_until_death(workdir, count, *more, **options):
    """Runs `count` events far; False when the run ended before that."""
    with pytest.MonkeyPatch.context() as patch:
        _dies_after(patch, workdir, count)
        try:
            assert tiny.styledrop(*tiny.arguments(workdir, *more, **options)) == 0
            return False
        except Death:
            return True


def begun(workdir, *more, **options):
    """A run that died right after its manifest: config, one picture for each reference, manifest."""
    assert run_until_death(workdir, 2 + options.pop("references", 1), *more, **options)
    return read_json(workdir / "manifest.json")


def copy(tmp_path):
    return shutil.copytree(tiny.finished(), tmp_path / "run")


def forget(workdir, *names):
    for name in names:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def back_to_selection(workdir, **select):
    """As if the run had other settings of selection and stood right before scoring round 1."""
    config = read_json(workdir / "config.json")
    config["round_1"]["select"].update(select)
    write_json(workdir / "config.json", config)
    forget(
        workdir,
        "report.html",
        "round_2",
        *(f"round_1/{name}" for name in ("selected.json", "grid.png")),
    )
    forget(workdir, "round_1/scores.jsonl")
    words = [(f"--config.round_1.select.{name}", value) for name, value in select.items()]
    return [word for pair in words for word in pair]


def results(workdir):
    """Everything that depends on the config alone, as bytes."""
    kept = ("*.png", "*.safetensors", "*.json", "*.jsonl")
    paths = (
        path
        for pattern in kept
        for path in workdir.rglob(pattern)
        if "checkpoints" not in path.parts
    )
    files = {str(path.relative_to(workdir)): path.read_bytes() for path in paths}
    manifest = json.loads(files.pop("manifest.json"))
    for counts in manifest["rounds"].values():
        counts.pop("training_seconds")
    return files | {"manifest.json": manifest}


def one_line(capfd):
    """What the command said on standard error: one line."""
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def nothing_half_written(workdir):
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
