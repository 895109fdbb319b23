"""Which round of a run, and which state of it, is put to use."""

from pathlib import Path

from styledrop_jax import log
from styledrop_jax.errors import UserError
from styledrop_jax.io.run_folder import Run
from styledrop_jax.stages.best import step_file
from styledrop_jax.stages.judge import read_verdict


def chosen_round(run: Run, count: int, asked: int | None) -> int:
    """The round that is asked for of `count`; None is the best by the run's verdict, 0 the base.

    Raises:
        UserError: it has no adapter.
    """
    rounds = []
    for number in range(1, count + 1):
        if run.done(f"round_{number}/adapter.safetensors"):
            rounds.append(number)
    if asked == 0 or (asked is not None and asked in rounds):
        name = f"round {asked} of {len(rounds)}" if asked else "the base model alone"
        log.say(f"{run.workdir}: {name}, as asked")
        return asked
    if asked is None and rounds:
        recorded = read_verdict(run)
        best = recorded.verdict.round if recorded else rounds[-1]
        if best not in rounds or len(rounds) == 1:
            return rounds[-1]
        log.say(f"{run.workdir}: round {best} of {len(rounds)}, the best by the run's verdict")
        return best
    found = ", ".join(map(str, rounds)) or "none yet: let `styledrop personalize` finish a round"
    raise UserError(f"round: found {asked}, rounds of {run.workdir} with an adapter: {found}")


def adapter_file(run: Run, number: int, step: int | None) -> Path | None:
    """The file of what a round trained, at a step that it kept, or at its best; None for the base.

    Raises:
        UserError: the round did not keep the step.
    """
    if step is None:
        return run.path(f"round_{number}", "adapter.safetensors") if number else None
    path = run.path(f"round_{number}", step_file(step))
    if path.is_file():
        return path
    kept = [str(int(file.stem)) for file in sorted(path.parent.glob("*.safetensors"))]
    found = ", ".join(kept) or f"none; `config.round_{number or 1}.keep` above 1 keeps some"
    raise UserError(f"step: found {step}, steps that round {number} of {run.workdir} kept: {found}")
