"""The whole way on the shipped model, in a real browser: a picture, round 1, a choice by keys,
round 2 under a studio that is killed, comparing, a file to take away. Minutes.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny
from test_browser import CHROMIUM, browser  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
PICTURE = tiny.ROOT / "styledrop_jax" / "assets" / "references" / "house-papercut.png"


def _open(root, port=0):
    """Starts a studio; returns its process, link and port."""
    command = [sys.executable, "-m", "styledrop_jax", "studio", str(root), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    link = process.stdout.readline().strip()
    found = re.search(r":(\d+)/", link)
    assert found, link
    return process, link, int(found[1])


def _wait(page, what, timeout=600):
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, page.locator("main").inner_text()
        page.wait_for_timeout(200)


def test_from_a_picture_to_a_file(tmp_path, browser):  # noqa: F811
    process, link, port = _open(tmp_path / "runs")
    run = tmp_path / "runs" / "paper"
    try:
        page = browser.new_page()
        page.goto(f"{link}#/new")
        page.locator("input[type=file]").set_input_files(PICTURE)
        page.get_by_text("training steps of").wait_for(timeout=300_000)
        assert page.get_by_label("How it is drawn").input_value().startswith("in ")
        page.get_by_label("What it shows").fill("a house")
        page.get_by_label("Method").select_option("debug")
        page.get_by_label("Name").fill("paper")
        page.get_by_role("button", name="Start").click()
        choose = page.get_by_role("link", name="Choose")
        choose.wait_for(timeout=600_000)
        choose.click()
        page.locator("button.cell").first.focus()
        for key in ("Space", "ArrowRight", "ArrowRight", "Space", "End", "Space"):
            page.keyboard.press(key)
        page.get_by_role("button", name="Continue with 3").click()
        _wait(page, lambda: (run / "round_1" / "selected.json").exists())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        page.get_by_text("does not answer").wait_for()
        process, link, _ = _open(tmp_path / "runs", port)
        page.get_by_role("link", name="Report").wait_for(timeout=600_000)
        assert (run / "report.html").exists()
        page.get_by_role("link", name="Use").click()
        page.get_by_role("button", name="Download").click()
        page.get_by_role("button", name="Make the file").click()
        file = page.locator("ul.files a")
        file.wait_for(timeout=300_000)
        with page.expect_download() as download:
            file.click()
        adapter = (run / "export" / "styledrop" / "adapter.safetensors").read_bytes()
        assert download.value.path().read_bytes() == adapter
        page.get_by_role("link", name="Compare").click()
        page.locator(".compare img").first.wait_for()
        assert page.locator(".compare tbody tr").count() == 30
    finally:
        process.kill()
        process.wait()
