"""Between training and sampling: the best of the states that a round kept.

Each samples the same few prompts from the same seeds, so that their scores differ by what was
learnt alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import guidance, log
from styledrop_jax.feedback.verdict import worth
from styledrop_jax.io.files import write_json
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import round_pool, sample_with
from styledrop_jax.stages.score import score_stage

FILE = "steps/best.json"
_PROMPTS = 8


def step_file(step: int) -> str:
    """The state after `step` steps, in the folder of its round."""
    return f"steps/{step:06d}.safetensors"


def best_step(job: Job, number: int, steps: Sequence[int]) -> Path:
    """The file of the state of round `number` whose samples are worth most; of equals the last."""
    few = [sample for sample in round_pool(job, number) if sample.image == 0]
    few = few[:: max(1, len(few) // _PROMPTS)][:_PROMPTS]
    worths = []
    for step in steps:
        path = job.run.path(f"round_{number}", step_file(step))
        stage = f"round_{number}/steps/{step:06d}"
        tuned = guidance.load(job.pipeline, path)
        sample_with(job, stage, few, tuned, job.spec.round(number).sample)
        scored = score_stage(job, stage, few, {}, aloud=False)
        worths.append(float(np.mean([worth(sample.scores) for sample in scored])))
    best = max(range(len(steps)), key=lambda i: (worths[i], i))
    each = [f"{step}: {value:.3f}" for step, value in zip(steps, worths, strict=True)]
    log.say(
        f"round_{number}: the state after {steps[best]} steps is taken; style + content - sameness "
        f"after {', '.join(each)}"
    )
    write_json(job.run.path(f"round_{number}", FILE), {"best": steps[best]})
    return job.run.path(f"round_{number}", step_file(steps[best]))
