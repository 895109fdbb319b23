"""The one exception a user's mistake raises, and the words that help to mend it."""

import difflib
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A failure the user caused and can mend: a bad file, field, prompt or disk.

    The message is one line that names the field or file, what was found and what was expected. The
    command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(name: str, options: Iterable[str], *, part: Callable[[str], str] = str) -> str:
    """Returns `"; did you mean 'x'?"` for the option closest to `name`, or `""` when none is close.

    The text is made to be appended to an error message. Names are compared by their `part`.
    """
    by_lower = {part(str(option)).lower(): str(option) for option in options}
    close = difflib.get_close_matches(part(str(name)).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def shown(value: object, longest: int = 60) -> str:
    """`value` as an error shows it: one line, not much longer than `longest` letters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of very many levels"
    return text if len(text) <= longest else f"{text[:longest]}…"
