"""The page in a real browser: the system's Chromium, driven by Playwright; skipped where there is
none.

What a command makes is written by hand here; the flow on the shipped model is `test_flow.py`.
"""

import json
import shutil
import threading
import time

import pytest
import studios
import uvicorn
from playwright.sync_api import expect, sync_playwright

from styledrop_jax.io.files import read_json
from styledrop_jax.studio import api
from styledrop_jax.studio.folders import Studio
from styledrop_jax.studio.jobs import Jobs
from styledrop_jax.studio.server import _listening, make

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
expect.set_options(timeout=60_000)
SCRIPT = '<img src=x onerror="window.harmed=1">'


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Served:
    """A studio that a browser can reach, in a thread of this process."""

    def __init__(self, root, program=("true",), port=0):
        listening = _listening("127.0.0.1", port)
        self.port = listening.getsockname()[1]
        self.studio = Studio(root)
        self.jobs = Jobs(self.studio.state / "jobs", program)
        door = make(self.studio, self.jobs, host="127.0.0.1", port=self.port)
        self.link = f"http://127.0.0.1:{self.port}/?token={door.token}"
        config = uvicorn.Config(door, log_level="error", access_log=False, lifespan="on")
        config.timeout_graceful_shutdown = 1
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listening],))
        self.thread.start()

    def end(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve():
    open_ = []

    def served(*args, **kwargs):
        open_.append(Served(*args, **kwargs))
        return open_[-1]

    yield served
    for one in open_:
        if one.thread.is_alive():
            one.end()


@pytest.fixture
def visit(browser):
    """Opens a page at a studio's link; fails if anything went wrong on it."""
    contexts = []
    wrong = []

    def visited(served, route="#/", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.set_default_timeout(60_000)
        page.goto(served.link + route)
        return page

    visited.wrong = wrong
    yield visited
    for context in contexts:
        context.close()
    assert not [text for text in wrong if "ERR_CONNECTION" not in text and "INCOMPLETE" not in text]


def _marks(run):
    answer = read_json(run / "round_1" / "feedback" / "selected.json")
    return answer["selected"], answer.get("dropped", [])


def _until(what, timeout=60.0):
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_a_round_is_chosen_by_keys_alone(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    page = visit(served)
    page.get_by_role("link", name="Choose").click()
    page.wait_for_selector("button.cell")
    assert page.url.endswith("/#/run/mine/choose/1") and "token" not in page.url
    expect(page.get_by_role("button", name="Continue")).to_be_disabled()
    page.locator("button.cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("End")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("x")
    _until(lambda: _marks(run) == ([2, 6], [5]))
    page.keyboard.press("u")
    page.keyboard.press("Control+z")
    _until(lambda: _marks(run) == ([2], []))
    page.keyboard.press("Enter")
    closer = page.get_by_role("dialog")
    expect(closer.locator("img")).to_have_count(2)  # beside the reference
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    _until(lambda: _marks(run) == ([2, 4], []))
    focused = page.locator("button.cell:focus")
    expect(focused).to_have_attribute("aria-label", "a dog, image 4, kept")
    page.get_by_role("button", name="Continue with 2").click()
    page.wait_for_url("**/#/run/mine")
    words = served.jobs.all()[0]["words"]
    assert words == ["personalize", f"--config={run}", f"--workdir={run}"]


def test_clips_choice_filters_and_clicks(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "mine")
    page = visit(serve(tmp_path / "runs"), "#/run/mine/choose/1")
    page.get_by_role("button", name="CLIP").click()
    _until(lambda: _marks(run) == ([2, 4, 6], []))
    page.get_by_label("Show").select_option("keep")
    expect(page.locator("button.cell")).to_have_count(3)
    page.get_by_label("Show").select_option("all")
    page.get_by_label("Order").select_option("score")
    first = page.locator("button.cell").first
    expect(first).to_have_attribute("aria-label", "a red house, image 6, kept")
    first.click()
    _until(lambda: _marks(run) == ([2, 4], []))
    page.get_by_label("Search").fill("cat")
    expect(page.locator("button.cell")).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    _until(lambda: _marks(run) == ([2, 4, 6], []))
    page.get_by_role("button", name="Undo").click()  # CLIP's choice too
    _until(lambda: _marks(run) == ([], []))


def test_marks_that_come_after_their_filter_are_shown(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    one = visit(served, "#/run/mine/choose/1")
    other = visit(served, "#/run/mine/choose/1")
    other.get_by_label("Show").select_option("keep")
    expect(other.get_by_text("No image is like that.")).to_be_visible()
    one.locator("button.cell").nth(1).click()
    _until(lambda: _marks(run) == ([2], []))
    expect(other.locator("button.cell")).to_have_count(1)


def test_two_tabs_see_each_others_marks(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    one = visit(served, "#/run/mine/choose/1")
    other = visit(served, "#/run/mine/choose/1")
    one.locator("button.cell").nth(0).click()
    other.wait_for_selector('button.cell[data-number="1"][data-mark="keep"]')
    other.locator("button.cell").nth(1).click()
    one.wait_for_selector('button.cell[data-number="2"][data-mark="keep"]')
    assert _marks(run) == ([1, 2], [])


def test_a_studio_that_dies_is_found_again_by_an_open_page(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    page = visit(served, "#/run/mine/choose/1")
    page.locator("button.cell").nth(0).click()
    _until(lambda: _marks(run) == ([1], []))
    served.end()
    page.get_by_text("does not answer").wait_for()
    page.locator("button.cell").nth(1).click()  # cannot be saved
    serve(tmp_path / "runs", port=served.port)
    page.get_by_text("The studio is back").wait_for()
    page.wait_for_selector('button.cell[data-number="2"][data-mark=""]')
    page.locator("button.cell").nth(2).click()
    _until(lambda: _marks(run) == ([1, 3], []))


def test_the_page_is_found_under_the_other_name_of_this_machine(tmp_path, serve, visit):
    studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    page = visit(served, "#/")
    page.goto(f"http://localhost:{served.port}/#/run/mine")
    page.get_by_role("heading", name="mine").wait_for()
    assert page.url == f"http://127.0.0.1:{served.port}/#/run/mine"


def test_a_large_round_is_there_at_once_and_loads_what_is_seen(tmp_path, serve, visit):
    prompts = tuple(f"thing {number}" for number in range(30))
    studios.waiting(tmp_path / "runs" / "large", each=64, prompts=prompts, side=16)
    page = visit(serve(tmp_path / "runs"))
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/thumb" in request.url else 0)
    page.get_by_role("link", name="Choose").click()
    page.wait_for_selector("button.cell")
    expect(page.locator("button.cell")).to_have_count(1920)
    page.wait_for_timeout(300)
    assert len(asked) < 400
    page.locator("button.cell").first.focus()
    page.keyboard.press("End")
    last = page.locator("button.cell").last
    _until(lambda: last.locator("img").evaluate("image => image.naturalWidth") == 16)
    assert len(asked) < 900


def test_a_picture_becomes_a_run_in_two_steps(tmp_path, serve, visit, monkeypatch):
    def ask(question, *words):
        if question == "plan":
            return {"line": "400 training steps"}
        found = ["in ink style", "in chalk", *(["in blot quill style"] if "hard" in words else [])]
        return {"content": "a key", "guessed": True, "descriptors": found}

    monkeypatch.setattr(api, "ask", ask)
    served = serve(tmp_path / "runs")
    page = visit(served, "#/new")
    page.locator("input[type=file]").set_input_files(studios.png(tmp_path / "x.png", side=40))
    page.get_by_text("400 training steps").wait_for()
    expect(page.get_by_label("What it shows")).to_have_value("a key")
    drawn = page.get_by_label("How it is drawn")
    expect(drawn).to_have_value("in ink style")
    page.get_by_text("How long it takes here is known after the first one").wait_for()
    page.get_by_role("button", name="Search for a hard prompt").click()
    page.get_by_role("button", name="in blot quill style").click()
    expect(drawn).to_have_value("in blot quill style")
    page.get_by_role("button", name="in ink style").click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/#/")
    (job,) = served.jobs.all()
    run = tmp_path / "runs" / "a-key"
    assert job["run"] == "a-key"
    assert f"--config.reference.image={run}/given/images.jsonl" in job["words"]
    assert "--config.round_1.select.by=human" in job["words"]
    line = json.loads((run / "given" / "images.jsonl").read_text())
    assert line == {"image": "000.png", "content": "a key", "descriptor": "in ink style"}


def test_words_of_a_run_never_become_a_script(tmp_path, serve, visit):
    run = studios.waiting(tmp_path / "runs" / "evil", prompts=(SCRIPT, "a cat"))
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "method": SCRIPT, "base": SCRIPT}))
    given = read_json(run / "manifest.json")
    given["references"][0].update(content=SCRIPT, descriptor=SCRIPT)
    (run / "manifest.json").write_text(json.dumps(given))
    page = visit(serve(tmp_path / "runs"))
    page.get_by_text(SCRIPT).first.wait_for()
    for route in ("#/run/evil", "#/run/evil/choose/1", "#/run/evil/use", "#/compare", "#/queue"):
        page.evaluate("route => (location.hash = route)", route)
        page.wait_for_selector("h1")
        page.wait_for_timeout(200)
    assert page.evaluate("window.harmed") is None and not visit.wrong
    page.evaluate(
        "const own = document.createElement('script'); own.text = 'window.harmed = 1';"
        "document.body.append(own)"
    )
    assert page.evaluate("window.harmed") is None  # the policy, were anything to get in
    assert "Content Security Policy" in visit.wrong.pop()


CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.matches(":disabled, .skip")) continue;
    const [a, b] = [numbers(getComputedStyle(element).color), ground(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName}.${element.className}: ${ratio.toFixed(1)}`);
  }
  return poor;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, canvas")]
  .filter((e) => e.checkVisibility() && e.getAttribute("aria-hidden") !== "true")
  .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 90))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_can_be_read_and_named_at_every_width(tmp_path, serve, visit, scheme):
    studios.waiting(tmp_path / "runs" / "mine")
    page = visit(serve(tmp_path / "runs"), color_scheme=scheme)
    routes = ("#/", "#/new", "#/compare", "#/queue", "#/run/mine", "#/run/mine/use")
    for route in (*routes, "#/run/mine/choose/1"):
        page.evaluate("route => (location.hash = route)", route)
        page.wait_for_selector("main:not(:has(> p.empty:only-child)) h1")
        for width in (380, 2560):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{route} is {wide} wide at {width}"
        assert page.evaluate(CONTRAST) == [], route
        assert page.evaluate(NAMELESS) == [], route


def test_nothing_is_asked_of_another_host(tmp_path, serve, visit):
    studios.waiting(tmp_path / "runs" / "mine")
    served = serve(tmp_path / "runs")
    page = visit(served)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for route in ("#/new", "#/compare", "#/run/mine", "#/run/mine/use", "#/run/mine/choose/1"):
        page.evaluate("route => (location.hash = route)", route)
        page.wait_for_selector("h1")
    page.reload()
    page.wait_for_selector("button.cell")
    assert asked and all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in asked)
