"""The door for settings: config files by name or path, overrides from the command line, and then
one value.

A config file is a Python file with `get_config(preset)`, which returns an ml_collections
ConfigDict. It may leave out any field: the field's own default holds. A run folder is a config too:
what that run was told.
"""

import contextlib
import difflib
import inspect
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from styledrop_jax import spec
from styledrop_jax.errors import UserError, did_you_mean, few, shown
from styledrop_jax.io.files import read_object, write_bytes
from styledrop_jax.io.paths import shown_path

_OF_RUN = "config.json"
_PACKAGE = Path(__file__).parent
Complete = Callable[[Mapping[str, Any]], dict[str, Any]]


def folder() -> Path:
    """Where the configs that ship are: in the installed package, or at the top of a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The configs that ship, by name."""
    return sorted(path.stem for path in folder().glob("*.py"))


def copy(target: Path) -> Path:
    """Copies the configs that ship into a folder, to be edited; files that are there already stay
    as they are.
    """
    for path in sorted(folder().glob("*.py")):
        if not (target / path.name).exists():
            write_bytes(target / path.name, path.read_bytes())
    return target


def find(name: str) -> tuple[Path, str]:
    """The file and the preset of "styledrop", "styledrop:sd15", "mine.py", "mine.py:preset" or of
    a run folder.

    Raises:
        UserError: there is no such config.
    """
    file, _, preset = name.partition(":")
    if file in names():
        return folder() / f"{file}.py", preset
    path = Path(file)
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            return path, preset
        if (Path(name) / _OF_RUN).is_file():
            return Path(name) / _OF_RUN, ""
    hint = did_you_mean(path.stem, names())
    raise UserError(
        f"--config: no such file or name {shown(file)}{hint}; "
        f"expected a file, a run folder, or one of {', '.join(names())}"
    )


def load(name: str, complete: Complete = spec.complete) -> ConfigDict:
    """What the config `name` returns, with every field that it leaves out.

    Raises:
        UserError: there is no such config, or its file fails.
    """
    path, preset = find(name)
    if path.name == _OF_RUN:
        return ConfigDict(complete(read_object(path)))
    with _file_errors(path):
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise UserError(f"--config: {path} has no function get_config")
        if preset and not inspect.signature(get_config).parameters:
            raise UserError(f"--config: {path} has no presets, found {shown(preset)}")
        config = get_config(preset) if preset else get_config()
        if not isinstance(config, ConfigDict):
            raise UserError(
                f"--config: get_config of {shown_path(path)} returned a {type(config).__name__}, "
                "expected a ConfigDict"
            )
        return ConfigDict(complete(config.to_dict()))


def read(name: str, overrides: Mapping[str, Any] | None = None) -> spec.RunSpec:
    """The settings of a run: those of the config `name`, and `overrides` of dotted fields, such as
    "round_1.train.steps".

    Raises:
        UserError: no such config or field, or a value of the wrong type or range.
    """
    config = load(name)
    fields = _field_names(config)
    with config.ignore_type():  # `from_config` says better what is wrong
        for field, value in (overrides or {}).items():
            if field not in fields:
                raise UserError(_unknown(field, fields))
            config.update_from_flattened_dict({field: value})
    return spec.from_config(spec.absolute(spec.complete(config.to_dict())))


def from_arguments(
    argv: Sequence[str], complete: Complete = spec.complete
) -> tuple[dict[str, Any], list[str]]:
    """Reads `--config NAME` and the `--config.FIELD VALUE` overrides from a command line.

    Args:
        argv: arguments without the program's name.
        complete: fills in what a config file leaves out.

    Returns:
        the complete config as nested plain data, and the arguments that are not about it, in their
        order.

    Raises:
        UserError: no such config or field, or a value that is not of its field's type.
    """
    name, others = _split_name(argv)
    if name is None:
        raise UserError("--config: missing; expected a config, such as --config styledrop")
    config = load(name, complete)
    _check_overrides(others, config)
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # go on after a word that is not a flag
    words = ["styledrop", *others]
    with _flag_errors(values):
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        rest = values(words, known_only=True)[1:]
    return complete(config.to_dict()), rest  # again: a section may be given as a whole


def _split_name(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes the last `--config NAME` out, and joins `--config.x true` into one word, which absl
    would not.
    """
    name = None
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return name, [*others, word, *words]
        if re.fullmatch(r"--?config", word):
            if not words or words[0].startswith("--"):
                raise UserError("--config: no value; expected a config, such as --config styledrop")
            name = words.pop(0)
        elif match := re.fullmatch(r"--?config=(.*)", word, re.DOTALL):
            name = match[1]
        elif re.fullmatch(r"--?config\.[^=]+", word) and _is_truth(words):
            others.append(f"{word}={words.pop(0)}")
        else:
            others.append(word)
    return name, others


def _is_truth(words: list[str]) -> bool:
    return bool(words) and words[0].lower() in ("true", "false")


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Any failure of a config file as one line, with the line of the user's own code."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        for part in traceback.extract_tb(error.__traceback__):
            if part.filename == str(path):
                line = part.lineno
        said = " ".join(str(error).split())[:150]
        where = f"{shown_path(path)} line {line}" if line else shown_path(path)
        raise UserError(f"--config: {where} failed: {type(error).__name__}: {said}") from error


@contextlib.contextmanager
def _flag_errors(values: flags.FlagValues) -> Iterator[None]:
    try:
        yield
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --(config\.[^=]+)=(.*?): ", str(error), re.DOTALL)
        if not match:
            raise UserError(f"--config: {' '.join(str(error).split())[:200]}") from error
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        expected = kinds.get(type(values[match[1]].default), "a dict {'name': number}")
        raise UserError(f"{match[1]}: found {shown(match[2])}, expected {expected}") from error
    except flags.Error as error:
        raise UserError(f"--config: {' '.join(str(error).split())[:200]}") from error


def _check_overrides(argv: Sequence[str], config: ConfigDict) -> None:
    """Every `--config.FIELD` must exist: checked before config_flags, which answers with a
    traceback.
    """
    fields = _field_names(config)
    problems = []
    for word in argv:
        if word == "--":
            break
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if match and match[1] not in fields:
            problems.append(_unknown(match[1], fields))
    if problems:
        raise UserError(few(problems, room=250, joint=" | "))


def _unknown(field: str, fields: Sequence[str]) -> str:
    return f"config.{field[:80]}: unknown field{_closest(field, fields)}"


def _closest(name: str, fields: Sequence[str]) -> str:
    """The field whose last word is most like the one given, wherever it lives; then the whole name
    counts.
    """

    def likeness(field: str) -> tuple[float, float]:
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], field.rpartition(".")[2])
        return last.ratio(), difflib.SequenceMatcher(None, name, field).ratio()

    name = name[:80]
    best = max(fields, key=likeness)
    return f"; did you mean 'config.{best}'?" if max(likeness(best)) >= 0.6 else ""


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, ConfigDict):
            found += _field_names(value, f"{prefix}{key}.")
    return found
