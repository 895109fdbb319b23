"""A page to choose, to watch and to use."""

from collections.abc import Sequence
from pathlib import Path

from styledrop_jax.commands.parser import Parser
from styledrop_jax.errors import UserError


def studio_parser() -> Parser:
    parser = Parser("studio", studio)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="where the runs are: runs/"
    )
    parser.add_argument(
        "--port", type=int, default=8765, help="that it listens on; 0: any (default 8765)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address that it listens on (default 127.0.0.1: this machine alone)",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    return parser


def studio(argv: Sequence[str]) -> None:
    """Open a page to start runs, choose between rounds, watch, and use what was learnt.

        styledrop studio
        styledrop studio experiments/ --port 9000 --no-browser

    Needs `pip install "styledrop_jax[studio]"`, and no network. The page runs the same commands in
    processes of their own, one at a time: closing it, or ending the studio, stops no run. The link
    holds a key: who has it can use the page. From another machine, forward the port:
    ssh -L 8765:localhost:8765 MACHINE, and open the link there.
    """
    flags = studio_parser().read(argv)
    if not 0 <= flags.port < 2**16:
        raise UserError(f"--port: found {flags.port}, expected 0 to {2**16 - 1}")
    try:
        from styledrop_jax.studio.server import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f'styledrop studio: {error.name} is not installed; expected the extra: pip install "'
            'styledrop_jax[studio]"'
        ) from None
    serve(flags.folder, host=flags.host, port=flags.port, browser=not flags.no_browser)
