"""First stage of a round that finds words: nothing trains, and the words draw."""

import time
from collections.abc import Sequence

import numpy as np
from flax import nnx

from styledrop_jax import hosts, log, tree
from styledrop_jax.adapters import hard_prompt as kind
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.errors import shown
from styledrop_jax.feedback import hard_prompt
from styledrop_jax.feedback.describe import describe
from styledrop_jax.methods.base import Stream
from styledrop_jax.stages.job import Job


def finds(job: Job, number: int) -> bool:
    """Whether round `number` finds words instead of training."""
    return isinstance(job.spec.round(number).adapter, kind.Settings)


def find_words(job: Job, number: int, streams: Sequence[Stream]) -> None:
    """Finds words for what the streams teach, in the CLIP that scores; leaves them in the manifest,
    and an adapter file that holds no weight.
    """
    began = time.monotonic()
    examples = [example for stream in streams if stream.teaches for example in stream.examples]
    pixels = np.stack([example.at(job.pipeline.resolution) for example in examples])
    contents = [example.content for example in examples]
    settings = job.spec.round(number)
    if settings.adapter.by == "phrases":
        found = describe(pixels[0], job.clip, contents=contents[:1], number=1)
        words, likeness = found.descriptors[0]
    else:
        words, likeness = hard_prompt.find(
            pixels.astype(np.float32) / 255,
            contents,
            job.clip,
            words=settings.adapter.words,
            steps=settings.train.steps,
            learning_rate=settings.train.learning_rate,
            seed=job.spec.seed,
        )
    stage = f"round_{number}"
    job.logger.start(stage, step=settings.train.steps)
    log.say(f"{stage}: found the words {shown(words, 200)}, {likeness:.2f} like the reference")
    counts = {
        "trainable": 0,
        "frozen": tree.count(nnx.state(job.pipeline.denoiser)),
        "images": len(examples),
        "training_seconds": round(time.monotonic() - began, 1),
        "words": words,
    }
    job.run.update_manifest({"rounds": {stage: counts}})
    save_adapter(
        job.run.path(stage, "adapter.safetensors"),
        {},
        base_name=job.pipeline.name,
        base_hash=job.pipeline.base_hash,
        config=job.trainables[number - 1].to_dict(),
        round=number,
        extra={"descriptor": words, "content": job.given[0].reference.content},
    )
    hosts.wait()
