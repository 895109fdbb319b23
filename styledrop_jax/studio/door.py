"""Who may come in: checks before any route of the studio, and the headers of every answer."""

import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""No inline script, nothing from another host."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_READING = ("GET", "HEAD")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is seen by this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown_host(host: str) -> str:
    """`host` as links have it."""
    return f"[{host}]" if ":" in host else host


class Door:
    """Lets in who has the token or its cookie, from this very page.

    - The token comes in the first URL, which only the terminal knew; from then on a cookie that no
      script reads and no other site sends stands for it.
    - The Host is one that this server is known by: else a name that an attacker points to
      127.0.0.1 (DNS rebinding) would make his page ours.
    - This machine has several names and a cookie has one, so the page itself is sent from the
      others to the one that the link has.
    - What changes something carries our own Origin: another site cannot post.

    Args:
        app: behind the door.
        host: that the server is bound to.
        port: its own; it names the cookie, since cookies know no ports.
        session: what the cookie holds.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, session: str):
        self._app = app
        self._host = host
        self._cookie = f"studio_{port}"
        self._session = session
        self.token = secrets.token_urlsafe(32)
        self.once = secrets.token_urlsafe(32)
        """Opens the page one time: a browser's own command line is seen by all of this machine."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets
        headers = Headers(scope=scope)
        reason = self._refusal(scope, headers)
        if not reason and (elsewhere := self._elsewhere(scope, headers["host"])):
            answer = RedirectResponse(elsewhere, 307)
            await answer(scope, receive, self._guarded(send, fresh=False))
            return
        fresh = False
        if not reason and not self._knows(headers):
            fresh = self._has_token(scope)
            if not fresh:
                reason = "open the link that `styledrop studio` printed; it holds the key"
        if reason:
            await _refused(scope, reason)(scope, receive, self._guarded(send, fresh=False))
            return
        await self._app(scope, receive, self._guarded(send, fresh=fresh))

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        """Why a request is none of this page's; empty if it is one."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return "this server is not known by that name"
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return "requests of other sites are refused"
        if scope["method"] not in _READING and origin is None:
            return "what changes something needs the Origin header of this page"
        if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in (
            "none",
            "same-origin",
        ):
            return "requests of other sites are refused"
        return ""

    def _is_ours(self, host: str) -> bool:
        """A forwarded port may differ from ours, so the name alone counts. No attacker can make an
        address of numbers his own name.
        """
        try:
            found = urlsplit(f"//{host}")
            name, _ = found.hostname or "", found.port  # one out of range is none
        except ValueError:
            return False
        if set(host) & set("@/?#\\"):
            return False
        if name in (*_LOOPBACK_NAMES, self._host):
            return True
        if is_loopback(self._host):
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in (self._host.lower(), socket.gethostname().lower())

    def _elsewhere(self, scope: Scope, host: str) -> str:
        """Where the page is, if it is asked for under another name of this machine; else empty."""
        found = urlsplit(f"//{host}")
        if scope["path"] != "/" or not is_loopback(self._host) or found.hostname == self._host:
            return ""
        port = f":{found.port}" if found.port else ""
        query = scope["query_string"].decode("latin-1")
        return f"http://{shown_host(self._host)}{port}/" + (f"?{query}" if query else "")

    def _knows(self, headers: Headers) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self._cookie)
        return found is not None and _same(found.value, self._session)

    def _has_token(self, scope: Scope) -> bool:
        """Only the page itself is opened by the token."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self.once and _same(given, self.once):
            self.once = ""
            return True
        return _same(given, self.token)

    def _guarded(self, send: Send, *, fresh: bool) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if fresh:
                    headers.append(
                        "Set-Cookie",
                        f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/",
                    )
            await send(message)

        return guarded


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(), expected.encode())


def _refused(scope: Scope, reason: str) -> Response:
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": reason}, 403)
    return PlainTextResponse(f"styledrop studio: {reason}\n", 403)
