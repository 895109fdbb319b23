"""Third stage: every scorer's view of every sample."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import hosts, log, settings
from styledrop_jax.errors import UserError, shown
from styledrop_jax.feedback import scorers
from styledrop_jax.feedback.describe import finds
from styledrop_jax.feedback.verdict import before
from styledrop_jax.io import captions, image_files
from styledrop_jax.io.fit import read_fitted
from styledrop_jax.io.paths import expanded
from styledrop_jax.methods.prompts import noun
from styledrop_jax.registry import SCORERS
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import CANDIDATES, round_pool
from styledrop_jax.stages.samples import Sample, read_samples, write_samples

_BY_TEXT = {"clip_text": 1.0}


def score_base(job: Job, samples: Sequence[Sample]) -> list[Sample]:
    """The base model's samples with their scores, and a word on what the words alone bring."""
    known = job.run.done("base/scores.jsonl")
    scored = score_stage(job, "base", samples, _BY_TEXT)
    if job.descriptor and not known:
        style = float(np.mean([sample.scores["clip_style"] for sample in scored]))
        found = finds(job.given[0].reference.image, job.descriptor)
        log.say(f"base: under {shown(job.descriptor)} it is {before(style, found=found)}")
    return scored


def score_round(job: Job, number: int, samples: Sequence[Sample]) -> list[Sample]:
    """A round's samples with their scores, and the sum that selection goes by."""
    return score_stage(job, f"round_{number}", samples, job.spec.round(number).select.scorers)


def score_candidates(job: Job, number: int, samples: Sequence[Sample]) -> list[Sample]:
    """The same of the samples that are to be chosen from, with files in the folder of the round."""
    weights = job.spec.round(number).select.scorers
    scored = score_stage(job, f"round_{number}/{CANDIDATES}", samples, weights)
    return [dataclasses.replace(sample, file=f"{CANDIDATES}/{sample.file}") for sample in scored]


def score_truth(job: Job) -> None:
    """The same scores for the true images of the prompts, where the user has them: the ceiling."""
    folder = _truth(job)
    if folder is None or job.run.done("truth/scores.jsonl"):
        return
    section = job.given[0].section
    fit = dict(settings.sections(job.spec))[section].fit
    samples = []
    found = {}
    for sample in round_pool(job, 0):
        name = f"{noun(sample.content)}.png"
        if (folder / name).is_file():
            fitted = read_fitted(folder / name, fit)._replace(keeps=False)
            square = image_files.to_square(
                fitted.image, job.pipeline.resolution, ground=fitted.ground
            )
            image_files.write_png(job.run.path("truth", name), square)
            samples.append(dataclasses.replace(sample, file=name))
            found[folder / name] = fitted
    captions.say_fits(f"config.{section}.fit", found)
    if samples:
        score_stage(job, "truth", samples, _BY_TEXT)
    elif job.spec.truth:
        raise UserError(
            f"config.truth: no image of a prompt in {folder}; expected files such as cat.png"
        )


def _truth(job: Job) -> Path | None:
    """The user's folder of true images, or the one that comes with a bundled reference."""
    if job.spec.truth:
        return expanded(job.spec.truth)
    reference = Path(job.given[0].reference.path)
    beside = reference.with_suffix("")
    bundled = reference.parent == captions.BUNDLED.parent
    return beside if bundled and beside.is_dir() else None


def score_stage(
    job: Job,
    stage: str,
    samples: Sequence[Sample],
    weights: Mapping[str, float],
    *,
    aloud: bool = True,
) -> list[Sample]:
    """The samples in the folder `stage` with their scores and the weighted sum of these; says the
    means if `aloud`.
    """
    path = job.run.path(stage, "scores.jsonl")
    if job.run.done(f"{stage}/scores.jsonl"):
        return hosts.shared(lambda: read_samples(path))
    files = [job.run.path(stage, sample.file) for sample in samples]
    words = job.pipeline.reading.plain  # which are all that a scorer reads
    prompts = []
    contents = []
    places = []
    for sample in samples:
        prompts.append(words(sample.judged))
        contents.append(words(sample.content))
        places.append(sample.place)
    seen = scorers.Scored(
        features=_features(job, files),
        prompts=prompts,
        ids=places,
        references=job.judged_by,
        contents=contents,
        shown=job.shown,
        clip=job.clip,
        seed=job.spec.seed,
        files=files,
    )
    scores, total = scorers.score(seen, SCORERS, weights)
    scored = []
    for i, sample in enumerate(samples):
        own = {name: float(values[i]) for name, values in scores.items()}
        scored.append(dataclasses.replace(sample, scores=own, score=float(total[i])))
    if aloud:
        text = np.mean(scores["clip_text"])
        style = np.mean(scores["clip_style"])
        log.say(
            f"{stage}: text score {text:.3f}, style score {style:.3f}, "
            f"mean of {len(scored)} samples"
        )
    write_samples(path, scored)
    return scored


def _features(job: Job, files: Sequence[Path]) -> np.ndarray:
    """CLIP's of the images in files, float32 [n, p]: a few at a time, since those of a round may
    not fit into memory, and each once for all scorers.
    """
    found = []
    size = job.clip.batch_size
    for start in range(0, len(files), size):
        few = files[start : start + size]
        images = hosts.shared(functools.partial(list, map(image_files.read_image, few)))
        found.append(job.clip.image_features(np.stack(images).astype(np.float32) / 255))
    return np.concatenate(found)
