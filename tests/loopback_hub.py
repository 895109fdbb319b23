"""A Hugging Face hub of one's own on loopback, as far as downloads need it."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import pytest

COMMIT = "c" * 40


class LoopbackHub(http.server.ThreadingHTTPServer):
    """Serves {"owner/name": {path: content}}; `served` are the paths whose content was sent."""

    daemon_threads = True

    def __init__(self, models: Mapping[str, Mapping[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.served: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes it the hub that the client asks."""
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()
        super().__exit__(*exception)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: LoopbackHub

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_content: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
        for name, files in self.server.models.items():
            if path == f"api/models/{name}/revision/main":
                return self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            if path.startswith(f"api/models/{name}/tree/"):
                return self._send(json.dumps(_tree(files)).encode())
            file = path.removeprefix(f"{name}/resolve/").partition("/")[2]
            if path.startswith(f"{name}/resolve/") and file in files:
                if with_content:
                    self.server.served.append(file)
                return self._send(files[file], with_content=with_content)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, *, with_content: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_content:
            self.wfile.write(content)


def _tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for path, content in files.items():
        oid = hashlib.sha1(content).hexdigest()
        entries.append({"type": "file", "path": path, "size": len(content), "oid": oid})
    return entries
