"""What a run says: metrics that survive death, TensorBoard, and progress with and without a bar."""

import io
import json
import struct
import time

import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from styledrop_jax import log
from styledrop_jax.errors import UserError
from styledrop_jax.log import Lines, Logger, progress, read_metrics, say


def _events(folder):
    """The TensorBoard events of one run: records of (length u64, crc u32, data, crc u32)."""
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def _work(logger, stage, steps):
    for step in steps:
        logger.scalars(step, {"loss": np.float32(1 / 3) / step}, timing={"steps_per_second": 7.0})


def test_a_resumed_run_leaves_the_same_metrics(tmp_path):
    with Logger(tmp_path / "unbroken") as logger:
        for stage in ("round_1", "round_2"):
            logger.start(stage)
            _work(logger, stage, range(1, 7))

    with Logger(tmp_path / "resumed") as logger:
        logger.start("round_1")
        _work(logger, "round_1", range(1, 4))  # died at 3, its last checkpoint at 2
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "round_1", "st')
    with Logger(tmp_path / "resumed") as logger:
        logger.start("round_1", step=2)
        _work(logger, "round_1", range(3, 7))
        logger.start("round_2")
        _work(logger, "round_2", range(1, 6))
    with Logger(tmp_path / "resumed") as logger:
        logger.start("round_2", step=4)
        _work(logger, "round_2", range(5, 7))

    unbroken = (tmp_path / "unbroken" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == unbroken
    assert unbroken.count(b"\n") == 12
    rows = read_metrics(tmp_path / "resumed", "round_2")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_stage_started_anew_drops_what_it_left(tmp_path):
    with Logger(tmp_path) as logger:
        logger.start("round_1")
        _work(logger, "round_1", [1, 2])
        logger.start("round_1")
        _work(logger, "round_1", [1])
    assert len(read_metrics(tmp_path, "round_1")) == 1


def test_what_is_not_finite_is_null(tmp_path):
    with Logger(tmp_path) as logger:
        logger.start("train")
        logger.scalars(1, {"loss": float("nan"), "norm": np.float32(2)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "stage": "train",
        "step": 1,
        "loss": None,
        "norm": 2,
    }


def test_tensorboard_has_scalars_timing_and_images(tmp_path):
    with Logger(tmp_path) as logger:
        logger.start("round_1")
        _work(logger, "round_1", [1, 2])
        logger.image("samples", 2, np.zeros((8, 12, 3), np.float32))
        logger.start("round_1", step=1)
    steps = {}
    restarts = []
    for event in _events(tmp_path / "tensorboard" / "round_1"):
        if event.session_log.status == event.session_log.START:
            restarts.append(event.step)
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
            if value.tag == "samples":
                assert (value.image.height, value.image.width) == (8, 12)
    assert steps == {"loss": [1, 2], "steps_per_second": [1, 2], "samples": [2]}
    assert 2 in restarts


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="tensorboard/round_1: .*a part of this path is a file"):
        Logger(tmp_path).start("round_1")


def test_what_failed_first_is_told_though_closing_fails_too(tmp_path, monkeypatch):
    logger = Logger(tmp_path)
    logger.start("round_1")

    def full(self):
        raise UserError("tensorboard: the disk is full")

    monkeypatch.setattr(log._Board, "close", full)
    with pytest.raises(UserError, match="^the first$"), logger:
        raise UserError("the first")


def test_progress_is_one_line_without_a_terminal(capsys):
    with progress("round 1: training", 10, start=4) as advance:
        for _ in range(3):
            advance(2, note="loss 4.21")
        say("a line")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == "a line"
    assert lines[1].startswith("round 1: training: 6 of 10 in ")
    assert lines[1].endswith(" s, loss 4.21")


def test_without_a_terminal_progress_speaks_every_30_seconds(capsys):
    """By a clock that a wait moves on; 10 of 260 units were done by an earlier process."""
    now = [1000.0]
    lines = Lines("round_1", 260, 10, clock=lambda: now[0])
    work = iter([(0, ""), (50, "loss 0.456"), (0, ""), (75, "loss 0.123")])

    def wait(seconds):
        now[0] += seconds
        done = next(work, None)
        if done is not None:
            lines.advance(*done)
        return done is None

    lines.speak(wait)
    assert capsys.readouterr().out.splitlines() == [
        "round_1: 10 of 260, 30 s",
        "round_1: 60 of 260, 60 s, about 4 min left, loss 0.456",
        "round_1: 60 of 260, 90 s, about 6 min left, loss 0.456",
        "round_1: 135 of 260, 2 min, about 2 min left, loss 0.123",
    ]


def test_progress_speaks_while_one_piece_of_work_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(log, "_SILENCE", 0.01)
    with progress("round 1: training", 10) as advance:
        said = ""
        until = time.monotonic() + 60
        while said.count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
            said += capsys.readouterr().out
        advance(10)
    assert said.startswith("round 1: training: 0 of 10, 0 s\nround 1: training: 0 of 10, ")
    with pytest.raises(KeyboardInterrupt), progress("round 1: sampling", 10):
        raise KeyboardInterrupt
    capsys.readouterr()
    time.sleep(0.1)
    assert not capsys.readouterr().out, "nothing is said of a stage that died"


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(log, "_CONSOLE", console)
    with progress("round 1: sampling", 10) as advance:
        advance(10, note="batch 3")
    shown = screen.getvalue()
    assert "round 1: sampling" in shown and "10/10" in shown and "batch 3" in shown
