"""Attacks on the door of the studio, and on what is behind it, from a page of somebody else."""

import io
import json
import struct
import zlib
from urllib.parse import urlencode

import pytest
import studios
from PIL import Image
from starlette.testclient import TestClient

from styledrop_jax.errors import UserError
from styledrop_jax.studio import door, pictures


@pytest.fixture
def opened(tmp_path):
    studios.waiting(tmp_path / "runs" / "mine")
    with studios.Open(tmp_path / "runs") as opened:
        yield opened


def _stranger(opened, **headers):
    """A client without the cookie."""
    return TestClient(opened.door, base_url=studios.HERE, headers=headers)


# -------------------------------------------------------------- who may come in


@pytest.mark.parametrize(
    "path", ["/", "/api/runs", "/api/events", "/page/app.js", "/thumb?run=mine&file=x&side=160"]
)
def test_without_the_key_nothing_is_shown(opened, path):
    answer = _stranger(opened).get(path)
    assert answer.status_code == 403
    assert "mine" not in answer.text and "set-cookie" not in answer.headers


def test_a_wrong_key_opens_nothing(opened):
    for token in ("", "x", opened.door.token[:-1], opened.door.token + "x", "ü"):
        assert _stranger(opened).get("/", params={"token": token}).status_code == 403


def test_the_key_opens_the_page_alone_and_the_cookie_all(opened):
    stranger = _stranger(opened)
    token = {"token": opened.door.token}
    assert stranger.get("/api/runs", params=token).status_code == 403
    answer = stranger.get("/", params=token)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert opened.door.token not in cookie
    assert stranger.get("/api/runs").status_code == 200


def test_the_secret_of_the_cookie_is_the_users_alone(opened):
    path = opened.studio.state / "session"
    assert path.stat().st_mode & 0o077 == 0
    assert opened.studio.session() == path.read_text()
    path.chmod(0o644)
    with pytest.raises(UserError, match="others may read"):
        opened.studio.session()


def test_the_key_that_a_browser_is_started_with_opens_once(opened):
    token = {"token": opened.door.once}
    assert _stranger(opened).get("/", params=token).status_code == 200
    assert _stranger(opened).get("/", params=token).status_code == 403
    assert _stranger(opened).get("/", params={"token": ""}).status_code == 403


def test_a_forged_cookie_opens_nothing(opened):
    for value in ("", "x", opened.door.token, '"', "a=b; c"):
        answer = _stranger(opened, Cookie=f"studio_{studios.PORT}={value}").get("/api/runs")
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:8765",
        "localhost.evil.example",
        "",
        "0x7f.1",
        "[::1",
        "x@localhost",
    ],
)
def test_a_name_that_an_attacker_points_here_is_refused(opened, host):
    """DNS rebinding: his page is of one origin with ours, but for the name."""
    assert opened.client.get("/api/runs", headers={"Host": host}).status_code == 403
    token = {"token": opened.door.token}
    assert opened.client.get("/", params=token, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9000", "[::1]:8765", "127.0.0.1"])
def test_a_forwarded_port_is_served(opened, host):
    answer = opened.client.get("/api/runs", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["localhost:9000", "[::1]:8765", "localhost"])
def test_the_page_has_one_host_so_that_one_cookie_opens_it(opened, host):
    """A cookie of 127.0.0.1 is none of localhost's."""
    stranger = _stranger(opened, Host=host)
    port = host.removeprefix("[::1]").partition(":")[2]
    here = f"http://127.0.0.1:{port}/" if port else "http://127.0.0.1/"
    for query in ("", f"?token={opened.door.once}"):
        answer = stranger.get(f"/{query}", follow_redirects=False)
        assert answer.status_code == 307 and answer.headers["location"] == f"{here}{query}"
        assert "set-cookie" not in answer.headers
    assert _stranger(opened).get("/", params={"token": opened.door.once}).status_code == 200
    assert stranger.get("/api/runs").status_code == 403


def test_a_port_that_is_none_is_refused(opened):
    assert opened.client.get("/", headers={"Host": "localhost:99999"}).status_code == 403


def test_other_addresses_are_for_servers_that_are_told_so(opened):
    private = {"Host": "192.168.1.7:8765", "Origin": "http://192.168.1.7:8765"}
    assert opened.client.get("/api/runs", headers=private).status_code == 403
    assert (
        door.is_loopback("127.0.0.1") and door.is_loopback("::1") and door.is_loopback("localhost")
    )
    assert not door.is_loopback("0.0.0.0")
    wide = door.Door(opened.door._app, host="0.0.0.0", port=studios.PORT, session="x")
    assert wide._is_ours("192.168.1.7:8765") and not wide._is_ours("evil.example:8765")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:9999"]
)
def test_another_site_cannot_post(opened, origin):
    body = {"run": "mine", "round": 1, "changes": {"1": "keep"}}
    answer = opened.client.post("/api/mark", json=body, headers={"Origin": origin})
    assert answer.status_code == 403
    assert opened.get("/api/round", run="mine", round=1).json()["marks"]["kept"] == []


def test_a_post_without_an_origin_is_refused(opened):
    answer = _stranger(opened, Cookie=_cookie(opened)).post("/api/mark", json={})
    assert answer.status_code == 403 and "Origin" in answer.json()["error"]


def test_a_page_of_another_port_cannot_look(opened):
    for site in ("same-site", "cross-site"):
        headers = {"Sec-Fetch-Site": site}
        assert opened.client.get("/api/runs", headers=headers).status_code == 403
        assert opened.client.get("/image?run=mine&file=x", headers=headers).status_code == 403


def _cookie(opened):
    return "; ".join(f"{name}={value}" for name, value in opened.client.cookies.items())


# -------------------------------------------------------------- paths

OUTSIDE = [
    "../secret",
    "mine/../../secret",
    "/etc",
    "",
    ".",
    "..",
    ".hidden",
    "mine\0",
    "mine/.lock",
    "..\\secret",
    "\ud800",
    "link",
    "linked/mine",
    "x" * 5000,
]


def _query(**query):
    return urlencode(query, errors="surrogatepass")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_run_outside_the_folder_is_read(tmp_path, opened, name):
    studios.waiting(tmp_path / "secret")
    studios.waiting(tmp_path / "elsewhere" / "mine")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    for path in ("/api/run", "/api/results", "/report"):
        answer = opened.client.get(f"{path}?{_query(run=name)}")
        assert answer.status_code in (400, 404), answer.text
    body = json.dumps({"run": name, "round": 1, "changes": {"1": "keep"}})
    assert opened.client.post("/api/mark", content=body).status_code in (400, 404)
    answer = json.loads((tmp_path / "secret/round_1/feedback/selected.json").read_text())
    assert answer["selected"] == []


@pytest.mark.parametrize("file", [*OUTSIDE, "../other/config.json", "evil.png", "folder/000.png"])
def test_no_file_outside_a_run_is_read(tmp_path, opened, file):
    secret = studios.png(tmp_path / "secret" / "000.png")
    run = tmp_path / "runs" / "mine"
    (run / "evil.png").symlink_to(secret)
    (run / "folder").symlink_to(secret.parent)
    studios.waiting(tmp_path / "runs" / "other")
    for path in ("/image", "/thumb", "/download"):
        answer = opened.client.get(f"{path}?{_query(run='mine', file=file, side=160)}")
        assert answer.status_code in (400, 404), answer.text


def test_a_choice_is_not_written_through_a_link(tmp_path, opened):
    run = tmp_path / "runs" / "mine"
    outside = tmp_path / "outside"
    (run / "round_1" / "feedback").rename(outside)
    (run / "round_1" / "feedback").symlink_to(outside)
    before = (outside / "selected.json").read_bytes()
    answer = opened.post("/api/mark", run="mine", round=1, changes={"1": "keep"})
    assert answer.status_code == 400
    assert (outside / "selected.json").read_bytes() == before
    assert len(list(outside.iterdir())) == 1


@pytest.mark.parametrize("file", ["../api.py", "%2e%2e%2fapi.py", "..%5capi.py", "api.py", "x.js"])
def test_the_page_serves_its_own_files_alone(opened, file):
    assert opened.client.get(f"/page/{file}").status_code in (403, 404)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", ".x", "-x", "x" * 61, "mine", "--workdir=/x", "given/"],
)
def test_a_new_run_has_a_plain_name(tmp_path, opened, name):
    upload = opened.upload(studios.png(tmp_path / "a.png").read_bytes()).json()["upload"]
    answer = opened.post(
        "/api/new",
        name=name,
        method="debug",
        base="emoji128",
        descriptor="in ink style",
        pictures=[{"upload": upload, "content": "a key"}],
    )
    assert answer.status_code == 400 and answer.json()["error"].startswith("name")
    assert not opened.jobs.all()


# -------------------------------------------------------------- uploads


def _bomb(width, height):
    """A PNG that says it is large, of a few bytes."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _animation():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<svg onload=alert(1)>", "not an image"),
        (EPS, "not an image"),
        (_bomb(60_000, 60_000), "million"),
        (_bomb(4, 4), "damaged"),
        (_animation(), "animated"),
    ],
)
def test_what_is_no_picture_is_not_kept(opened, data, words):
    answer = opened.upload(data)
    assert answer.status_code == 400 and words in answer.json()["error"]
    kept = opened.studio.state / "uploads"
    assert not kept.exists() or not list(kept.iterdir())


def test_an_upload_is_cut_off_at_its_limit(opened, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    assert opened.upload(b"x" * 1001).status_code == 413
    assert opened.client.post("/api/mark", content=b" " * (2**20 + 1)).status_code == 413


def test_an_upload_is_kept_as_pixels_alone(opened):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, format="JPEG", comment=b"<script>")
    answer = opened.client.post("/api/upload?name=red_house-2.jpg", content=buffer.getvalue())
    assert answer.json()["words"] == "red house"
    name = answer.json()["upload"]
    kept = pictures.upload(opened.studio, name).read_bytes()
    assert kept.startswith(b"\x89PNG") and b"script" not in kept
    assert opened.get("/image", upload=name).headers["content-type"] == "image/png"
    for other in ("../" + name, name[:-1], "x" * 32, name.upper() + "/"):
        assert opened.get("/image", upload=other).status_code == 404


# -------------------------------------------------------------- what the browser is told

SCRIPT = '<img src=x onerror="alert(1)">'


def test_no_answer_may_run_a_script_that_is_not_ours(opened):
    for path in ("/", "/api/runs", "/page/app.js", "/nowhere", "/api/run?run=nowhere"):
        headers = opened.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    page = opened.client.get("/").text
    assert '<script type="module" src=' in page and "<script>" not in page and "http" not in page


def test_the_page_never_takes_text_for_html():
    from styledrop_jax.studio.api import PAGE

    for path in PAGE.glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, path.name
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path.name
        assert "https://" not in text, path.name


def test_words_of_a_run_come_as_data(tmp_path, opened):
    run = studios.waiting(tmp_path / "runs" / "evil", prompts=(SCRIPT,))
    answer = opened.get("/api/round", run="evil", round=1)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["images"][0]["prompt"] == SCRIPT
    (run / "report.html").write_text(f"<script>alert(1)</script>{SCRIPT}")
    report = opened.get("/report", run="evil")
    policy = report.headers["content-security-policy"]
    assert policy.endswith("sandbox") and "script-src" not in policy
    (run / "evil.html").write_text("<script>alert(1)</script>")
    download = opened.get("/download", run="evil", file="evil.html")
    assert download.headers["content-type"] == "application/octet-stream"
    assert download.headers["content-disposition"].startswith("attachment")
    assert opened.get("/image", run="evil", file="evil.html").status_code == 400


def test_a_request_of_the_wrong_kind_is_one_line(opened):
    for content in (
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"run": 5}',
        b'{"run": "mine", "round": 1e9}',
    ):
        answer = opened.client.post("/api/mark", content=content)
        assert answer.status_code == 400 and len(answer.json()["error"]) < 300
    for path in ("/api/round?run=mine&round=x", "/api/round?run=mine", "/thumb?run=mine&side=9"):
        assert opened.client.get(path).status_code == 400
