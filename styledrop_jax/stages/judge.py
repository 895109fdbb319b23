"""Fifth stage, after the rounds: which one is the best, and a verdict in plain words."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from styledrop_jax import log
from styledrop_jax.errors import UserError, shown
from styledrop_jax.feedback.describe import finds
from styledrop_jax.feedback.verdict import WELL, Scores, Verdict, judge
from styledrop_jax.io import image_files
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.io.records import are_numbers, inside
from styledrop_jax.io.run_folder import Run
from styledrop_jax.spec import RunSpec
from styledrop_jax.stages.best import read_best
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.samples import Sample, read_samples

FILE = "verdict.json"
_SCORES = ("clip_style", "clip_content", "clip_sameness", "clip_leakage")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What `verdict.json` says; `scores` are the means of "base" and of each "round_N"."""

    verdict: Verdict
    scores: Mapping[str, Scores]

    @property
    def base(self) -> Scores:
        return self.scores["base"]

    @property
    def best(self) -> Scores:
        return self.scores[f"round_{self.verdict.round}"]


class Command(NamedTuple):
    """Something to try: a command to paste, and what for."""

    why: str
    line: str


def judge_run(job: Job) -> None:
    """Writes `verdict.json`, and says what is in it."""
    if not job.run.done(FILE):
        stages = ["base", *(f"round_{number}" for number in range(1, job.spec.rounds + 1))]
        samples = [read_samples(job.run.path(stage, "scores.jsonl")) for stage in stages]
        scores = _means(samples, job.shown)
        verdict = judge(scores[0], scores[1:], job.spec.ends)
        content = dataclasses.asdict(verdict)
        content["scores"] = dict(zip(stages, scores, strict=True))
        write_json(job.run.path(FILE), content)
    recorded = read_verdict(job.run)
    assert recorded is not None
    _say(recorded, commands(job.run, job.spec, recorded.verdict))


def read_verdict(run: Run) -> Recorded | None:
    """The verdict on a run; None if there is none yet.

    Raises:
        UserError: the file is not as `judge_run` leaves it.
    """
    if not run.done(FILE):
        return None
    content = read_json(run.path(FILE))
    try:
        scores = {}
        for stage, row in content["scores"].items():
            if not are_numbers([row[name] for name in _SCORES]):
                raise ValueError(f"{stage} has scores that are no numbers")
            scores[stage] = {name: float(row[name]) for name in _SCORES}
        if type(content["round"]) is not int or content["round"] < 1:
            raise ValueError(f"round is {shown(content['round'])}")
        verdict = Verdict(
            round=content["round"],
            learnt=str(content["learnt"]),
            remarks=[str(remark) for remark in content["remarks"]],
            advice=[str(kind) for kind in content["advice"]],
        )
        found = Recorded(verdict=verdict, scores=scores)
        _ = found.base, found.best
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.path(FILE)}: not as `personalize` leaves it: {shown(error)}"
        ) from error
    return found


def commands(run: Run, spec: RunSpec, verdict: Verdict) -> list[Command]:
    """What a verdict advises, as commands to paste."""
    how = spec.round(verdict.round).sample
    steps = spec.round(1).train.steps
    compared = read_best(run, 1)
    own = shlex.quote(str(run.workdir))
    again = shlex.quote(f"{run.workdir}-again")
    anew = f"styledrop personalize --config {own} --workdir {again}"
    every = {
        "pictures": Command(
            "more pictures of the style, each named after what it shows",
            f"{anew} --config.reference.image FOLDER --config.rounds 1",
        ),
        "more": Command(
            "more of the style when sampling",
            f'styledrop sample --run {own} --prompt "a cat" '
            f"--lambda-a {max(1.5 * how.lambda_a, 1):g}",
        ),
        "text": Command(
            "more of what the prompt asks for when sampling",
            f'styledrop sample --run {own} --prompt "a cat" --lambda-b {1.5 * how.lambda_b:g}',
        ),
        "less": Command(
            "fewer steps, which copy less of the reference",
            f"{anew} --config.round_1.train.steps {max(1, steps // 2)}",
        ),
        "steps": Command(
            "more steps" + (": round 1 was at its best when it ended" if compared else ""),
            f"{anew} --config.round_1.train.steps {2 * steps}",
        ),
        "round": Command(
            "the round that it leaves out, all the same",
            f"styledrop extend --run {own} --rounds 1",
        ),
    }
    kinds = list(verdict.advice)
    if "words" in kinds:
        every["words"] = _other_words(run, anew)
    is_short = compared in (steps, None)
    if is_short and verdict.learnt != WELL and "less" not in kinds:
        kinds.append("steps")
    if run.found_words(verdict.round):  # nothing trained, so there is no more or less of it
        del every["more"], every["less"], every["steps"]
    return [every[kind] for kind in kinds if kind in every]


def _other_words(run: Run, anew: str) -> Command:
    """Those of `describe` for the run's copy of the first reference; where it has those already,
    the user's own.
    """
    first = next(iter(run.references), {})
    content = str(first.get("content", ""))
    file = inside(run.workdir, str(first.get("file", "")))
    if file and finds(image_files.read_image(file), str(first.get("descriptor", ""))):
        return Command(
            "words of your own: these are the nearest that `styledrop describe` finds",
            f'{anew} --config.reference.descriptor "in WORDS style"',
        )
    shows = f" --content {shlex.quote(content)}" if content else ""
    image = shlex.quote(str(run.path(str(first.get("file", "")))))
    return Command(
        "words nearer to what the picture shows, for `--config.reference.descriptor`",
        f"styledrop describe --image {image}{shows}",
    )


def _say(recorded: Recorded, to_try: Sequence[Command]) -> None:
    base = recorded.base
    best = recorded.best
    verdict = recorded.verdict
    log.say(
        f"verdict: {verdict.learnt}; commands take round {verdict.round}; beside the base model's: "
        f"style {best['clip_style']:.2f} ({base['clip_style']:.2f}), "
        f"content {best['clip_content']:.2f} ({base['clip_content']:.2f}), "
        f"sameness {best['clip_sameness']:.2f} ({base['clip_sameness']:.2f})"
    )
    for remark in verdict.remarks:
        log.say(f"verdict: {remark}")
    for command in to_try:
        log.say(f"to try, {command.why}:\n    {command.line}")


def _means(stages: Sequence[Sequence[Sample]], shown: Sequence[str]) -> list[dict[str, float]]:
    """The mean scores of each stage over the prompts that all stages have, and that do not ask for
    what the references show; over all prompts if there are none such.
    """
    common = {sample.content for sample in stages[0]} - set(shown)
    for stage in stages:
        common &= {sample.content for sample in stage}
    found = []
    for stage in stages:
        rows = [sample.scores for sample in stage if sample.content in common or not common]
        found.append({name: float(np.mean([row[name] for row in rows])) for name in _SCORES})
    return found
