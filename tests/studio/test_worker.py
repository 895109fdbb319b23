"""The process that draws with a model that it keeps: it leaves what a command leaves, and goes."""

import os
import shutil
import sys

import pytest
import tiny

from styledrop_jax.studio.jobs import Jobs
from styledrop_jax.studio.worker import PROGRAM


def _jobs(folder):
    return Jobs(folder / "jobs", (sys.executable, "-m", "styledrop_jax"), PROGRAM)


def _ended(jobs, job):
    """How a job ended."""

    def found():
        (own,) = [one for one in jobs.all() if one["id"] == job.id]
        return own

    assert jobs.wait(lambda: found()["state"] not in ("queued", "running"), 240)
    return found()


def _gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_drawings_share_a_process_and_are_those_of_a_command(tmp_path):
    run = tmp_path / "mine"
    shutil.copytree(tiny.finished(), run)
    words = ["sample", f"--run={run}", "--prompt=a cat", "--num=1", "--steps=2"]
    alone = [*words, "--lambda-a=1.5", f"--out={tmp_path / 'alone'}"]
    assert tiny.styledrop(*alone) == 0
    jobs = _jobs(tmp_path)
    added = []
    for strength in ("0.5", "1.5"):
        out = f"--out={tmp_path / strength}"
        added.append(jobs.add("mine", [*words, f"--lambda-a={strength}", out]))
    wrong = jobs.add("mine", [*words, "--round=7"])
    more = jobs.add("mine", [*words, "--lambda-a=1.5", f"--out={tmp_path / 'more'}"])
    first, second = (_ended(jobs, job) for job in added)
    assert first["state"] == second["state"] == "done", jobs.log("mine")
    failed = _ended(jobs, wrong)
    assert failed["state"] == "failed" and failed["said"].startswith("error: round: found 7")
    last = _ended(jobs, more)
    assert jobs.log("mine")[-1] == f"images: 1 in {tmp_path / 'more'}, of 'a cat'"
    pids = {first["pid"], second["pid"], failed["pid"], last["pid"]}
    assert last["state"] == "done" and len(pids) == 1
    names = [path.name for path in (tmp_path / "alone").iterdir()]
    for folder in ("1.5", "more"):
        for name in names:
            made = (tmp_path / folder / name).read_bytes()
            assert made == (tmp_path / "alone" / name).read_bytes(), name
    jobs.close()


KEEPS = """
import os, socket, sys
line = socket.socket(fileno=os.dup(0))
while True:
    first, logs, _, _ = socket.recv_fds(line, 1, 1)
    if not first:
        break
    while not line.recv(1) == b"\\n":
        pass
    os.write(logs[0], b"drawn\\n")
    os.close(logs[0])
    line.send(b"\\0")
"""


def test_it_gives_way_to_other_commands_and_ends_with_the_studio(tmp_path):
    keeps = (sys.executable, "-c", KEEPS)
    jobs = Jobs(tmp_path / "jobs", ("true",), keeps)
    first = _ended(jobs, jobs.add("a", ["sample", "1"]))
    assert first["state"] == "done" and jobs.log("a") == ["drawn"]
    worker = jobs._worker._process
    other = _ended(jobs, jobs.add("a", ["personalize"]))
    assert other["state"] == "done" and other["pid"] != first["pid"]
    assert worker.wait(20) == 0
    second = _ended(jobs, jobs.add("a", ["mix", "2"]))
    worker = jobs._worker._process
    assert second["state"] == "done" and second["pid"] == worker.pid
    jobs.close()
    assert worker.wait(20) == 0 and _gone(worker.pid)


def test_a_drawing_that_is_stopped_ends_and_the_next_has_a_process_of_its_own(tmp_path):
    slow = KEEPS.replace('os.write(logs[0], b"drawn\\n")', "__import__('time').sleep(60)")
    jobs = Jobs(tmp_path / "jobs", ("true",), (sys.executable, "-c", slow))
    job = jobs.add("a", ["sample", "1"])
    assert jobs.wait(lambda: jobs.all()[0]["state"] == "running", 20)
    jobs.stop(job.id)
    assert _ended(jobs, job)["state"] == "stopped"
    again = jobs.add("a", ["sample", "2"])
    assert jobs.wait(lambda: jobs.all()[0]["state"] == "running", 20)
    assert jobs.all()[0]["pid"] != jobs.all()[1]["pid"]
    jobs.stop(again.id)
    assert _ended(jobs, again)["state"] == "stopped"
    jobs.close()
