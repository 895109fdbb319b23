"""While a round trains: pictures of the first prompts as they become, for whoever watches."""

import itertools
from collections.abc import Callable
from pathlib import Path

from styledrop_jax import guidance, hosts
from styledrop_jax.io import image_files
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.sample import round_pool

FOLDER = "preview"
"""In the folder of a round: STEP_PROMPT.png."""
_MOST = 4  # prompts; a chunk of them takes no longer than one


def marks(steps: int, every: int) -> range:
    """The steps before the last after which is drawn; none if `every` is 0."""
    return range(every, steps, every) if every else range(0)


def draw(job: Job, number: int, step: int, save: Callable[[Path], None]) -> None:
    """Draws the first prompts with what has been learnt, from the seeds of the round's own samples.

    Args:
        step: that the state is of.
        save: writes the state to an adapter file.
    """
    samples = []
    for sample in round_pool(job, number):
        if sample.image == 0 and not sample.source and len(samples) < _MOST:
            samples.append(sample)
    if not samples:  # pictures that are drawn anew are no work of a moment
        return
    folder = job.run.path(f"round_{number}", FOLDER)
    adapter = folder / "adapter.safetensors"
    save(adapter)
    tuned = guidance.load(job.pipeline, adapter)
    how = job.spec.round(number).sample
    branches = guidance.style_branches(tuned, [sample.text for sample in samples], how)
    seeds = [sample.seed for sample in samples]
    chunks = guidance.generate(branches, seeds, settings=how)
    for sample, image in zip(samples, itertools.chain.from_iterable(chunks), strict=True):
        image_files.write_png(folder / f"{step:06d}_{sample.prompt:03d}.png", image)
    if hosts.first():
        adapter.unlink()
