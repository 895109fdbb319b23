"""The routes of the studio: thin over the modules beside it."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from styledrop_jax import runs
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.paths import stem_words
from styledrop_jax.studio import choosing, fields, lines, pictures, views, watch
from styledrop_jax.studio.ask import ask
from styledrop_jax.studio.folders import Missing, Studio
from styledrop_jax.studio.jobs import QUEUED, Jobs

PAGE = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_MOST_JSON = 2**20  # bytes
_LONGEST_NAME = 200  # letters of a file's name that may say what a picture shows
_REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
_FOREVER = "private, max-age=31536000, immutable"
_POLL = 1.0  # seconds between looks at the files
_SHARE = 10.0  # of the time that a look takes, before the next one: of thousands of files too
_LOG = logging.getLogger(__name__)


class TooLarge(UserError):
    """More bytes than are taken."""


class Api:
    """The answers to a page's requests."""

    def __init__(self, studio: Studio, jobs: Jobs):
        self.studio = studio
        self.jobs = jobs

    def routes(self) -> list[Route]:
        getting: dict[str, Callable[[Mapping[str, str]], Any]] = {
            "/api/runs": lambda query: views.listed(self.studio, self.jobs),
            "/api/run": lambda query: views.detail(self.studio, self.jobs, query["run"]),
            "/api/results": lambda query: views.results(self.studio, query["run"]),
            "/api/round": self._round,
            "/api/methods": lambda query: {"methods": lines.METHODS, "bases": lines.BASES},
            "/image": self._image,
            "/thumb": self._thumb,
            "/report": self._report,
            "/download": self._download,
        }
        posting: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "/api/mark": self._mark,
            "/api/start": self._start,
            "/api/describe": self._describe,
            "/api/plan": self._plan,
            "/api/new": self._new,
            "/api/continue": self._continue,
            "/api/extend": self._extend,
            "/api/use": self._use,
            "/api/stop": lambda body: {"state": self.jobs.stop(fields.text(body, "job")).state},
        }
        found = [
            Route("/", _page, methods=["GET"]),
            Route("/page/{file}", _page, methods=["GET"]),
            Route("/api/upload", self._upload, methods=["POST"]),
            Route("/api/events", self._events, methods=["GET"]),
        ]
        for path, function in getting.items():
            found.append(Route(path, _answering(function), methods=["GET"]))
        for path, function in posting.items():
            found.append(Route(path, _taking(function), methods=["POST"]))
        return found

    # ---------------------------------------------------------- pictures and files

    def _image(self, query: Mapping[str, str]) -> Response:
        path = self._file(query)
        if not pictures.is_png(path):
            path = pictures.thumbnail(self.studio, path, pictures.SIDES[-1])
        return _picture(path, query)

    def _thumb(self, query: Mapping[str, str]) -> Response:
        side = query.get("side", "")
        if not side.isdecimal():
            raise UserError(f"side: found {shown(side)}, expected a number of pixels")
        return _picture(pictures.thumbnail(self.studio, self._file(query), int(side)), query)

    def _file(self, query: Mapping[str, str]) -> Path:
        if "upload" in query:
            return pictures.upload(self.studio, query["upload"])
        return self.studio.file(query["run"], query["file"])

    def _report(self, query: Mapping[str, str]) -> Response:
        path = self.studio.file(query["run"], "report.html")
        headers = {"Content-Security-Policy": _REPORT}
        return FileResponse(path, media_type="text/html", headers=headers)

    def _download(self, query: Mapping[str, str]) -> Response:
        path = self.studio.file(query["run"], query["file"])
        kind = "application/octet-stream"
        return FileResponse(path, media_type=kind, filename=path.name)

    async def _upload(self, request: Request) -> Response:
        async def take() -> Any:
            data = await _body(request, pictures.MOST_BYTES)
            name = await run_in_threadpool(pictures.keep_upload, self.studio, data)
            file = request.query_params.get("name", "")[:_LONGEST_NAME]
            return {"upload": name, "words": stem_words(Path(file))}

        return await _safely(take())

    # ---------------------------------------------------------- choosing

    def _round(self, query: Mapping[str, str]) -> Any:
        number = query.get("round", "")
        if not number.isdecimal() or len(number) > 3:
            raise UserError(f"round: found {shown(number)}, expected a number")
        own = query.get("own") == "1"
        return choosing.view(self.studio, query["run"], int(number), own=own)

    def _mark(self, body: Mapping[str, Any]) -> Any:
        changes = body.get("changes")
        if not isinstance(changes, dict):
            raise UserError("changes: expected numbers of images with keep, drop or nothing")
        number = fields.whole(body, "round", 0, 1, 100)
        return choosing.mark(self.studio, fields.text(body, "run"), number, changes)

    def _start(self, body: Mapping[str, Any]) -> Any:
        number = fields.whole(body, "round", 0, 1, 100)
        return choosing.start(self.studio, fields.text(body, "run"), number)

    # ---------------------------------------------------------- commands

    def _describe(self, body: Mapping[str, Any]) -> Any:
        path = pictures.upload(self.studio, fields.text(body, "upload"))
        how = ["hard"] if fields.truth(body, "hard") else []
        return ask("describe", str(path), fields.text(body, "content", ""), *how)

    def _plan(self, body: Mapping[str, Any]) -> Any:
        words = lines.plan(self.studio, body)
        return {**ask("plan", *words), "took": views.took(self.studio, self.jobs, words[0])}

    def _new(self, body: Mapping[str, Any]) -> Any:
        name = fields.text(body, "name", "")
        if self.jobs.busy(name):
            raise UserError(f"name: {shown(name)} is taken; expected another one")
        return self._queued(*lines.new_run(self.studio, body))

    def _continue(self, body: Mapping[str, Any]) -> Any:
        name = fields.text(body, "run")
        self._free(name)
        return self._queued(name, lines.go_on(self.studio, name))

    def _extend(self, body: Mapping[str, Any]) -> Any:
        name = fields.text(body, "run")
        self._free(name)
        return self._queued(name, lines.extend(self.studio, name, body))

    def _use(self, body: Mapping[str, Any]) -> Any:
        name = fields.text(body, "run")
        found = [self._queued(name, words) for words in lines.use(self.studio, name, body)]
        return {"jobs": [job["job"] for job in found], "line": found[0]["line"]}

    def _free(self, name: str) -> None:
        """UserError if a command is at work on a run; one that has let go of it may still be
        ending.
        """
        job = self.jobs.busy(name)
        if job and (job.state == QUEUED or runs.is_locked(self.studio.run(name))):
            raise UserError(f"{shown(name)}: a command for this run is {job.state} already")

    def _queued(self, name: str, words: list[str]) -> dict[str, Any]:
        job = self.jobs.add(name, words)
        return {"run": name, "job": job.id, "line": job.line}

    # ---------------------------------------------------------- events

    async def _events(self, request: Request) -> Response:
        name = request.query_params.get("run", "")
        headers = {"X-Accel-Buffering": "no"}
        kind = "text/event-stream"
        return StreamingResponse(self._stream(name), media_type=kind, headers=headers)

    async def _stream(self, name: str) -> AsyncIterator[str]:
        """What changed, as it changes; a page that comes back is told all of it again."""
        sent: dict[str, str] = {}
        while True:
            began = time.monotonic()
            found = await run_in_threadpool(self._now, name)
            took = time.monotonic() - began
            quiet = True
            for event, value in found.items():
                data = json.dumps(value)
                if sent.get(event) != data:
                    sent[event] = data
                    quiet = False
                    yield f"event: {event}\ndata: {data}\n\n"
            if quiet:
                yield ": still here\n\n"  # tells a dead connection
            await asyncio.sleep(max(_POLL, _SHARE * took))

    def _now(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"jobs": self.jobs.all()[:50]}
        if not name:
            return {**found, "runs": views.listed(self.studio, self.jobs)}
        try:
            return {**found, **watch.snapshot(self.studio, self.jobs, name)}
        except (UserError, OSError) as error:
            return {**found, "log": [f"error: {error}"]}


# -------------------------------------------------------------- requests and answers


def _answering(function: Callable[[Mapping[str, str]], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _safely(run_in_threadpool(function, request.query_params))

    return endpoint


def _taking(function: Callable[[Mapping[str, Any]], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        async def take() -> Any:
            try:
                body = json.loads(await _body(request, _MOST_JSON))
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                raise UserError("expected a JSON object")
            return await run_in_threadpool(function, body)

        return await _safely(take())

    return endpoint


async def _body(request: Request, most: int) -> bytes:
    """The bytes of a request; TooLarge beyond `most`, before they are in memory."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise TooLarge(f"found more than {most:,} bytes, expected at most so many")
    return bytes(data)


async def _safely(work: Any) -> Response:
    """An answer, or one line of what was wrong with the request."""
    try:
        found = await work
    except Missing as error:
        return JSONResponse({"error": str(error)}, 404)
    except TooLarge as error:
        return JSONResponse({"error": str(error)}, 413)
    except UserError as error:
        return JSONResponse({"error": str(error)}, 400)
    except KeyError as error:
        return JSONResponse({"error": f"{error.args[0]}: missing"}, 400)
    except ClientDisconnect:
        return JSONResponse({"error": "the request was broken off"}, 400)
    except Exception:
        _LOG.exception("a request failed")
        return JSONResponse({"error": "the studio failed; see its terminal"}, 500)
    return found if isinstance(found, Response) else JSONResponse(found)


def _picture(path: Path, query: Mapping[str, str]) -> Response:
    """A picture; one whose address has its version is never asked for again."""
    kind = "image/webp" if path.suffix == ".webp" else "image/png"
    headers = {"Cache-Control": _FOREVER if query.get("v") else "private, no-cache"}
    return FileResponse(path, media_type=kind, headers=headers)


async def _page(request: Request) -> Response:
    name = request.path_params.get("file", "index.html")
    path = PAGE / name
    if path.parent != PAGE or path.suffix not in _KINDS or not path.is_file():
        return JSONResponse({"error": "no such page"}, 404)
    return FileResponse(path, media_type=_KINDS[path.suffix])
