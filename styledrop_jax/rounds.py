"""The main job: in each round train an adapter, sample the prompts with it, score the samples,
select some.

Every stage is done when its last file exists, and everything before it is a function of the
settings, so the same command continues a run wherever it was stopped.
"""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from styledrop_jax import hosts, log
from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods.base import Example, Stream
from styledrop_jax.planning.run import Planned, brief
from styledrop_jax.spec import RunSpec, check_batches, from_config, normal, to_config
from styledrop_jax.stages.begin import begin
from styledrop_jax.stages.job import Job
from styledrop_jax.stages.judge import judge_run
from styledrop_jax.stages.read import check_inputs, read
from styledrop_jax.stages.report import write_report
from styledrop_jax.stages.sample import sample_base, sample_candidates, sample_round
from styledrop_jax.stages.samples import Sample
from styledrop_jax.stages.score import score_base, score_candidates, score_round, score_truth
from styledrop_jax.stages.select import OF_CHOICE, select_round
from styledrop_jax.stages.train import train_round
from styledrop_jax.training import mesh


def personalize(spec: RunSpec, workdir: Path, *, command: str, base: str = "") -> Path:
    """Runs or continues a run, and returns the path of its report.

    Args:
        spec: what the run is told.
        workdir: the run folder.
        command: what the user typed, for the report.
        base: where the base model is now, if it has moved since the run began.

    Raises:
        UserError: anything in the settings, the images or the folder that is not right.
        Paused: a person has to choose images first.
    """
    hosts.join()
    if base:
        spec = _began_on(workdir, spec)
    with opened(spec, workdir, base=base) as job:
        if job is None:
            return expanded(workdir) / "report.html"
        return carry_out(job, command=command)


@contextlib.contextmanager
def opened(
    spec: RunSpec, workdir: Path, *, base: str = "", beside: Job | None = None
) -> Iterator[Job | None]:
    """A run that is begun, or gone on with; None if it is finished.

    Args:
        spec, workdir, base: see `personalize`.
        beside: another run, whose models it shares.
    """
    given = read(spec)
    check_batches(spec, mesh.make(spec.mesh).size)
    with (
        Run.open(workdir, to_config(spec), completed=normal) as run,
        log.Logger(run.workdir) as logger,
    ):
        check_inputs(run, given.given, given.contents)
        if run.done("report.html"):
            log.say(f"{workdir}: this run is finished; see {run.path('report.html')}")
            yield None
            return
        try:
            job = begin(spec, run, logger, given, base=base, beside=beside)
        except UserError:
            # It never began: the folder shall not hold the user to a mistaken config.
            if not run.manifest:
                run.discard()
            raise
        if beside is None:
            plan = Planned(spec=spec, read=given, pipeline=job.pipeline, what=job.trainables)
            log.say(brief(plan))
        yield job


def _began_on(workdir: Path, spec: RunSpec) -> RunSpec:
    """The settings with the base model under the name that it had when the run began."""
    if not (expanded(workdir) / "config.json").exists():
        return spec
    name = Run.load(workdir).config.get("base")
    return dataclasses.replace(spec, base=name) if isinstance(name, str) else spec


def carry_out(job: Job, *, command: str) -> Path:
    """The base model's samples, then every round, then the report."""
    for number, streams in trainings(job):
        train_round(job, number, streams)
    return told(job, command)


def trainings(job: Job) -> Iterator[tuple[int, Sequence[Stream]]]:
    """All stages of a run but training and the report, and what each round is to train on: it goes
    on when that is trained.
    """
    score_base(job, sample_base(job))
    score_truth(job)
    streams = job.program.streams
    for number in range(1, job.spec.rounds + 1):
        yield number, streams
        samples = sample_round(job, number)
        scored = score_round(job, number, samples)
        if job.spec.candidates(number):
            scored = score_candidates(job, number, sample_candidates(job, number))
        chosen = hosts.shared(functools.partial(select_round, job, number, scored))
        if job.spec.teaches(number):
            streams = _next_streams(job, number, chosen)


def told(job: Job, command: str) -> Path:
    """The verdict, and the path of the report."""
    return hosts.shared(lambda: _told(job, command))


def _told(job: Job, command: str) -> Path:
    judge_run(job)
    return write_report(job.run, job.spec, command=command)


def _next_streams(job: Job, number: int, chosen: Sequence[Sample]) -> list[Stream]:
    """What the round after `number` trains on: the chosen samples in place of the images that
    judge, or beside them.
    """
    share = job.spec.round(number + 1).own_share
    files = [job.run.path(f"round_{number}", sample.file) for sample in chosen]
    pictures = hosts.shared(lambda: [image_files.read_image(file) for file in files])
    following = []
    for stream in job.program.streams:
        if stream.judges:
            examples = []
            for sample, image in zip(chosen, pictures, strict=True):
                prompt = stream.caption(sample.content, job.descriptor)
                examples.append(Example(image=image, prompt=prompt, content=sample.content))
            own = _repeated(stream.examples, len(examples), share)
            stream = dataclasses.replace(stream, examples=examples + own)
        following.append(stream)
    return following


def _repeated(own: Sequence[Example], others: int, share: float) -> list[Example]:
    """The user's own images as often as makes them `share` of all, beside `others` more."""
    if not share:
        return []
    times = share / (1 - share) * others / len(own)
    return list(own) * max(1, round(times))


# -------------------------------------------------------------- going on with a finished run


def extend(
    workdir: Path,
    *,
    rounds: int = 0,
    steps: int = 0,
    prompts: str = "",
    base: str = "",
    command: str,
) -> Path:
    """Goes on with a finished run, and returns the path of its report.

    Args:
        workdir: the run folder.
        rounds: rounds to add: those that the run has settings for and left out, then each like the
            last one that began with a fresh adapter, on what was chosen before it.
        steps: training steps to add: a round that goes on with the last adapter, on the same
            images.
        prompts: text file of other prompts to sample: in the rounds that are added, or else by the
            last adapter.
        base: where the base model is now, if it has moved.
        command: what the user typed, for the report.

    Raises:
        UserError: the run is not finished, or nothing is to be added.
        Paused: a person has to choose images first.
    """
    if not (rounds or steps or prompts):
        raise UserError("extend: nothing to add; expected --rounds, --steps or --prompts")
    for name, found, most in (("rounds", rounds, 100), ("steps", steps, 1_000_000)):
        if not 0 <= found <= most:
            raise UserError(f"extend: --{name} is {found}, expected at most {most}")
    hosts.join()
    asked = {"rounds": rounds, "steps": steps, "prompts": prompts}
    own, again = shlex.quote(str(workdir)), shlex.quote(f"{workdir}-again")
    command += f"\n# all of it: styledrop personalize --config {own} --workdir {again}"
    run = Run.load(workdir)
    old = from_config(run.config)
    old = dataclasses.replace(old, mesh=mesh.fitting(old.mesh))
    spec = from_config(to_config(_extended(old, rounds, steps, prompts)))
    changes = run.changes
    if not run.done("report.html"):
        if changes.get(f"{old.rounds} rounds") == asked:
            return personalize(old, workdir, command=command, base=base)  # this one was stopped
        if changes.get(f"{spec.rounds} rounds") != asked:
            raise UserError(
                f"{workdir}: this run is not finished; the command that began it continues it"
            )
    read(spec)
    check_batches(spec, mesh.make(spec.mesh).size)
    with Run.open(workdir, run.config) as opened:
        changes = {f"{spec.rounds} rounds": asked}
        last = old.rounds
        # What the next round learns from is then sampled for that, and chosen among those.
        chosen_anew = spec.candidates(last) and not old.candidates(last)
        anew = [f"round_{last}/{name}" for name in OF_CHOICE] if chosen_anew else []
        hosts.shared(lambda: opened.extend(to_config(spec), changes, anew))
    return personalize(spec, workdir, command=command, base=base)


def _extended(spec: RunSpec, rounds: int, steps: int, prompts: str) -> RunSpec:
    """The settings with the rounds that are added; those that are still left out stay behind
    them.
    """
    stages = [spec.round(number) for number in range(1, spec.rounds + 1)]
    left_out = list(spec.round_settings[spec.rounds :])
    last = stages[-1]
    if steps or not rounds:
        stages.append(
            dataclasses.replace(
                last,
                train=dataclasses.replace(last.train, steps=steps),
                prompts=prompts or last.prompts,
                start="last",
                images="same",
            )
        )
    for _ in range(rounds):
        whole = [stage for stage in stages if stage.start != "last"] or stages
        added = left_out.pop(0) if left_out else dataclasses.replace(whole[-1], images="chosen")
        stages.append(dataclasses.replace(added, prompts=prompts or added.prompts))
    return dataclasses.replace(spec, rounds=len(stages), round_settings=tuple(stages + left_out))
