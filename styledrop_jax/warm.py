"""`python -m styledrop_jax.warm`: commands one after the other in one process, which keeps the base
model of the last one.

Standard input is a socket. With each line, the words of a command, comes the file that it writes
to; a byte that goes back is its exit code. Ends with the socket, or when it has had nothing to do.
"""

import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator

from styledrop_jax import cli

IDLE = 300  # seconds


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as line:
        line.settimeout(IDLE)
        for words, log in _orders(line):
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            code = _carried_out(words)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)  # the last of the log: its lock is given back
            os.dup2(nothing, 2)
            os.close(nothing)
            line.sendall(bytes([code]))


def _orders(line: socket.socket) -> Iterator[tuple[list[str], int]]:
    """The words of each command, and the number of its open log."""
    while True:
        try:
            first, logs, _, _ = socket.recv_fds(line, 1, 1)
        except (TimeoutError, ConnectionError):
            return
        if not first:
            return
        text = bytearray(first)
        while not text.endswith(b"\n"):
            text += line.recv(2**16)
        yield json.loads(text), logs[0]


def _carried_out(words: list[str]) -> int:
    """The exit code of a command, after the last line that it says."""
    sys.argv = ["styledrop", *words]
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    logging.disable(logging.NOTSET)  # a command that ends in an error says nothing more
    sys.stdout.flush()
    sys.stderr.flush()
    return code & 0xFF


if __name__ == "__main__":
    main()
