import io
import json
import struct

import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from styledrop_jax import log
from styledrop_jax.errors import UserError
from styledrop_jax.log import Logger, progress, read_metrics, say


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

    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("unbroken", "resumed")]
    assert texts[0] == texts[1] and texts[0].count(b"\n") == 12
    assert [row["step"] for row in read_metrics(tmp_path / "resumed", "round_2")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


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
    events = list(_events(tmp_path / "tensorboard" / "round_1"))
    values = [(event.step, value) for event in events for value in event.summary.value]
    assert [(step, value.tag) for step, value in values if value.tag == "loss"] == [
        (1, "loss"),
        (2, "loss"),
    ]
    assert {value.tag for _, value in values} == {"loss", "steps_per_second", "samples"}
    image = next(value.image for _, value in values if value.tag == "samples")
    assert (image.height, image.width) == (8, 12)
    assert any(
        event.session_log.status == event.session_log.START and event.step == 2 for event in events
    )


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="tensorboard/round_1: .*a part of this path is a file"):
        Logger(tmp_path).start("round_1")


def test_progress_is_one_line_without_a_terminal(capsys):
    with progress("round 1: training", 10, start=4) as advance:
        for _ in range(3):
            advance(2, note="loss 4.21")
        say("a line")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == "a line"
    assert lines[1].startswith("round 1: training: 6 of 10 in ") and lines[1].endswith(
        " s, loss 4.21"
    )


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        log, "_CONSOLE", rich.console.Console(file=screen, force_terminal=True, width=100)
    )
    with progress("round 1: sampling", 10) as advance:
        advance(10, note="batch 3")
    assert (
        "round 1: sampling" in screen.getvalue()
        and "10/10" in screen.getvalue()
        and "batch 3" in screen.getvalue()
    )
