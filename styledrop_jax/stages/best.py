"""Which of the states that a round kept is the best, and where that is written down."""

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.io.run_folder import Run

_BEST = "steps/best.json"


def step_file(step: int) -> str:
    """The state after `step` steps, in the folder of its round."""
    return f"steps/{step:06d}.safetensors"


def trial(number: int, step: int) -> str:
    """The folder of the samples by which a state of round `number` was compared."""
    return f"round_{number}/steps/{step:06d}"


def write_best(run: Run, number: int, step: int) -> None:
    """Records the step after which round `number` was best."""
    write_json(run.path(f"round_{number}", _BEST), {"step": step})


def read_best(run: Run, number: int) -> int | None:
    """The step after which round `number` was best; None if it kept the last state alone.

    Raises:
        UserError: the file is not as `write_best` leaves it.
    """
    if not run.done(f"round_{number}/{_BEST}"):
        return None
    path = run.path(f"round_{number}", _BEST)
    content = read_json(path)
    step = content.get("step") if isinstance(content, dict) else None
    if type(step) is not int or not run.done(f"{trial(number, step)}/scores.jsonl"):
        raise UserError(f"{path}: not as `personalize` leaves it: {shown(content)}")
    return step
