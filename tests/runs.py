"""Runs of the main job that die, resume, are copied and compared: what their tests share."""

import json
import os
import shutil

import pytest
import tiny

from styledrop_jax import rounds
from styledrop_jax.io.files import JsonLines, read_json, write_json
from styledrop_jax.stages import train
from styledrop_jax.training.checkpoint import Checkpoints


class Death(BaseException):
    """In place of SIGKILL: nothing in the package catches it."""


def _always(*_):
    return True


def _counting(patch, owner, name, left, counts=_always):
    """Dies in the call of `owner.name` after which `left[0]` calls that count have been made."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        left[0] -= counts(*args)
        if left[0] == 0:
            raise Death
        return result

    patch.setattr(owner, name, call)


def _dies_after(patch, workdir, count):
    """The process dies after `count` files were renamed, lines appended or checkpoints saved."""
    left = [count]

    def in_run(_, path):  # a checkpoint's own files are one event: its save
        return str(path).startswith(str(workdir)) and "checkpoints" not in str(path)

    _counting(patch, os, "replace", left, in_run)
    _counting(patch, JsonLines, "append", left)
    _counting(patch, Checkpoints, "save", left)


def _died(words):
    """Runs a command; whether it died before its end."""
    try:
        assert tiny.styledrop(*words) == 0
        return False
    except Death:
        return True


def run_until_death(workdir, count, *more, **options):
    """Runs `count` events far; False when the run ended before that."""
    with pytest.MonkeyPatch.context() as patch:
        _dies_after(patch, workdir, count)
        return _died(tiny.arguments(workdir, *more, **options))


def command_until_death(workdir, count, *words):
    """The same of any command that works in `workdir`."""
    with pytest.MonkeyPatch.context() as patch:
        _dies_after(patch, workdir, count)
        return _died(words)


def train_until_death(workdir, checkpoints, *more, **options):
    """Runs until as many checkpoints have been saved."""
    with pytest.MonkeyPatch.context() as patch:
        _counting(patch, Checkpoints, "save", [checkpoints])
        assert _died(tiny.arguments(workdir, *more, **options))


def stop(*_, **__):
    raise Death


def _nothing_first(patch):
    patch.setattr(rounds, "sample_base", lambda job: [])
    patch.setattr(rounds, "score_base", lambda job, samples: [])


def train_only(patch):
    """Runs train the first round without anything before it, and die when it is trained."""
    _nothing_first(patch)
    patch.setattr(train, "save_adapter", stop)


def sample_nothing(patch):
    """Runs leave the adapter of the first round, and die before anything else."""
    _nothing_first(patch)
    patch.setattr(rounds, "sample_round", stop)


def begun(workdir, *more, references=1, **options):
    """A run that died right after its manifest: config, one image for each reference, manifest."""
    assert run_until_death(workdir, 2 + references, *more, **options)
    return read_json(workdir / "manifest.json")


def copy(tmp_path):
    return shutil.copytree(tiny.finished(), tmp_path / "run")


def forget(workdir, *names):
    for name in names:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def flags(**fields):
    """`--config.` flags: two underscores of a name stand for a dot."""
    words = []
    for name, value in fields.items():
        words += [f"--config.{name.replace('__', '.')}", value]
    return words


def back_to_selection(workdir, **select):
    """As if the run had other settings of selection and stood right before scoring round 1."""
    config = read_json(workdir / "config.json")
    config["round_1"]["select"].update(select)
    write_json(workdir / "config.json", config)
    forget(workdir, "report.html", "verdict.json", "round_2")
    for name in ("selected.json", "grid.png", "scores.jsonl"):
        forget(workdir, f"round_1/{name}")
    return flags(**{f"round_1__select__{name}": value for name, value in select.items()})


def results(workdir):
    """Everything that depends on the config alone, as bytes."""
    files = {}
    for pattern in ("*.png", "*.safetensors", "*.json", "*.jsonl"):
        for path in workdir.rglob(pattern):
            if "checkpoints" not in path.parts:
                files[str(path.relative_to(workdir))] = path.read_bytes()
    manifest = json.loads(files.pop("manifest.json"))
    for counts in manifest["rounds"].values():
        counts.pop("training_seconds")
    return files | {"manifest.json": manifest}


def one_line(capfd):
    """What the command said on standard error: one line."""
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def refused(capfd, *words):
    """The one line of a command that ends with exit code 2."""
    capfd.readouterr()
    assert tiny.styledrop(*words) == 2
    said = capfd.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.out
    return said.err


def nothing_half_written(workdir):
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
