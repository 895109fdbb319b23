"""Between training and sampling: the best of the states that a round kept.

Each samples the same few prompts from the same seeds, so that their scores differ by what was
learnt alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import guidance, log
from styledrop_jax.feedback.verdict import FEW, worth
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.stages.best import Best, step_file, trial_name, write_best
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import round_pool, sample_with
from styledrop_jax.stages.samples import Sample
from styledrop_jax.stages.score import score_stage

_PROMPTS = 8
_STRENGTHS = (0.5, 2.0)  # times the lambda_a that it was told


def best_step(job: Job, number: int, steps: Sequence[int]) -> Path:
    """The file of the state of round `number` whose samples are worth most; of equals the last.

    With `tune_strength` another strength is taken if an eye would see the difference. `best.json`
    has both.
    """
    settings = job.spec.round(number)
    how = settings.sample
    few = [sample for sample in round_pool(job, number) if sample.image == 0]
    few = few[:: max(1, len(few) // _PROMPTS)][:_PROMPTS]
    worths = {step: _worth(job, number, few, step, how, trial_name(step)) for step in steps}
    step = max(steps, key=lambda step: (worths[step], step))
    _say(number, f"the state after {step} steps is", "after", worths)
    lambda_a = how.lambda_a
    if settings.tune_strength and how.guidance == "two_scale":
        strengths = {lambda_a: worths[step]}
        for factor in _STRENGTHS:
            changed = dataclasses.replace(how, lambda_a=factor * how.lambda_a)
            name = trial_name(step, changed.lambda_a)
            strengths[changed.lambda_a] = _worth(job, number, few, step, changed, name)
        other = max(strengths, key=lambda strength: strengths[strength])
        if strengths[other] > strengths[lambda_a] + FEW:
            lambda_a = other
        _say(number, f"lambda_a {lambda_a:g} is", "at", dict(sorted(strengths.items())))
    write_best(job.run, number, Best(step=step, lambda_a=lambda_a))
    return job.run.path(f"round_{number}", step_file(step))


def _worth(
    job: Job,
    number: int,
    few: list[Sample],
    step: int,
    how: SampleSettings,
    name: str,
) -> float:
    """What samples of the state after `step` steps are worth, in the folder `name`."""
    stage = f"round_{number}/steps/{name}"
    tuned = guidance.load(job.pipeline, job.run.path(f"round_{number}", step_file(step)))
    sample_with(job, stage, few, tuned, how)
    scored = score_stage(job, stage, few, {}, aloud=False)
    return float(np.mean([worth(sample.scores) for sample in scored]))


def _say(number: int, what: str, preposition: str, worths: Mapping[float, float]) -> None:
    each = ", ".join(f"{value:g}: {found:.3f}" for value, found in worths.items())
    log.say(f"round_{number}: {what} taken; style + 3 × content {preposition} {each}")
