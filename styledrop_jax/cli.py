"""`styledrop <command>`: which commands there are, and what becomes of their errors."""

import argparse
import contextlib
import functools
import inspect
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from styledrop_jax import __version__, cache, hosts
from styledrop_jax.commands import prepare, share, teach, use, watch
from styledrop_jax.commands.parser import Parser
from styledrop_jax.errors import UserError, did_you_mean

_LOG_FORMAT = "warning: %(message)s"
_USAGE = """styledrop teaches a text-to-image model your style or your subject.

    styledrop COMMAND [flags]        styledrop COMMAND --help

commands:
"""


def completion(argv: Sequence[str]) -> None:
    """Print a completion script for your shell.

        styledrop completion bash > ~/.local/share/bash-completion/completions/styledrop
        styledrop completion zsh  > ~/.zfunc/_styledrop

    Put it where your shell looks for completions, and start a new shell.
    """
    flags = completion_parser().read(argv)
    import shtab

    whole = argparse.ArgumentParser(prog="styledrop", description=_USAGE)
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = command.parser()
        summary = str(parser.description).splitlines()[0]
        commands.add_parser(name, parents=[parser], add_help=False, help=summary)
    print(shtab.complete(whole, shell=flags.shell))


def completion_parser() -> Parser:
    parser = Parser("completion", completion)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


class Command(NamedTuple):
    """What a command does with its arguments, and what reads them; `alone`: it writes, and is no
    work for several processes.
    """

    run: Callable[[Sequence[str]], None]
    parser: Callable[[], Parser]
    alone: bool = False


COMMANDS = {
    "personalize": Command(teach.personalize, teach.personalize_parser),
    "plan": Command(teach.plan, teach.plan_parser),
    "extend": Command(teach.extend, teach.extend_parser),
    "runs": Command(teach.runs, teach.runs_parser),
    "studio": Command(watch.studio, watch.studio_parser, alone=True),
    "sample": Command(use.sample, use.sample_parser),
    "mix": Command(use.mix, use.mix_parser),
    "edit": Command(use.edit, use.edit_parser),
    "stylize": Command(use.stylize, use.stylize_parser),
    "export": Command(use.export, use.export_parser, alone=True),
    "push": Command(share.push, share.push_parser, alone=True),
    "fetch": Command(share.fetch, share.fetch_parser),
    "describe": Command(prepare.describe, prepare.describe_parser),
    "configs": Command(prepare.configs, prepare.configs_parser, alone=True),
    "rare-tokens": Command(prepare.rare_tokens, prepare.rare_tokens_parser),
    "pretrain": Command(prepare.pretrain, prepare.pretrain_parser, alone=True),
    "completion": Command(completion, completion_parser),
}


def main() -> None:
    """The process of a command: `run`, after whose last line nothing else is said.

    What threads of libraries and native code fail with, and what a library logs of an exception, is
    held back until it is known whether the command itself says it, as it does of a full disk.
    """
    held: list[Callable[[], object]] = []
    logging.basicConfig(format=_LOG_FORMAT, level=logging.WARNING, handlers=[_Handler(held)])

    def of_thread(failure: threading.ExceptHookArgs) -> None:
        held.append(functools.partial(threading.__excepthook__, failure))

    def of_callback(failure: Any) -> None:
        if failure.exc_type is KeyboardInterrupt:  # it comes again, once though another falls in
            with contextlib.suppress(KeyboardInterrupt):
                main_thread = threading.main_thread().ident
                again = (main_thread, signal.SIGINT)  # which ends what waits in the kernel, too
                threading.Timer(0.05, signal.pthread_kill, again).start()
        else:
            held.append(functools.partial(sys.__unraisablehook__, failure))

    threading.excepthook = of_thread
    sys.unraisablehook = of_callback
    try:
        run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: nothing is left to stop
    except SystemExit:
        threading.excepthook = sys.unraisablehook = _nothing
        logging.disable()
        raise
    except BaseException:
        _tell(held)
        raise
    _tell(held)


def _tell(held: Iterable[Callable[[], object]]) -> None:
    """Says what was held back, and holds nothing back any more."""
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    for say in held:
        say()


def _nothing(*_: object) -> None:
    """In place of what says something."""


class _Handler(logging.StreamHandler):
    """Warnings on standard error; those of exceptions are held back."""

    def __init__(self, held: list[Callable[[], object]]):
        super().__init__()
        self._held = held

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._held.append(functools.partial(super().emit, record))
        else:
            super().emit(record)


def run() -> None:
    """Runs a command: exit code 2 and one line on standard error for what the user can mend."""
    name, *argv = sys.argv[1:] or ["--help"]
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # it tells every user that torch is missing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no Unicode
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        with _interruptible():
            _run(name, argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(name: str, argv: list[str]) -> None:
    if name in ("-h", "--help"):
        _print_commands()
    elif name in ("-V", "--version"):
        print(f"styledrop {__version__}")
    elif name in COMMANDS:
        if COMMANDS[name].alone and not {"-h", "--help"} & set(argv):
            hosts.check_alone(name)
        cache.keep_programs()
        COMMANDS[name].run(argv)
    else:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"styledrop: unknown command {name[:80]!r}{hint}; see styledrop --help")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Where an error after a Ctrl-C is that Ctrl-C: native code makes an error of its own of an
    interrupt that falls into what it calls.
    """
    before = signal.getsignal(signal.SIGINT)
    told = []

    def note(*_: object) -> None:
        told.append(True)
        raise KeyboardInterrupt

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except UserError as error:
        if told:
            raise KeyboardInterrupt from error
        raise
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _print_commands() -> None:
    lines = []
    for name, command in COMMANDS.items():
        summary = str(inspect.getdoc(command.run)).splitlines()[0]
        lines.append(f"    {name:12} {summary}")
    print(_USAGE + "\n".join(lines), flush=True)
