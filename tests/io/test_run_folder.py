"""The run folder: one process, one config, and what it records."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from styledrop_jax.errors import UserError
from styledrop_jax.io import run_folder
from styledrop_jax.io.files import read_json, write_bytes, write_json
from styledrop_jax.io.run_folder import Run

CONFIG = {"seed": 0, "round_1": {"train": {"steps": 200}}, "names": ("a", "b")}


def test_a_new_folder_gets_its_config_and_continues(tmp_path):
    with Run.open(tmp_path / "runs" / "a", CONFIG) as run:
        assert read_json(run.path("config.json")) == {**CONFIG, "names": ["a", "b"]}
    with Run.open(tmp_path / "runs" / "a", CONFIG) as run:
        assert run.config["seed"] == 0


@pytest.mark.parametrize("url", ["gs://bucket/runs", "s3://bucket/runs"])
def test_a_bucket_is_no_folder(url, refused):
    assert "gcsfuse" in refused(Run.open, url, CONFIG)
    assert "gcsfuse" in refused(Run.open, pathlib.Path(url), CONFIG)


def test_another_config_names_each_field(tmp_path, refused):
    Run.open(tmp_path, CONFIG).close()
    other = {
        "seed": 1,
        "round_1": {"train": {"steps": 50}},
        "names": ["a", "b"],
        "dtype": "float32",
    }
    message = refused(Run.open, tmp_path, other)
    assert "seed was 0, now 1" in message and "round_1.train.steps was 200, now 50" in message
    assert 'dtype was not there, now "float32"' in message and "names was" not in message
    Run.open(tmp_path, CONFIG).close()  # the refused one left neither a lock nor a change


def test_many_differences_are_counted(tmp_path, refused):
    Run.open(tmp_path, {f"field_{i}": 0 for i in range(9)}).close()
    message = refused(Run.open, tmp_path, {f"field_{i}": "x" for i in range(9)})
    assert "field_3 was 0" in message and "and 5 more" in message and "field_4" not in message
    write_json(tmp_path / "config.json", {"a": ["x" * 500]})
    assert 'a was ["xxx' in refused(Run.open, tmp_path, {"a": "y" * 500})


def test_what_an_older_version_does_not_say_may_be_filled_in(tmp_path, refused):
    Run.open(tmp_path, {"seed": 0}).close()

    def completed(config):
        return {"dtype": "float32", **config}

    with Run.open(tmp_path, {"seed": 0, "dtype": "float32"}, completed=completed) as run:
        assert read_json(run.path("config.json")) == {"seed": 0}, "the file stays as it is"
    other = {"seed": 0, "dtype": "bfloat16"}
    with pytest.raises(UserError, match='dtype was "float32", now "bfloat16"'):
        Run.open(tmp_path, other, completed=completed)


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    code = """
        import sys
        from styledrop_jax.io.run_folder import Run
        run = Run.open(sys.argv[1], {"seed": 0})
        print("open", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"another process \\({process.pid}\\)"):
        Run.open(tmp_path, {"seed": 0})
    assert Run.load(tmp_path).config == {"seed": 0}, "looking is allowed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    Run.open(tmp_path, {"seed": 0}).close()


def test_done_is_the_final_file(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        assert not run.done("round_1/adapter.safetensors")
        write_bytes(run.path("round_1", "adapter.safetensors"), b"x")
        assert run.done("round_1/adapter.safetensors")


def test_manifest_is_merged(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        assert run.manifest == {}
        run.update_manifest({"device": "cpu", "counts": {"train": np.int64(3)}})
        run.update_manifest({"counts": {"frozen": 4}, "loss": np.float32("nan")})
        assert run.manifest == {"device": "cpu", "counts": {"train": 3, "frozen": 4}, "loss": None}


def test_a_finished_run_goes_on_under_another_config(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.update_manifest({"device": "cpu", "changes": {"2 rounds": "first"}})
        write_bytes(run.path("report.html"), b"x")
        run.extend({"seed": 0, "rounds": 3}, {"3 rounds": "styledrop extend"})
        assert not run.done("report.html") and run.config == {"seed": 0, "rounds": 3}
    changes = Run.load(tmp_path).manifest["changes"]
    assert changes == {"2 rounds": "first", "3 rounds": "styledrop extend"}
    Run.open(tmp_path, {"seed": 0, "rounds": 3}).close()


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    run = Run.open(tmp_path / "run", CONFIG)
    run.discard()
    assert not (tmp_path / "run").exists()
    run.close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    run = Run.open(tmp_path / "mine", CONFIG)
    run.discard()
    run.close()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.png"]


def test_load_refuses_what_is_no_run(tmp_path, refused):
    (tmp_path / "mine").mkdir()
    assert "did you mean 'mine'" in refused(Run.load, tmp_path / "mien")
    assert "not a run folder" in refused(Run.load, tmp_path / "mine")
    for text in ("{", "[]", "3", "[" * 200_000):
        (tmp_path / "mine" / "config.json").write_text(text)
        assert "expected" in refused(Run.load, tmp_path / "mine")
        assert "expected" in refused(Run.open, tmp_path / "mine", CONFIG)
    write_json(tmp_path / "mine" / "config.json", CONFIG)
    (tmp_path / "mine" / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match="manifest.json: found .1., expected a JSON object"):
        _ = Run.load(tmp_path / "mine").manifest


def test_a_workdir_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UserError, match="a part of this path is a file"):
            Run.open(workdir, CONFIG)

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(run_folder.Path, "mkdir", fail)
    with pytest.raises(UserError, match="read-only"):
        Run.open(tmp_path / "new", CONFIG)
