"""Fourth stage: the samples that the next round trains on, and a sheet of all."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from styledrop_jax.feedback.select import ANSWER, Candidate, Pool
from styledrop_jax.io import image_files, sheets
from styledrop_jax.registry import SELECTORS
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.samples import Sample, read_chosen, write_chosen

OF_CHOICE = ("selected.json", "grid.png", f"feedback/{ANSWER}")
"""In the folder of a round: the files that say what was chosen."""


def select_round(job: Job, number: int, samples: Sequence[Sample]) -> list[Sample]:
    """The chosen samples of a round.

    Raises:
        UserError: there is not enough to choose from.
        Paused: a person has to choose.
    """
    stage = f"round_{number}"
    path = job.run.path(stage, "selected.json")
    if path.exists():
        chosen = read_chosen(path)
    else:
        chosen = _choose(job, number, samples)
        write_chosen(path, chosen)
    _write_sheet(job, stage, samples, chosen)
    return chosen


def _choose(job: Job, number: int, samples: Sequence[Sample]) -> list[Sample]:
    settings = job.spec.round(number).select
    folder = job.run.path(f"round_{number}")
    candidates = []
    for sample in samples:
        candidates.append(
            Candidate(
                prompt=sample.prompt,
                image=sample.image,
                score=sample.score,
                file=folder / sample.file,
                text=sample.text,
            )
        )
    choose = SELECTORS[settings.by]
    indices = choose(Pool(candidates, settings.k, settings.threshold, folder))
    return [samples[index] for index in indices]


def _reduced(image: np.ndarray, count: int) -> np.ndarray:
    """One of `count` images of a size, about as small as a sheet of them has room for: whole, they
    may not fit into memory.
    """
    factor = int((count * image[..., 0].size / sheets.MAX_PIXELS) ** 0.5)
    return image if factor < 2 else np.asarray(Image.fromarray(image).reduce(factor))


def _write_sheet(job: Job, stage: str, samples: Sequence[Sample], chosen: Sequence[Sample]) -> None:
    """All samples of a round on one sheet, those of a prompt side by side, the chosen ones
    framed.
    """
    if job.run.done(f"{stage}/grid.png"):
        return
    kept = {sample.place for sample in chosen}
    images = []
    captions = []
    marked = []
    for i, sample in enumerate(samples):
        image = image_files.read_image(job.run.path(stage, sample.file))
        images.append(_reduced(image, len(samples)))
        captions.append(sample.content)
        if sample.place in kept:
            marked.append(i)
    alike = len(samples) // (samples[-1].prompt + 1)
    columns = alike * max(1, round(len(samples) ** 0.5 / alike))
    sheet = sheets.grid(images, columns=columns, marked=marked, captions=captions)
    image_files.write_png(job.run.path(stage, "grid.png"), sheet)
    job.logger.image(f"{stage}/samples", 0, sheet)
