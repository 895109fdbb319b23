"""What the studio takes: its start, and the choosing page with a round of 1,920 images.

    python benchmarks/studio.py [--prompts 30] [--each 64] [--side 256]

Needs `pip install -e ".[dev]"` and a Chromium of the system. Seconds are the clock's; CPU seconds,
which other work on the machine changes little, are of the server's process and of the page's main
thread, which decodes and draws the pictures elsewhere.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from styledrop_jax.io.files import write_json, write_jsonl

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--each", type=int, default=64, help="images of each prompt")
    parser.add_argument("--side", type=int, default=256, help="of an image, pixels")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _waiting(Path(folder) / "run", flags.prompts, flags.each, flags.side)
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        with _studio(Path(folder)) as (server, link, began):
            _start(server, time.monotonic() - began)
            _page(server, link)


def _waiting(workdir: Path, prompts: int, each: int, side: int) -> None:
    """A run whose first round waits for a person, of pictures of noise."""
    config = {"base": "emoji128", "method": "styledrop", "rounds": 2, "round_1": {}}
    write_json(workdir / "config.json", config)
    write_json(workdir / "manifest.json", {"prompts": []})
    (workdir / "base").mkdir()
    (workdir / "base" / "scores.jsonl").touch()
    stage = workdir / "round_1"
    (stage / "samples").mkdir(parents=True)
    (stage / "adapter.safetensors").touch()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(prompts * each):
        prompt, image = divmod(number, each)
        coarse = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        file = f"samples/p{prompt:03d}_i{image:03d}.png"
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(stage / file)
        words = f"thing {prompt}"
        row = {"prompt": prompt, "image": image, "file": file, "content": words, "text": words}
        scores = {"clip_style": float(rng.random()), "clip_text": float(rng.random())}
        rows.append({**row, "judged": words, "seed": number, "scores": scores, "score": 0.0})
    write_jsonl(stage / "scores.jsonl", rows)
    write_json(stage / "feedback" / "selected.json", {"selected": []})


@contextlib.contextmanager
def _studio(root: Path) -> Iterator[tuple[int, str, float]]:
    """A studio: its process, its link, and when its command was given."""
    began = time.monotonic()
    command = [sys.executable, "-m", "styledrop_jax", "studio", str(root), "--port", "0"]
    process = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid, process.stdout.readline().strip(), began
    finally:
        process.kill()
        process.wait()


def _start(server: int, seconds: float) -> None:
    print(f"the link: after {seconds:.2f} s, {_cpu(server):.2f} CPU s, {_memory(server):.0f} MB")


def _page(server: int, link: str) -> None:
    browser = next(filter(None, map(shutil.which, _BROWSERS)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        opened = time.monotonic()
        page.goto(link)
        page.locator(".strip img").first.evaluate("image => image.decode()")
        now = time.monotonic()
        print(f"first picture: {now - opened:.2f} s after the link is opened")
        _choosing(server, page)
        chromium.close()


def _choosing(server: int, page: Page) -> None:
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url) if "/thumb" in request.url else None)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def main_thread() -> dict[str, Any]:
        return {
            item["name"]: item["value"]
            for item in session.send("Performance.getMetrics")["metrics"]
        }

    before, opened = main_thread(), time.monotonic()
    page.get_by_role("link", name="Choose").click()
    page.wait_for_selector("button.cell")
    cells = page.locator("button.cell")
    cells.first.locator("img").evaluate("image => image.decode()")
    seconds = time.monotonic() - opened
    page.wait_for_timeout(3000)
    after = main_thread()
    used = after["TaskDuration"] - before["TaskDuration"]
    heap = after["JSHeapUsedSize"] / 1e6
    print(
        f"{cells.count():,} images to choose from: first seen after {seconds:.2f} s, "
        f"{used:.2f} CPU s; {len(asked)} pictures loaded, JS heap {heap:.1f} MB"
    )
    cells.first.focus()
    before = main_thread()
    for _ in range(60):
        page.keyboard.press("ArrowDown")
    used = main_thread()["TaskDuration"] - before["TaskDuration"]
    print(f"a row down by key: {1000 * used / 60:.0f} CPU ms")
    before = main_thread()
    page.get_by_label("Order").select_option("clip_style")
    page.wait_for_timeout(2000)
    print(f"sorting anew: {main_thread()['TaskDuration'] - before['TaskDuration']:.2f} CPU s")
    end = "scrollBy(0, 700), scrollY + innerHeight >= document.body.scrollHeight - 2"
    while not page.evaluate(end):
        page.wait_for_timeout(60)
    page.wait_for_timeout(5000)
    heap = main_thread()["JSHeapUsedSize"] / 1e6
    print(
        f"all seen: {len(asked):,} pictures, JS heap {heap:.1f} MB; "
        f"server {_memory(server):.0f} MB, {_cpu(server):.1f} CPU s"
    )


def _memory(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else float("nan")


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
