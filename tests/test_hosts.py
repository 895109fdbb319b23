"""One run by several processes: it leaves what a run of one process leaves, and ends as one."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from styledrop_jax import cli, hosts
from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, read_jsonl

FSDP = ("--config.mesh.fsdp", 2)
COLD = ("--config.rounds", 1, "--config.round_1.sample.temperature", 0)
STEPS = ("--config.round_1.train.steps", 40)  # enough to be told to end among them


def _start(*words):
    """The command line in two processes of one device each."""
    environment = os.environ | {"STYLEDROP": f"{sys.executable} -m styledrop_jax"}
    line = ["bash", str(tiny.ROOT / "launch" / "multihost_local.sh"), *map(str, words)]
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _names(folder):
    """The files of a run, without those named after a time or a process."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "tensorboard" not in name and name != ".lock"}


def _close(one, two):
    assert _names(two) == _names(one)
    manifest = read_json(two / "manifest.json")
    assert manifest["references"] == read_json(one / "manifest.json")["references"]
    first = load_file(one / "round_1" / "adapter.safetensors")
    for name, weight in load_file(two / "round_1" / "adapter.safetensors").items():
        np.testing.assert_allclose(weight, first[name], atol=2e-4)
    for file in ("metrics.jsonl", "round_1/scores.jsonl"):
        rows = read_jsonl(two / file)
        assert len(rows) == len(read_jsonl(one / file)) > 0
        for row, same in zip(rows, read_jsonl(one / file), strict=True):
            name = "loss" if file == "metrics.jsonl" else "score"
            assert row[name] == pytest.approx(same[name], abs=1e-2)
    for path in (one / "round_1" / "samples").iterdir():
        image = image_files.read_image(path).astype(int)
        same = image_files.read_image(two / "round_1" / "samples" / path.name)
        assert np.abs(image - same).mean() < 1


def test_two_processes_leave_what_one_does(tmp_path):
    """Told to end while they train, they save together; then they go on to the end."""
    assert tiny.styledrop(*tiny.arguments(tmp_path / "one", *COLD, *STEPS)) == 0
    words = (*tiny.arguments(tmp_path / "two", *COLD, *STEPS), *FSDP)
    running = _start(*words)
    metrics = tmp_path / "two" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    first, said = running.communicate()
    assert running.returncode != 0, said
    assert not (tmp_path / "two" / "report.html").exists()
    again = _start(*words)
    out, said = again.communicate()
    assert again.returncode == 0, said
    for each in (first, out):
        assert each.count("round_1: text score") <= 1, "the first process alone says it"
    _close(tmp_path / "one", tmp_path / "two")


def test_an_error_ends_all_processes(tmp_path):
    shutil.copytree(tiny.finished(), tmp_path / "run")
    other = tiny.arguments(tmp_path / "run", "--config.seed", 5)
    running = _start(*other)
    _, said = running.communicate()
    assert running.returncode != 0
    assert "holds a run of another config: seed was 0, now 5" in said


@pytest.mark.parametrize("command", ["sample", "stylize"])
def test_two_processes_draw_what_one_does(tmp_path, command):
    """And the first alone writes; the same command finds all there."""
    words = [command, "--run", tiny.finished(), "--num", 2, "--temperature", 0]
    if command == "sample":
        words += ["--prompt", "a cat", "--prompt", "a red house"]
    else:
        image = tiny.finished() / "base" / "samples" / "p000_i000.png"
        words += ["--image", image, "--prompt", "a house"]
    assert tiny.styledrop(*words, "--out", tmp_path / "one") == 0
    out = tmp_path / "two"
    running = _start(*words, "--out", out)
    told, said = running.communicate()
    assert running.returncode == 0, said
    assert told.count(f" in {out}, of ") == 1
    assert _names(out) == _names(tmp_path / "one")
    rows = read_jsonl(out / "images.jsonl")
    assert rows == read_jsonl(tmp_path / "one" / "images.jsonl")
    for row in rows:
        image = image_files.read_image(out / row["file"]).astype(int)
        same = image_files.read_image(tmp_path / "one" / row["file"])
        assert np.abs(image - same).mean() < 1
    again = _start(*words, "--out", out)
    told, said = again.communicate()
    assert again.returncode == 0, said
    assert "are there; another seed" in told and read_jsonl(out / "images.jsonl") == rows


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_what_is_no_work_for_several_processes_is_refused(name, monkeypatch, capsys):
    """What writes is carried out together, or else refused."""
    together = {"personalize", "extend", "sample", "mix", "edit", "stylize"}
    only_says = {"plan", "runs", "describe", "rare-tokens", "completion", "fetch"}
    refused = name not in together | only_says
    assert cli.COMMANDS[name].alone == refused
    if refused:
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
        monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
        assert tiny.styledrop(name) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {name}: found several processes") and "\n" not in said[:-1]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "JAX_NUM_PROCESSES: found ''"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID: found 'two'"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "expected less than"),
    ],
)
def test_what_is_said_in_part_is_refused(environment, words, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        hosts.join()


def test_one_process_is_alone(monkeypatch):
    """A shell of SLURM outside of a step, and one TPU VM, are single processes."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    hosts.join()
    assert hosts.first() and not hosts.several()
    assert hosts.shared(lambda: 3) == 3
