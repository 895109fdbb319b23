"""Run folders that came from someone else."""

import json
import os

import pytest

from styledrop_jax import log
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_json
from styledrop_jax.io.records import check_own, inside, is_number, read_steps
from styledrop_jax.io.run_folder import Run


@pytest.fixture
def outside(tmp_path):
    """A file of the user's beside the run folder."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    return path


@pytest.fixture
def workdir(tmp_path):
    write_json(tmp_path / "run" / "config.json", {"seed": 0})
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["manifest.json", ".lock", "metrics.jsonl", "round_1", "round_1/samples/p000_i000.png"]
)
def test_a_run_folder_with_a_link_out_of_it_is_refused_and_nothing_is_written(
    workdir, outside, refused, name
):
    (workdir / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir / name).symlink_to(outside)
    for open_run in (Run.load, lambda folder: Run.open(folder, {"seed": 0})):
        message = refused(open_run, workdir)
        assert os.path.basename(name) in message and "link" in message
    assert outside.read_text() == "mine"
    assert inside(workdir, name) is None


def test_links_within_the_folder_and_to_it_are_followed(workdir, tmp_path):
    (workdir / "round_2").mkdir()
    (workdir / "round_1").symlink_to("round_2")
    (tmp_path / "latest").symlink_to(workdir)
    check_own(tmp_path / "latest")
    assert inside(tmp_path / "latest", "config.json") == workdir / "config.json"
    assert inside(workdir, "..", "mine.txt") is None and inside(workdir, "nothing") is None


@pytest.mark.parametrize(
    "row",
    [
        [],
        3,
        None,
        {},
        {"stage": "round_1"},
        {"step": 1},
        {"stage": [], "step": 1},
        {"stage": "round_1", "step": "1"},
        {"stage": "round_1", "step": 10**400},
        {"stage": "round_1", "step": True},
    ],
    ids=range(10),
)
def test_a_record_that_a_run_does_not_leave_is_named_by_its_line(tmp_path, refused, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"stage": "round_1", "step": 1}}\n{json.dumps(row)}\n')
    assert "metrics.jsonl: line 2 is" in refused(read_steps, path)
    with pytest.raises(UserError, match="line 2 is"), log.Logger(tmp_path) as logger:
        logger.start("round_1")


def test_what_can_be_counted_with():
    assert is_number(3) and is_number(-0.5)
    for value in (True, None, "3", float("nan"), float("inf"), 10**400, [1]):
        assert not is_number(value)
