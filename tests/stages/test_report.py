import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import Run, write_json
from styledrop_jax.stages import report

EVIL = 'a <script>alert("x")</script> & cat'
SETTINGS = {
    "adapter": {"rank": 4},
    "train": {"steps": 20},
    "select": {"scorers": {"clip_text": 1.0}, "by": "prompt"},
}


class _Page(HTMLParser):
    """The tags of a page, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links, self.images = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.images += tag == "img"
        self.links += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _png(path, image):
    """Without the waits for the disk that `write_png` makes, since there are hundreds of these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_files.to_uint8(image)).save(path)


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _stage(run, folder, contents, per_prompt, *, chosen=None, size=8):
    rng = np.random.default_rng(len(folder))
    rows = []
    for prompt, content in enumerate(contents):
        for image in range(per_prompt):
            file = f"samples/p{prompt:03d}_i{image:03d}.png"
            _png(run.path(folder, file), rng.random((size, size, 3)))
            scores = {"clip_text": 0.2 + 0.01 * image, "clip_style": 0.5, "random": 0.1}
            rows.append(
                {
                    "prompt": prompt,
                    "image": image,
                    "file": file,
                    "content": content,
                    "text": f"{content} in ink",
                }
                | {"seed": 1000 + image, "scores": scores, "score": scores["clip_text"]}
            )
    _lines(run.path(folder, "scores.jsonl"), rows)
    if chosen is not None:
        write_json(
            run.path(folder, "selected.json"),
            {"selected": [r for r in rows if r["image"] == chosen]},
        )


def _run(folder, *, rounds=2, contents=(EVIL, "a dog"), full=True, size=8):
    config = {
        "base": "tiny",
        "method": "styledrop",
        "seed": 0,
        "rounds": rounds,
        "round_1": SETTINGS,
    }
    run = Run.open(folder, config)
    _png(run.path("references/000.png"), np.ones((size, size, 3)))
    caption = "a house <b>in ink</b>"
    reference = {
        "path": "my & house.png",
        "file": "references/000.png",
        "content": "a house",
        "caption": caption,
    }
    run.update_manifest(
        {"references": [reference | {"descriptor": "<i>in ink</i>", "sha256": "5" * 64}]}
    )
    for n in range(1, rounds + 1):
        _stage(run, f"round_{n}", contents, 3, chosen=1, size=size)
    if full:
        _stage(run, "base", contents, 1, size=size)
        _stage(run, "truth", contents[:1], 1, size=size)
        run.update_manifest(
            {
                "base": {"name": "tiny", "hash": "abc", "parameters": 1234567},
                "rounds": {
                    "round_1": {"trainable": 4321, "frozen": 1234567, "training_seconds": 2.5}
                },
                "versions": {"jax": "1.2.3"},
                "device": "cpu of mine",
            }
        )
        steps = [(n, step) for n in range(1, rounds + 1) for step in (10, 20, 30)]
        losses = {10: 0.5, 20: None, 30: 0.2}
        _lines(
            run.path("metrics.jsonl"),
            [
                {"stage": f"round_{n}", "step": step, "loss": losses[step], "accuracy": 0.5}
                for n, step in steps
            ],
        )
    return run


def _text(run, command="styledrop personalize"):
    return report.write_report(run, command=command).read_text(encoding="utf-8")


def _headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_a_full_run_has_every_section(tmp_path):
    text = _text(_run(tmp_path), "styledrop personalize --config.prompts '<a> & b'")
    assert _headings(text) == [
        *(
            "Reference",
            "Scores",
            "Before and after",
            "Round 1: all drawings",
            "Round 2: all drawings",
        ),
        *("Training", "SampleSettings", "Reproduce"),
    ]
    for shown in (
        "1,234,567",
        "4,321",
        "jax 1.2.3",
        "cpu of mine",
        "my &amp; house.png",
        "5" * 64,
        "train.steps",
    ):
        assert shown in text, shown
    assert "styledrop personalize --config.prompts &#x27;&lt;a&gt; &amp; b&#x27;" in text


def test_the_page_is_well_formed_escaped_and_needs_no_network(tmp_path):
    text = _text(_run(tmp_path))
    page = _Page(text)
    assert not page.open
    assert not {"script", "i", "link", "iframe"} & set(page.tags)
    assert page.links and all(link.startswith("data:image/webp;base64,") for link in page.links)
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert "<title>&lt;i&gt;in ink&lt;/i&gt;</title>" in text
    # 1 reference; before and after: base 2, two rounds of 2, truth 1; all drawings: two rounds of 6
    assert page.images == 1 + (2 + 4 + 1) + 12


def test_scores_are_means_with_intervals_for_base_rounds_and_truth(tmp_path):
    text = _text(_run(tmp_path))
    rows = re.findall(
        r'<tr><th scope="row">([^<]*)</th><td>(\d+)</td><td>([\d.]+) <small>\[([\d.]+), ', text
    )
    assert rows == [
        ("Base model, descriptor only", "2", "0.200", "0.200"),
        ("Round 1", "6", "0.210", "0.210"),
        ("Round 2", "6", "0.210", "0.210"),
        ("True drawing", "1", "0.200", "0.200"),
    ]


def test_chosen_drawings_are_marked_and_shown_before_better_ones(tmp_path):
    run = _run(tmp_path, rounds=1)
    text = _text(run)
    assert text.count('<figure class="chosen">') == text.count("<mark>chosen</mark>") == 2
    assert "Round 1<br><small>one of 3</small>" in text and "descriptor only</th>" in text
    chosen = re.findall(r'<figure class="chosen">(<img.*?>)', text)
    comparison = text[text.index("Before and after") : text.index("Round 1: all drawings")]
    shown = re.findall(r'src="(.*?)"', comparison)
    assert all(re.search(r'src="(.*?)"', image)[1] in shown for image in chosen)

    run.path("round_1/selected.json").unlink()
    text = _text(run)
    assert "<mark>" not in text
    best = re.findall(r'src="([^"]*)"[^>]*><figcaption>0.220', text)
    comparison = text[text.index("Before and after") : text.index("Round 1: all drawings")]
    assert len(best) == 2 and all(image in comparison for image in best)


def test_one_round_without_base_truth_or_curves(tmp_path):
    text = _text(_run(tmp_path, rounds=1, full=False))
    assert _headings(text) == [
        *(
            "Reference",
            "Scores",
            "Before and after",
            "Round 1: all drawings",
            "SampleSettings",
            "Reproduce",
        )
    ]
    assert "Base model" not in text and "True drawing" not in text and "<svg" not in text


def test_a_run_that_has_not_drawn_yet_and_deleted_drawings(tmp_path):
    run = Run.open(
        tmp_path / "new", {"base": "tiny", "method": "styledrop", "rounds": 1, "round_1": SETTINGS}
    )
    assert _headings(_text(run)) == ["SampleSettings", "Reproduce"]
    run = _run(tmp_path / "thinned")
    run.path("round_1/samples/p000_i000.png").unlink()
    assert "5 drawings, 2 chosen" in _text(run)


def test_curves_have_a_line_for_each_round_and_skip_what_is_not_a_number(tmp_path):
    text = _text(_run(tmp_path))
    charts = re.findall(r"<svg.*?</svg>", text)
    assert ["loss" in charts[0], "accuracy" in charts[1], len(charts)] == [True, True, 2]
    for chart in charts:
        assert (
            "round 1" in chart
            and "round 2" in chart
            and "training step" in chart
            and "nan" not in chart
        )
        lines = re.findall(r'points="(.*?)"', chart)
        points = [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]
        assert [len(line) for line in points] == ([2, 2] if chart is charts[0] else [3, 3])
        assert all(0 <= x <= 520 and 0 <= y <= 280 for line in points for x, y in line)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 200), (0.37, 5.9), (3.0, 3.0), (0, 0), (-1e-5, 2e-5), (0, 1), (0, 7), (6.9e4, 7.1e4)],
)
def test_ticks_enclose_the_values_with_a_few_round_numbers(low, high):
    ticks = report._ticks(low, high)
    assert ticks[0] <= low + 1e-12 and high - 1e-12 <= ticks[-1] and ticks[0] < ticks[-1]
    assert 2 <= len(ticks) <= 8


def test_large_images_become_thumbnails_and_small_ones_stay_exact(tmp_path):
    for size, expected, pixels in ((300, 256, False), (128, 128, True)):
        _png(tmp_path / "image.png", np.random.default_rng(0).random((size, size, 3)))
        tag = report._image(tmp_path / "image.png", "x")
        assert ('class="pixels"' in tag) == pixels
        image = Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,(.*?)"', tag)[1])))
        assert image.size == (expected, expected)
        if pixels:
            assert np.array_equal(np.asarray(image), image_files.read_image(tmp_path / "image.png"))


def test_a_failed_report_leaves_the_old_one(tmp_path):
    run = _run(tmp_path, rounds=1)
    old = _text(run)
    run.path("round_1/samples/p000_i000.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="p000_i000.png"):
        report.write_report(run, command="again")
    assert run.path("report.html").read_text(encoding="utf-8") == old
    assert not list(tmp_path.glob(".*.tmp"))
