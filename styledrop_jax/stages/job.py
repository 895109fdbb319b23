"""What the stages of a run share."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from styledrop_jax import log
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.interchange.read import Initial
from styledrop_jax.io.captions import Reference
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods.base import Example, Program, Prompt
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.registry import METHODS
from styledrop_jax.spec import RunSpec


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Taught:
    """An image of the user's that teaches something, and where the run folder keeps it."""

    section: str
    reference: Reference
    caption: str
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run in progress.

    Attributes:
        spec, run, logger: what it is told, where its files are, what it says.
        program: of its method.
        prompts: that it samples.
        given: the user's images that teach.
        pipeline: the base model.
        clip_folder: of the model that scores.
        by_round: prompts of the rounds that have their own.
        trainables: what trains in each round.
        start: the trainable state that round 1 starts from; None for a fresh one.
        learnt: what ships for rounds to start from; None where no round asks or nothing fits the
            base model.
        beside: another run on the same models, which it shares.
    """

    spec: RunSpec
    run: Run
    logger: log.Logger
    program: Program
    prompts: Sequence[Prompt]
    given: Sequence[Taught]
    pipeline: Pipeline
    clip_folder: Path
    trainables: Sequence[Trainable]
    by_round: Mapping[int, Sequence[Prompt]]
    start: Any = None
    learnt: Initial | None = None
    beside: "Job | None" = None

    def prompts_of(self, number: int) -> Sequence[Prompt]:
        """What round `number` samples, under the words that it found; 0 is the base model."""
        given = self.by_round.get(number, self.prompts)
        words = self.run.found_words(number)
        if not words:
            return given
        say = METHODS[self.spec.method].say
        return [say(self.spec, prompt.content, words) for prompt in given]

    @functools.cached_property
    def clip(self) -> ClipScorer:
        """The model that scores, loaded when it is first needed."""
        if self.beside is not None:
            return self.beside.clip
        return ClipScorer.load(self.clip_folder, devices=self.pipeline.devices)

    @property
    def descriptor(self) -> str:
        """The words of the style."""
        return self.given[0].reference.descriptor

    @functools.cached_property
    def judged_by(self) -> np.ndarray:
        """The images that samples are compared with, float32 [m, r, r, 3] in [0, 1]."""
        images = [example.at(self.pipeline.resolution) for example in self._judging]
        return np.stack(images).astype(np.float32) / 255

    @property
    def shown(self) -> list[str]:
        """What the images that samples are compared with show."""
        found = [example.content for example in self._judging if example.content]
        return list(dict.fromkeys(found))

    @property
    def _judging(self) -> list[Example]:
        judging = [stream.examples for stream in self.program.streams if stream.judges]
        return list(itertools.chain.from_iterable(judging))

    @functools.cached_property
    def sources(self) -> dict[str, Taught]:
        """{file in the run folder: image} of the images that are generated anew."""
        redrawn = self.program.redrawn
        if redrawn is None:
            return {}
        return {given.file: given for given in self.given if given.section == redrawn.section}
