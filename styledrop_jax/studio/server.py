"""The server of the studio."""

import contextlib
import logging
import socket
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from styledrop_jax.errors import UserError, shown
from styledrop_jax.studio import worker
from styledrop_jax.studio.api import Api
from styledrop_jax.studio.door import Door, is_loopback, shown_host
from styledrop_jax.studio.folders import Studio
from styledrop_jax.studio.jobs import Jobs

_LOG = logging.getLogger(__name__)


def make(studio: Studio, jobs: Jobs, *, host: str, port: int) -> Door:
    """The whole application: the door, and behind it the routes; both end with it."""

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        jobs.close()
        studio.close()

    app = Starlette(routes=Api(studio, jobs).routes(), lifespan=life)
    return Door(app, host=host, port=port, session=studio.session())


def serve(root: Path, *, host: str, port: int, browser: bool) -> None:
    """Opens the studio on a folder of runs, until it is interrupted.

    Args:
        root: the folder; made if it is not there.
        host: that it listens on. port: the first that is tried; 0 is any.
        browser: whether to open the page.

    Raises:
        UserError: the port is taken, or the folder cannot be a studio's.
    """
    listening = _listening(host, port)
    number = listening.getsockname()[1]
    studio = Studio(root)
    jobs = Jobs(studio.state / "jobs", warm=worker.PROGRAM)
    door = make(studio, jobs, host=host, port=number)
    link = f"http://{shown_host(host)}:{number}/?token={door.token}"
    if not is_loopback(host):
        _LOG.warning(
            "the page is not encrypted, and who sees its link can use it: "
            "a forwarded port is safer (ssh -L %d:localhost:%d)",
            number,
            number,
        )
    print(f"the studio for {studio.root}:\n    {link}\nctrl-c ends it; runs go on", flush=True)
    if browser:
        webbrowser.open(link.replace(door.token, door.once))
    config = uvicorn.Config(
        door, log_level="warning", access_log=False, server_header=False, lifespan="on"
    )
    config.timeout_graceful_shutdown = 1  # pages hold their events open
    uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    if not host.strip():  # which a socket takes for every address of this machine
        raise UserError("--host: empty, expected an address such as 127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # a browser may be there before the server
    except (OSError, UnicodeError, TypeError) as error:  # the last two of what is no name
        listening.close()
        raise UserError(
            f"--host {shown(host)} --port {port}: cannot be listened on: "
            f"{getattr(error, 'strerror', None) or 'no address'}; "
            "expected a free port, or 0 for any"
        ) from None
    return listening
