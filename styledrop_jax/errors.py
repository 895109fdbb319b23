"""The one exception a user's mistake raises, and the words that help to mend it."""

import contextlib
import difflib
import reprlib
from collections.abc import Callable, Generator, Iterable, Sequence

_LONGEST = 290  # letters of a message
_LONGEST_TEXT = 10_000  # letters of a prompt, a caption or any other setting
_LONGEST_NAME = 200  # letters of a name that others are compared with
# How a value is shown before it is cut: the whole repr of one with millions of parts takes long.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4
for _limit in ("maxdict", "maxlist", "maxtuple", "maxset"):
    setattr(_REPR, _limit, 12)
for _limit in ("maxstring", "maxlong", "maxother"):
    setattr(_REPR, _limit, 1000)


class UserError(Exception):
    """A failure the user caused and can mend: a bad file, field, prompt or disk.

    The message is one line that names the field or file, what was found and what was expected. The
    command line prints it without a traceback and exits with code 2. Whatever it is made of, it is
    printable and at most 290 letters: the middle of a longer one is left out.
    """

    def __init__(self, message: object):
        super().__init__(one_line(str(message), _LONGEST, first=_LONGEST // 2))


class Explanation(UserError):
    """Lines that teach a command to somebody who gave it too little; none of them is cut."""

    def __init__(self, lines: str):
        Exception.__init__(self, lines)


@contextlib.contextmanager
def naming(what: object) -> Generator[None]:
    """Puts a field or a file before a UserError that does not name it."""
    try:
        yield
    except UserError as error:
        if str(what) in str(error):
            raise
        raise UserError(f"{what}: {error}") from None


def one_line(text: str, longest: int, first: int | None = None) -> str:
    """Printable letters in place of line ends and the like, and the middle left out of a long text.

    Its `first` letters are kept, a third of all if that is None.
    """
    first = longest // 3 if first is None else first
    text = _cut(text, longest, first)
    if text.isprintable():
        return text
    letters: list[str] = []
    for letter in text:
        letters.append(letter if letter.isprintable() else repr(letter)[1:-1])
    return _cut("".join(letters), longest, first)


def _cut(text: str, longest: int, first: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:first]}…{text[first + 1 - longest :]}"


def few(names: Sequence[str], *, room: int = 150, joint: str = "; ") -> str:
    """The first of `names`, as many as about `room` letters hold, and how many more there are."""
    text = names[0][:room]
    for count, name in enumerate(names[1:], 1):
        if len(text) + len(name) > room:
            return f"{text}{joint}and {len(names) - count} more"
        text = f"{text}{joint}{name}"
    return text


def did_you_mean(name: str, options: Iterable[str], *, part: Callable[[str], str] = str) -> str:
    """Returns `"; did you mean 'x'?"` for the option closest to `name`, or `""` when none is close.

    The text is made to be appended to an error message. Names are compared by their `part`.
    """
    by_lower = {part(str(option)).lower(): str(option) for option in options}
    wanted = part(str(name)[:_LONGEST_NAME]).lower()
    close = difflib.get_close_matches(wanted, list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def shown(value: object, longest: int = 60) -> str:
    """`value` as an error shows it: one line, not much longer than `longest` letters."""
    try:
        text = _REPR.repr(value)
    except (RecursionError, ValueError):  # the latter for a number of thousands of digits
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= longest else f"{text[:longest]}…"


def check_words(text: str, where: str) -> None:
    """Does nothing if `text` can be a prompt, a caption or the like; empty is one too.

    Raises:
        UserError: it is too long, or holds what is no letter of Unicode; the message begins with
            `where`.
    """
    if len(text) > _LONGEST_TEXT:
        raise UserError(f"{where}: found {len(text):,} letters, expected at most {_LONGEST_TEXT:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: found {shown(text)}, expected Unicode text") from None
    if "\0" in text:
        raise UserError(f"{where}: found {shown(text)}, expected text without a zero byte")
