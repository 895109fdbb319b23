"""A process that keeps the model between drawings, and the commands that it carries out."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

PROGRAM = (sys.executable, "-m", "styledrop_jax.warm")
COMMANDS = ("sample", "mix", "edit", "stylize")
"""What it carries out."""


class Turn:
    """One command of a worker, as a process is looked at."""

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket):
        self.pid = process.pid
        self._process = process
        self._line = line

    def poll(self) -> int | None:
        """The exit code of the command, None while it runs; the worker's own if it died of it."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if said := self._line.recv(1):
                return said[0]
        ended = self._process.poll()
        return None if ended is None else ended or 1


class Worker:
    """Begins a process when there is a command for it, and ends it for other work.

    The process ends by itself when it has had nothing to do for some minutes, and after the command
    at hand when this one is gone.

    Args:
        program: that takes commands over a socket, its standard input.
    """

    def __init__(self, program: Sequence[str]):
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def begin(self, words: Sequence[str], log: IO[bytes]) -> Turn:
        """Hands a command over, with the log that it writes to and whose lock it then has.

        Raises:
            OSError: the process cannot be begun.
        """
        order = json.dumps(list(words)).encode() + b"\n"
        for _ in range(2):  # one that had nothing to do may just have ended
            process, line = self._running()
            with contextlib.suppress(ConnectionError):
                line.setblocking(True)
                socket.send_fds(line, [order[:1]], [log.fileno()])
                line.sendall(order[1:])
                line.setblocking(False)
                return Turn(process, line)
            self.end()
        raise OSError("the process that draws does not start")

    def end(self) -> None:
        """Lets the process end, after the command at hand."""
        if self._line is not None:
            self._line.close()
        self._process = self._line = None

    def _running(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        if self._process is None or self._line is None or self._process.poll() is not None:
            self.end()
            self._line, other = socket.socketpair()
            with other:
                self._process = subprocess.Popen(
                    self._program,
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        return self._process, self._line
