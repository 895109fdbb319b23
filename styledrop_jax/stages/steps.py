"""Between training and sampling: the best of the states that a round kept.

Each samples the same few prompts from the same seeds, so that their scores differ by what was
learnt alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from styledrop_jax import guidance, log
from styledrop_jax.feedback.verdict import FEW, Scores, style_to_hold, worth
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.stages.best import Best, read_best, step_file, trial_name, write_best
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import round_pool, sample_with
from styledrop_jax.stages.samples import Sample, read_samples
from styledrop_jax.stages.score import score_stage

PROMPTS = 8
STRENGTHS = (0.5, 1.5, 2.0)  # times the lambda_a that it was told


def best_step(job: Job, number: int, steps: Sequence[int]) -> Path:
    """The file of the state of round `number` whose samples are worth most; of equals the last.

    With `tune_strength` another strength is taken if an eye would see the difference. A later round
    is compared at the strength that the first one took, and is to hold its style. `best.json` has
    state and strength.
    """
    settings = job.spec.round(number)
    how = settings.sample
    first = read_best(job.run, 1) if number > 1 else None
    if first and settings.tune_strength:
        how = dataclasses.replace(how, lambda_a=first.lambda_a)
    held = _held(job, first) if first else -math.inf
    few = [sample for sample in round_pool(job, number) if sample.image == 0]
    few = few[:: max(1, len(few) // PROMPTS)][:PROMPTS]
    states = {step: _tried(job, number, few, step, how) for step in steps}
    step = _most(states, held)
    _say(number, f"the state after {step} steps is", "after", states)
    lambda_a = how.lambda_a
    if settings.tune_strength and how.guidance == "two_scale":
        strengths = {lambda_a: states[step]}
        for factor in STRENGTHS:
            changed = dataclasses.replace(how, lambda_a=factor * how.lambda_a)
            strengths[changed.lambda_a] = _tried(job, number, few, step, changed)
        other = _most(strengths, held)
        falls_short = strengths[lambda_a]["clip_style"] < held
        if falls_short or worth(strengths[other]) > worth(strengths[lambda_a]) + FEW:
            lambda_a = other
        _say(number, f"lambda_a {lambda_a:g} is", "at", dict(sorted(strengths.items())))
    write_best(job.run, number, Best(step=step, lambda_a=lambda_a))
    return job.run.path(f"round_{number}", step_file(step))


def _held(job: Job, first: Best) -> float:
    """The style score that a later round is to hold: that of the first, whose best is `first`."""
    samples = read_samples(job.run.path("round_1/steps", trial_name(first), "scores.jsonl"))
    prompts = {sample.prompt for sample in samples}
    base = []
    for sample in read_samples(job.run.path("base", "scores.jsonl")):
        if sample.prompt in prompts:
            base.append(sample)
    return style_to_hold(_means(samples), _means(base))


def _most(trials: Mapping[Any, Scores], held: float) -> Any:
    """The trial that is worth most of those that hold the style; of equals the last. If none does,
    the one with most style.
    """
    holding = [key for key, scores in trials.items() if scores["clip_style"] >= held]
    if not holding:
        return max(trials, key=lambda key: trials[key]["clip_style"])
    return max(holding, key=lambda key: (worth(trials[key]), key))


def _tried(job: Job, number: int, few: list[Sample], step: int, how: SampleSettings) -> Scores:
    """The mean scores of samples of the state after `step` steps."""
    name = trial_name(Best(step=step, lambda_a=how.lambda_a))
    stage = f"round_{number}/steps/{name}"
    tuned = guidance.load(job.pipeline, job.run.path(f"round_{number}", step_file(step)))
    sample_with(job, stage, few, tuned, how)
    return _means(score_stage(job, stage, few, {}, aloud=False))


def _means(samples: Sequence[Sample]) -> Scores:
    found = {}
    for name in ("clip_style", "clip_content"):
        found[name] = float(np.mean([sample.scores[name] for sample in samples]))
    return found


def _say(number: int, what: str, preposition: str, trials: Mapping[Any, Scores]) -> None:
    each = []
    for value, scores in trials.items():
        each.append(f"{value:g}: {worth(scores):.3f} ({scores['clip_style']:.3f})")
    log.say(
        f"round_{number}: {what} taken; style + 3 × content (and style) {preposition} "
        f"{', '.join(each)}"
    )
