"""Scoring and the sheet of all: never are all samples in memory at their own size."""

import numpy as np
import tiny

from styledrop_jax import log
from styledrop_jax.io import image_files, sheets
from styledrop_jax.io.files import read_jsonl
from styledrop_jax.io.run_folder import Run
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.spec import from_config
from styledrop_jax.stages.begin import begin
from styledrop_jax.stages.read import read
from styledrop_jax.stages.samples import read_samples
from styledrop_jax.stages.score import score_stage
from styledrop_jax.stages.select import _reduced


def test_samples_are_scored_a_few_at_a_time_and_read_once(tmp_path, monkeypatch):
    """As they are all at once."""
    done = tiny.finished() / "round_1"
    samples = read_samples(done / "scores.jsonl")
    config = Run.load(tiny.finished()).config
    opened = []
    sizes = []
    read_image = image_files.read_image
    features = ClipScorer.image_features

    def reading(file):
        opened.append(file.name)
        return read_image(file)

    def seeing(self, images):
        sizes.append(len(images))
        return features(self, images)

    with Run.open(tmp_path / "run", config) as run, log.Logger(run.workdir) as logger:
        job = begin(from_config(config), run, logger, read(from_config(config)))
        vars(job)["clip"] = ClipScorer.load(job.clip_folder, batch_size=3)
        for sample in samples:
            image_files.write_png(run.path("round_1", sample.file), read_image(done / sample.file))
        monkeypatch.setattr(image_files, "read_image", reading)
        monkeypatch.setattr(ClipScorer, "image_features", seeing)
        found = score_stage(job, "round_1", samples, job.spec.round(1).select.scorers)
    assert opened == [sample.file.rsplit("/")[-1] for sample in samples]
    assert sizes == [3, 1, 1], "four samples, and the reference"
    for mine, row in zip(found, read_jsonl(done / "scores.jsonl"), strict=True):
        assert abs(mine.score - row["score"]) < 1e-5


def test_thousands_of_large_samples_are_reduced_as_they_are_read():
    """To no less than a sheet has room for."""
    large = np.full((512, 512, 3), 7, np.uint8)
    small = _reduced(large, 1920)
    assert 1920 * small.size < 200e6 and (small == 7).all()
    assert 1920 * small[..., 0].size >= sheets.MAX_PIXELS
    assert _reduced(large, 4) is large
