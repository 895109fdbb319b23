"""What was best of a round's states and strengths, and where it is written down."""

import dataclasses

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.io.run_folder import Run
from styledrop_jax.spec import RoundSample, RunSpec

BEST = "steps/best.json"
"""In the folder of a round that kept more than its last state: `Best`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """What was best of a round: the state after `step` steps, sampled with `lambda_a`."""

    step: int
    lambda_a: float


def step_file(step: int) -> str:
    """The state after `step` steps, in the folder of its round."""
    return f"steps/{step:06d}.safetensors"


def trial_name(best: Best) -> str:
    """The folder below `steps` of the samples that a state was compared by."""
    return f"{best.step:06d}_lambda_a_{best.lambda_a:g}"


def write_best(run: Run, number: int, best: Best) -> None:
    """Records what was best of round `number`."""
    write_json(run.path(f"round_{number}", BEST), dataclasses.asdict(best))


def read_best(run: Run, number: int) -> Best | None:
    """What was best of round `number`; None if nothing was compared.

    Raises:
        UserError: the file is not as `write_best` leaves it.
    """
    if not run.done(f"round_{number}/{BEST}"):
        return None
    path = run.path(f"round_{number}", BEST)
    content = read_json(path)
    try:
        return Best(step=int(content["step"]), lambda_a=float(content["lambda_a"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not as `personalize` leaves it: {shown(error)}") from error


def sampling(run: Run, spec: RunSpec, number: int) -> RoundSample:
    """How a round samples: as it was told, with the strength that was found best."""
    how = spec.round(number).sample
    best = read_best(run, number)
    return how if best is None else dataclasses.replace(how, lambda_a=best.lambda_a)
