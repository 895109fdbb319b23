"""`python -m styledrop_jax.studio.ask`: what only JAX knows, asked in a process of its own.

The studio's own process stays small, and takes no memory of an accelerator that a run uses.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from styledrop_jax.errors import UserError, one_line

_PATIENCE = 300  # seconds
_ONE = threading.Lock()


def ask(*words: str) -> dict[str, Any]:
    """The answer to `describe IMAGE CONTENT [hard]` or `plan --config …`; one question at a time.

    Raises:
        UserError: what the question runs into.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with _ONE:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "styledrop_jax.studio.ask", *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{words[0]}: no answer in {_PATIENCE} seconds; try again") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise UserError(one_line(lines[-1].removeprefix("error: "), 280))
    return json.loads(done.stdout.decode().splitlines()[-1])


def _describe(words: Sequence[str]) -> dict[str, Any]:
    from styledrop_jax.library import describe

    image, content, *how = words
    found = describe(image, content=content, hard="hard" in how)
    descriptors = [phrase for phrase, _ in found.descriptors]
    if found.hard_prompt is not None:
        descriptors.append(found.hard_prompt[0])
    return {"content": found.content, "guessed": found.guessed, "descriptors": descriptors}


def _plan(words: Sequence[str]) -> dict[str, Any]:
    from styledrop_jax import config_files, spec
    from styledrop_jax.planning.run import brief, planned
    from styledrop_jax.stages.read import read

    config, _ = config_files.from_arguments(words)
    value = spec.from_config(spec.absolute(config))
    line = brief(planned(value, read(value)))
    return {"line": line.removeprefix("this run: ").partition("; more by")[0]}


def main() -> None:
    """Prints the answer as a line of JSON."""
    question, *words = sys.argv[1:]
    try:
        found = {"describe": _describe, "plan": _plan}[question](words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
