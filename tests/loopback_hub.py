"""A Hugging Face hub of one's own on loopback: what the client asks of it, down and up."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import pytest

COMMIT = "c" * 40
LFS = "application/vnd.git-lfs+json"


class LoopbackHub(http.server.ThreadingHTTPServer):
    """Serves {"owner/name": {path: content}} as the branch main, at the commit `COMMIT`.

    Attributes:
        models: what it has; what is pushed is added.
        others: {commit or tag: models} beside it.
        commit: of main, which may move on.
        served: the paths whose content was sent.
        ranges: the headers of those of which a part was asked for.
        cuts: {path: how often the connection is cut in the middle of it}
        broken: the paths whose content it fails to send.
        private: what was made so. token: that pushing takes.
    """

    daemon_threads = True

    def __init__(self, models: Mapping[str, Mapping[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = {name: dict(files) for name, files in models.items()}
        self.others: dict[str, Mapping[str, Mapping[str, bytes]]] = {}
        self.commit = COMMIT
        self.served: list[str] = []
        self.ranges: list[str] = []
        self.cuts: dict[str, int] = {}
        self.broken: set[str] = set()
        self.private: dict[str, bool] = {}
        self.token = "hf_of_a_test"
        self.blobs: dict[str, bytes] = {}
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
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)

    def at(self, revision: str) -> tuple[str, Mapping[str, Mapping[str, bytes]]]:
        """The commit of a revision, and the models as they were there."""
        if revision in ("main", self.commit):
            return self.commit, self.models
        if revision in self.others:
            return sha1(revision.encode()), self.others[revision]
        known = {sha1(name.encode()): name for name in self.others}
        return revision, self.others[known[revision]]

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()
        super().__exit__(*exception)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: LoopbackHub

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_POST(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._fail(401, "", "Invalid username or password.")
        if path == "api/repos/create":
            return self._created(json.loads(body))
        name = re.sub(r"^(api/models/)?([^/]+/[^/.]+)(\.git|/).*$", r"\2", path)
        if path.endswith("/preupload/main"):
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            return self._json({"files": files})
        if path.endswith("/objects/batch"):
            return self._json(self._wanted(json.loads(body)), kind=LFS)
        if path.endswith("/commit/main"):
            return self._committed(name, body)
        return self._fail(404, "RepoNotFound", "")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(body).hexdigest()] = body
        self._send(b"")

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_content: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._about(found[1], found[2] or "main")
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)/tree/(.+)", path):
            _, models = self.server.at(found[2])
            return self._json(_tree(models[found[1]]))
        if found := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit, models = self.server.at(found[2])
            content = models.get(found[1], {}).get(found[3])
            if content is not None:
                return self._file(found[3], content, commit, with_content=with_content)
        return self._fail(404, "RepoNotFound", "")

    def _about(self, name: str, revision: str) -> None:
        if name not in self.server.models:
            return self._fail(404, "RepoNotFound", "")
        try:
            commit, models = self.server.at(revision)
        except KeyError:
            return self._fail(404, "RevisionNotFound", "")
        siblings: list[dict[str, Any]] = []
        for path, content in models[name].items():
            siblings.append({"rfilename": path, "size": len(content), "blobId": sha1(content)})
        return self._json({"id": name, "sha": commit, "siblings": siblings})

    def _file(self, path: str, content: bytes, commit: str, *, with_content: bool) -> None:
        if with_content and path in self.server.broken:
            return self._fail(500, "", "")
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.server.ranges.append(wanted)
            whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", whole)
        self.send_header("ETag", f'"{sha1(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if not with_content:
            return
        self.server.served.append(path)
        if self.server.cuts.get(path):
            self.server.cuts[path] -= 1
            self.wfile.write(content[start : (start + len(content)) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            return
        self.wfile.write(content[start:])

    def _created(self, asked: Mapping[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if name in self.server.models:
            return self._fail(409, "", "You already created this model repo")
        self.server.models[name] = {}
        self.server.private[name] = asked.get("visibility") == "private"
        return self._json({"url": f"{self.server.endpoint}/{name}", "id": name})

    def _wanted(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        objects = []
        for one in asked["objects"]:
            upload = {"href": f"{self.server.endpoint}/upload/{one['oid']}", "header": {}}
            objects.append({**one, "actions": {"upload": upload}})
        return {"transfer": "basic", "objects": objects}

    def _committed(self, name: str, body: bytes) -> None:
        files = self.server.models[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{COMMIT}"
        return self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def _json(self, value: Any, kind: str = "application/json") -> None:
        self._send(json.dumps(value).encode(), kind)

    def _send(self, content: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for path, content in files.items():
        oid = sha1(content)
        entries.append({"type": "file", "path": path, "size": len(content), "oid": oid})
    return entries
