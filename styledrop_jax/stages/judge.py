"""After the rounds: which one is the best, and a verdict in plain words."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from styledrop_jax import log
from styledrop_jax.errors import UserError, shown
from styledrop_jax.feedback.verdict import Scores, Verdict, judge
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.io.run_folder import Run
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.samples import Sample, read_samples

FILE = "verdict.json"
_LINE = ("why", "command")
_SCORES = ("clip_style", "clip_content", "clip_leakage")


def judge_run(job: Job) -> None:
    """Writes `verdict.json`, and says what is in it."""
    if job.run.done(FILE):
        return
    stages = ["base", *(f"round_{number}" for number in range(1, job.spec.rounds + 1))]
    samples = [read_samples(job.run.path(stage, "scores.jsonl")) for stage in stages]
    scores = _means(samples, job.shown)
    verdict = judge(scores[0], scores[1:])
    commands = _commands(job, verdict)
    write_json(
        job.run.path(FILE),
        {
            "round": verdict.round,
            "learnt": verdict.learnt,
            "remarks": list(verdict.remarks),
            "try": commands,
            "scores": dict(zip(stages, scores, strict=True)),
        },
    )
    best = scores[verdict.round]
    log.say(
        f"verdict: {verdict.learnt}, round {verdict.round} is the best: "
        f"style {best['clip_style']:.2f} (base model {scores[0]['clip_style']:.2f}), "
        f"text {best['clip_content']:.2f} ({scores[0]['clip_content']:.2f}), "
        f"leakage {best['clip_leakage']:.2f} ({scores[0]['clip_leakage']:.2f})"
    )
    for remark in verdict.remarks:
        log.say(f"verdict: {remark}")
    for line in commands:
        log.say(f"to try, {line['why']}: {line['command']}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What `verdict.json` says; see `Verdict`. `advice` is of commands, {"why", "command"}."""

    round: int
    learnt: str
    remarks: Sequence[str]
    advice: Sequence[Mapping[str, str]]
    scores: Mapping[str, Scores]

    @property
    def base(self) -> Scores:
        return self.scores["base"]

    @property
    def best(self) -> Scores:
        return self.scores[f"round_{self.round}"]


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
            scores[stage] = {name: float(row[name]) for name in _SCORES}
        found = Recorded(
            round=int(content["round"]),
            learnt=str(content["learnt"]),
            remarks=[str(remark) for remark in content["remarks"]],
            advice=[{name: str(line[name]) for name in _LINE} for line in content["try"]],
            scores=scores,
        )
        _ = found.base, found.best
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.path(FILE)}: not as `personalize` leaves it: {shown(error)}"
        ) from error
    return found


def _means(stages: Sequence[Sequence[Sample]], shown: Sequence[str]) -> list[dict[str, float]]:
    """The mean scores of each stage over the prompts that all stages have, and that do not ask for
    what the references show; over all prompts if there are none such.
    """
    common = set.intersection(*({sample.content for sample in stage} for stage in stages))
    common -= set(shown)
    found = []
    for stage in stages:
        rows = [sample.scores for sample in stage if sample.content in common or not common]
        found.append({name: float(np.mean([row[name] for row in rows])) for name in _SCORES})
    return found


def _commands(job: Job, verdict: Verdict) -> list[dict[str, str]]:
    """What the verdict advises, as commands to paste."""
    run = shlex.quote(str(job.run.workdir))
    again = shlex.quote(f"{job.run.workdir}-2")
    sampling = job.spec.round(verdict.round).sample
    steps = job.spec.round(verdict.round).train.steps
    lines = {
        "words": (
            "other words, nearer to what the picture shows",
            f"styledrop personalize --config {run} "
            f'--config.reference.descriptor "in … style" --workdir {again}',
        ),
        "pictures": (
            "more pictures of the style, each named after what it shows",
            f"styledrop personalize --config {run} --config.reference.image FOLDER "
            f"--config.rounds 1 --workdir {again}",
        ),
        "more": (
            "more of the style",
            f'styledrop sample --run {run} --prompt "a cat" '
            f"--lambda-a {max(2 * sampling.lambda_a, 1):g}",
        ),
        "less": (
            "fewer steps, which copy less of the reference",
            f"styledrop personalize --config {run} "
            f"--config.round_1.train.steps {max(1, steps // 2)} --workdir {again}",
        ),
    }
    return [dict(zip(_LINE, lines[kind], strict=True)) for kind in verdict.advice]
