"""Between training and sampling: the best of the states that a round kept.

Each samples the same few prompts from the same seeds, so that their scores differ by what was
learnt alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import guidance, log
from styledrop_jax.feedback.verdict import Scores, style_to_hold, worth
from styledrop_jax.stages.best import read_best, step_file, trial, write_best
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import round_pool, sample_with
from styledrop_jax.stages.samples import Sample, read_samples
from styledrop_jax.stages.score import score_stage

PROMPTS = 8


def best_step(job: Job, number: int, steps: Sequence[int]) -> Path:
    """The file of the state of round `number` that is best, which `best.json` records: the one
    whose samples are worth most, in a later round of those that hold the style of the first.
    """
    few = [sample for sample in round_pool(job, number) if sample.image == 0]
    few = few[:: max(1, len(few) // PROMPTS)][:PROMPTS]
    held = _held(job) if number > 1 else -math.inf
    states = {step: _tried(job, number, few, step) for step in steps}
    best = _most(states, held)
    each = []
    for step, scores in states.items():
        each.append(f"{step}: {worth(scores):.3f} ({scores['clip_style']:.3f})")
    log.say(
        f"round_{number}: the state after {best} steps is taken; style + 3 × content (and style) "
        f"after {', '.join(each)}"
    )
    write_best(job.run, number, best)
    return job.run.path(f"round_{number}", step_file(best))


def _held(job: Job) -> float:
    """The style score that later rounds are to hold: that of the first, if its states were
    compared.
    """
    first = read_best(job.run, 1)
    if first is None:
        return -math.inf
    samples = read_samples(job.run.path(trial(1, first), "scores.jsonl"))
    prompts = {sample.prompt for sample in samples}
    base = []
    for sample in read_samples(job.run.path("base", "scores.jsonl")):
        if sample.prompt in prompts:
            base.append(sample)
    return style_to_hold(_means(samples), _means(base))


def _most(states: Mapping[int, Scores], held: float) -> int:
    """The state that is worth most of those that hold the style, or of all if none does; of equals
    the last.
    """
    holding = [step for step, scores in states.items() if scores["clip_style"] >= held]
    return max(holding or states, key=lambda step: (worth(states[step]), step))


def _tried(job: Job, number: int, few: list[Sample], step: int) -> Scores:
    """The mean scores of samples of the state after `step` steps."""
    stage = trial(number, step)
    tuned = guidance.load(job.pipeline, job.run.path(f"round_{number}", step_file(step)))
    sample_with(job, stage, few, tuned, job.spec.round(number).sample)
    return _means(score_stage(job, stage, few, {}, aloud=False))


def _means(samples: Sequence[Sample]) -> Scores:
    found = {}
    for name in ("clip_style", "clip_content"):
        found[name] = float(np.mean([sample.scores[name] for sample in samples]))
    return found
