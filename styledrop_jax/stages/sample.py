"""Second stage: the pool of prompts, sampled by the base model or by what a round trained."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from styledrop_jax import guidance
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io import image_files
from styledrop_jax.methods.base import Redrawn
from styledrop_jax.models.reading import PLAIN
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.sampling.attention_control import aligned_tokens
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.samples import Sample, pool

CANDIDATES = "candidates"
"""In the folder of a round: samples that are to be chosen from, and for nothing else."""


def round_pool(job: Job, number: int) -> list[Sample]:
    """What round `number` samples; the base model, round 0, one image of every prompt."""
    return _pool(job, number, job.spec.round(number).sample.images_per_prompt if number else 1)


def _pool(job: Job, number: int, count: int) -> list[Sample]:
    sources = {}
    for file, given in job.sources.items():
        sources[file] = Path(given.reference.path).stem
    return pool(job.prompts_of(number), count, seed=job.spec.seed, number=number, sources=sources)


def sample_base(job: Job) -> list[Sample]:
    """The base model's samples of the prompts, by the words of the style alone."""
    base = guidance.bare(job.pipeline)
    settings = job.spec.round(1).sample
    return sample_with(job, "base", round_pool(job, 0), base, settings, base_alone=True)


def sample_round(job: Job, number: int) -> list[Sample]:
    """The pool of a round, by its adapter."""
    stage = f"round_{number}"
    tuned = guidance.load(job.pipeline, job.run.path(stage, "adapter.safetensors"))
    return sample_with(job, stage, round_pool(job, number), tuned, job.spec.round(number).sample)


def sample_candidates(job: Job, number: int) -> list[Sample]:
    """Samples of a round for the next one to be chosen from: `config.round_N.select` says how many,
    and how strongly they are guided.
    """
    settings = job.spec.round(number)
    how = dataclasses.replace(
        settings.sample,
        images_per_prompt=settings.select.images_per_prompt,
        lambda_a=settings.select.lambda_a,
    )
    tuned = guidance.load(job.pipeline, job.run.path(f"round_{number}", "adapter.safetensors"))
    samples = _pool(job, number, how.images_per_prompt)
    return sample_with(job, f"round_{number}/{CANDIDATES}", samples, tuned, how)


def sample_with(
    job: Job,
    stage: str,
    samples: list[Sample],
    tuned: guidance.Tuned,
    settings: SampleSettings,
    *,
    base_alone: bool = False,
) -> list[Sample]:
    """Writes the images of a stage that are not there yet; none once they have been scored."""
    if job.run.done(f"{stage}/scores.jsonl"):
        return samples
    make = guidance.classifier_free if base_alone else guidance.style_branches
    for _, group in itertools.groupby(samples, _alike):
        same = list(group)
        source = same[0].source
        guidance.generate_files(
            f"{stage}: sampling",
            [job.run.path(stage, sample.file) for sample in same],
            [sample.text for sample in same],
            [sample.seed for sample in same],
            lambda texts: make(tuned, texts, settings),
            base=job.pipeline,
            settings=settings,
            follow=follow(job, source, same[0].text) if source else None,
        )
    return samples


def _alike(sample: Sample) -> int:
    """What is sampled together: all that comes from prompts alone, else the samples of one source
    and prompt.
    """
    return sample.prompt if sample.source else -1


def follow(job: Job, source: str, text: str) -> guidance.Follow:
    """An image that is generated anew, as samples under the prompt `text` follow it."""
    assert job.program.redrawn is not None
    reference = job.sources[source].reference
    square = image_files.to_square(
        reference.image, job.pipeline.resolution, ground=reference.ground
    )
    return following(job.pipeline, job.program.redrawn, square, text)


def following(
    pipeline: Pipeline, redrawn: Redrawn, image: np.ndarray, text: str
) -> guidance.Follow:
    """An image uint8 [r, r, 3], as samples under the prompt `text` follow it.

    Raises:
        UserError: the pipeline has no control of its attention, or the two prompts do not align
            token for token.
    """
    field = f"config.{redrawn.section}.control"
    if not pipeline.controllable:
        raise UserError(
            f"{field}: found {redrawn.share}, expected 0: control of the attention needs "
            f"Stable Diffusion, and config.base is {pipeline.name!r}"
        )
    if pipeline.reading != PLAIN:
        raise UserError(
            f"{field}: found {redrawn.share}, expected 0 beside config.prompt_weights and "
            "config.long_prompts"
        )
    padded = pipeline.text_ids([redrawn.prompt, text, redrawn.kept])
    source, result, kept = _without_padding(padded, pipeline.tokenizer.eos_token_id)
    tokens = aligned_tokens(source, result, kept[1:-1])
    if tokens is None:
        raise UserError(
            f"{field}: the prompts do not align: {shown(redrawn.prompt, 40)} has {len(source) - 2} "
            f"tokens, {shown(text, 40)} {len(result) - 2}; expected as many, at most "
            f"{padded.shape[1] - 2}, with {shown(redrawn.kept, 30)} at one place of both: "
            "the same repeats in both, or shorter identifiers"
        )
    return guidance.Follow(
        own=pipeline.encode_images(image[None]),
        prompt=redrawn.prompt,
        tokens=np.pad(tokens, (0, padded.shape[1] - len(tokens))),
        share=redrawn.share,
        strength=redrawn.strength,
    )


def _without_padding(rows: np.ndarray, end: Any) -> Sequence[np.ndarray]:
    """The ids of each prompt up to its end token."""
    return [ids[: np.argmax(ids == end) + 1] for ids in rows]
