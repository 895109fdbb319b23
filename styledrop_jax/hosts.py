"""One run by several processes, such as one on each host of a TPU pod.

All of them carry out the same program on the devices of all. The first one owns the run folder: it
alone writes, and says what happens; what depends on a file it decides for all.

JAX and NumPy are imported where they are needed: files are read, and flags, without them.
"""

import contextlib
import itertools
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from styledrop_jax.errors import UserError

T = TypeVar("T")
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_NUMBER = "JAX_PROCESS_ID"
_PATIENCE = 30  # seconds without a sign of life after which a process is taken for dead
_LEAST = 2**12  # bytes of a broadcast: sizes are powers of two, each a program of its own


class Stopped(KeyboardInterrupt):
    """The process was told to end (SIGTERM), and has kept what it had."""


def join() -> None:
    """Joins the other processes, if the environment says that there are any: to be called first.

    Three environments say so: JAX_COORDINATOR_ADDRESS (host:port of the first process) with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; a step of SLURM with several tasks; the workers of a TPU
    pod, by TPU_WORKER_HOSTNAMES, or by STYLEDROP_TPU_POD=1, which asks the pod itself.

    If one of them dies, the others end too.

    Raises:
        UserError: the environment says it in part.
    """
    import jax

    patience: dict[str, Any] = {
        "heartbeat_timeout_seconds": _PATIENCE,
        "shutdown_timeout_seconds": _PATIENCE,
    }
    if jax.distributed.is_initialized():
        return
    if address := os.environ.get(_ADDRESS):
        count = _whole(_COUNT)
        number = _whole(_NUMBER)
        if not number < count:
            raise UserError(f"{_NUMBER}: found {number}, expected less than {_COUNT}, {count}")
        jax.distributed.initialize(address, count, number, **patience)
    elif _of_many():
        jax.distributed.initialize(**patience)


def check_alone(command: str) -> None:
    """UserError if the environment says that there are other processes: of a command that is no
    work for several, each would do all of it.
    """
    several = os.environ.get(_ADDRESS) and os.environ.get(_COUNT) != "1"
    if several or _of_many():
        raise UserError(
            f"{command}: found several processes (by {_ADDRESS}, SLURM or a TPU pod), expected "
            "one; start it on one machine by itself"
        )


def _whole(name: str) -> int:
    found = os.environ.get(name, "")
    if not found.isdecimal():
        raise UserError(f"{name}: found {found!r}, expected a whole number beside {_ADDRESS}")
    return int(found)


def _of_many() -> bool:
    """Whether JAX finds the other processes by itself."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return tasks != "1" or len(workers) > 1 or os.environ.get("STYLEDROP_TPU_POD") == "1"


def several() -> bool:
    """Whether other processes do what this one does now; not while it works for all of them."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1 and not _ALONE.is_set()


def first() -> bool:
    """Whether this process owns the run folder; the only one does."""
    if not several():
        return True
    import jax

    return jax.process_index() == 0


_ALONE = threading.Event()


def shared(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, in all of them; there alone it is done.

    It is sent as a pickle, from one process of this run to the others: never from a file.

    Raises:
        Exception: that it raised there, in all of them.
    """
    if not several():
        return work()
    found: tuple[Any, Exception | None] = (None, None)
    if first():
        _ALONE.set()
        try:
            found = (work(), None)
        except Exception as error:
            found = (None, error)
        finally:
            _ALONE.clear()
    result, error = pickle.loads(_broadcast(pickle.dumps(found)))
    if error is not None:
        raise error
    return result


def _broadcast(data: bytes) -> bytes:
    """The bytes of the first process."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = max(_LEAST, 1 << (size - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    if first():
        padded[:size] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes()[:size]


def wait() -> None:
    """Waits until all processes are here: what the first wrote before it is there after it."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("styledrop_jax")


# -------------------------------------------------------------- told to end

_TOLD = threading.Event()
_LOOKED = itertools.count(1)  # JAX takes 0 for never


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While it lasts, neither SIGTERM nor a first Ctrl-C ends the process, but is there to be found
    by `told_to_stop`.
    """
    if several() or threading.current_thread() is not threading.main_thread():
        yield  # of several processes JAX listens for all
        return
    _TOLD.clear()
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: _TOLD.set())}
    if callable(signal.getsignal(signal.SIGINT)):  # else the shell has it ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(*_: object) -> None:
    if _TOLD.is_set():
        raise KeyboardInterrupt
    _TOLD.set()
    os.write(2, b"stopping when these steps are done and kept; Ctrl-C again stops at once\n")


def told_to_stop() -> bool:
    """Whether to keep what there is and end. All processes, which have to ask at the same places,
    agree on it, whichever got the signal.
    """
    if several():
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(next(_LOOKED))
    return _TOLD.is_set()
