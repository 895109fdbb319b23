"""The queue: one command at a time, and none is lost when the studio dies."""

import os
import signal
import sys

import pytest
import studios

from styledrop_jax.errors import UserError
from styledrop_jax.studio.folders import Studio
from styledrop_jax.studio.jobs import Jobs

# Writes its words down, then does what the last one says.
PROGRAM = """
import pathlib, sys, time
*words, what = sys.argv[1:]
log = pathlib.Path(words[0])
with log.open("a") as file:
    file.write(f"{what} begins\\n")
print("at work", flush=True)
while what == "wait" and not log.with_name("go").exists():
    time.sleep(0.02)
if what == "fail":
    sys.exit("error: config.seed: found -1, expected 0 or more")
with log.open("a") as file:
    file.write(f"{what} ends\\n")
"""
RUN = [sys.executable, "-c", PROGRAM]


def _jobs(tmp_path):
    return Jobs(tmp_path / "jobs", RUN)


def _ended(jobs, job, timeout=20.0):
    def over():
        return _state(jobs, job) not in ("queued", "running")

    assert jobs.wait(over, timeout)
    return _state(jobs, job)


def _state(jobs, job):
    (found,) = [one["state"] for one in jobs.all() if one["id"] == job.id]
    return found


def _running(jobs, job):
    assert jobs.wait(lambda: _state(jobs, job) == "running", 20)


def test_commands_run_one_after_the_other(tmp_path):
    jobs = _jobs(tmp_path)
    log = tmp_path / "log"
    first = jobs.add("a", [str(log), "wait"])
    second = jobs.add("b", [str(log), "end"])
    _running(jobs, first)
    assert _state(jobs, second) == "queued"
    (tmp_path / "go").touch()
    assert _ended(jobs, first) == "done" and _ended(jobs, second) == "done"
    assert log.read_text().split("\n")[:-1] == [
        "wait begins",
        "wait ends",
        "end begins",
        "end ends",
    ]
    jobs.close()


def test_a_command_that_fails_says_why(tmp_path):
    jobs = _jobs(tmp_path)
    job = jobs.add("a", [str(tmp_path / "log"), "fail"])
    assert _ended(jobs, job) == "failed"
    assert jobs.all()[0]["said"] == "error: config.seed: found -1, expected 0 or more"
    assert jobs.log("a") == ["at work", "error: config.seed: found -1, expected 0 or more"]
    missing = Jobs(tmp_path / "others", ["/no/such/program"])
    assert _ended(missing, missing.add("a", ["x"])) == "failed"
    for each in (jobs, missing):
        each.close()


def test_the_same_command_is_not_queued_twice(tmp_path):
    jobs = _jobs(tmp_path)
    words = [str(tmp_path / "log"), "wait"]
    job = jobs.add("a", words)
    _running(jobs, job)
    again = jobs.add("a", words)  # the first may just be ending
    with pytest.raises(UserError, match="already"):
        jobs.add("a", words)
    for each in (again, job):
        jobs.stop(each.id)
    assert _ended(jobs, job) == _ended(jobs, again) == "stopped"
    jobs.close()


def test_a_command_is_stopped_and_what_waits_is_taken_out(tmp_path):
    jobs = _jobs(tmp_path)
    log = tmp_path / "log"
    first = jobs.add("a", [str(log), "wait"])
    second = jobs.add("b", [str(log), "end"])
    _running(jobs, first)
    assert jobs.stop(second.id).state == "stopped"
    jobs.stop(first.id)
    assert _ended(jobs, first) == "stopped"
    assert not log.exists() or log.read_text() == "wait begins\n"
    jobs.close()


def test_a_studio_that_dies_takes_no_command_with_it(tmp_path):
    """Its commands go on, its queue is there again, and a second one waits for what still runs."""
    log = tmp_path / "log"
    dies = f"""
import pathlib, sys, time
from styledrop_jax.studio.jobs import Jobs
jobs = Jobs(pathlib.Path({str(tmp_path / "jobs")!r}), [sys.executable, "-c", {PROGRAM!r}])
first = jobs.add("a", [{str(log)!r}, "wait"])
jobs.add("b", [{str(log)!r}, "end"])
while not pathlib.Path({str(log)!r}).exists():
    time.sleep(0.02)
jobs.wait(lambda: jobs.all()[1]["state"] == "running", 20)
print(flush=True)
time.sleep(600)
"""
    import subprocess

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    studio = subprocess.Popen([sys.executable, "-c", dies], stdout=subprocess.PIPE, env=environment)
    assert studio.stdout is not None
    studio.stdout.readline()
    os.kill(studio.pid, signal.SIGKILL)
    studio.wait()
    studio.stdout.close()
    jobs = _jobs(tmp_path)
    second, first = [Known(one) for one in jobs.all()]
    assert _state(jobs, first) == "running" and _state(jobs, second) == "queued"
    (tmp_path / "go").touch()
    assert _ended(jobs, first) == "done" and _ended(jobs, second) == "done"
    assert "wait ends\nend begins" in log.read_text()
    jobs.close()


class Known:
    """A job of which only the name is known."""

    def __init__(self, found):
        self.id = found["id"]


def test_one_studio_opens_a_folder(tmp_path):
    first = Studio(tmp_path / "runs")
    with pytest.raises(UserError, match="is open on this folder"):
        Studio(tmp_path / "runs")
    first.close()
    Studio(tmp_path / "runs").close()
    run = studios.waiting(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match="found a run folder"):
        Studio(run)
