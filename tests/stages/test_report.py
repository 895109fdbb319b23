import base64
import dataclasses
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import write_json
from styledrop_jax.io.run_folder import Run
from styledrop_jax.spec import from_config, to_config
from styledrop_jax.stages import report
from styledrop_jax.stages.samples import Sample, read_samples, write_chosen, write_samples

EVIL = 'a <script>alert("x")</script> & cat'
REFERENCE = {
    "path": "my & house.png",
    "file": "references/000.png",
    "content": "a house",
    "caption": "a house <b>in ink</b>",
    "descriptor": "<i>in ink</i>",
    "sha256": "5" * 64,
}


class _Page(HTMLParser):
    """The tags of a page, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.links = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.images += tag == "img"
        for name, value in attrs:
            assert not name.startswith("on"), "no handlers of events"
            if name in ("src", "href", "srcset", "action", "data"):
                self.links.append(value)
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


def _stage(run, folder, contents, per_prompt, *, chosen=None, size=8, words="in ink", source=""):
    rng = np.random.default_rng(len(folder))
    samples = []
    for prompt, content in enumerate(contents):
        for image in range(per_prompt):
            file = f"samples/p{prompt:03d}_i{image:03d}.png"
            _png(run.path(folder, file), rng.random((size, size, 3)))
            score = 0.2 + 0.01 * image
            samples.append(
                Sample(
                    prompt=prompt,
                    image=image,
                    file=file,
                    content=content,
                    text=f"{content} {words}",
                    judged=content,
                    seed=1000 + image,
                    source=source,
                    scores={"clip_text": score, "clip_style": 0.5, "random": 0.1},
                    score=score,
                )
            )
    write_samples(run.path(folder, "scores.jsonl"), samples)
    if chosen is not None:
        kept = [sample for sample in samples if sample.image == chosen]
        write_chosen(run.path(folder, "selected.json"), kept)


def _spec(rounds=2):
    first = {"train": {"steps": 20}}
    return from_config({"base": "tiny", "rounds": rounds, "round_1": first})


def _run(folder, *, rounds=2, contents=(EVIL, "a dog"), size=8):
    """A run that has nothing but its references and rounds."""
    run = Run.open(folder, to_config(_spec(rounds)))
    _png(run.path("references/000.png"), np.ones((size, size, 3)))
    run.update_manifest({"references": [REFERENCE]})
    for number in range(1, rounds + 1):
        _stage(run, f"round_{number}", contents, 3, chosen=1, size=size)
    return run


def _full(folder, **options):
    """A run that has everything."""
    run = _run(folder, **options)
    _stage(run, "base", (EVIL, "a dog"), 1, words="<i>in ink</i>")
    _stage(run, "truth", (EVIL,), 1)
    counts = {"trainable": 4321, "frozen": 1234567, "training_seconds": 2.5}
    run.update_manifest(
        {
            "base": {"name": "tiny", "hash": "abc", "parameters": 1234567},
            "rounds": {"round_1": counts},
            "versions": {"jax": "1.2.3", "flax": "4.5.6"},
            "device": "cpu of mine",
        }
    )
    lines = []
    for number in range(1, run.config["rounds"] + 1):
        for step, loss in ((10, 0.5), (20, None), (30, 0.2)):
            row = {"stage": f"round_{number}", "step": step, "loss": loss, "accuracy": 0.5}
            lines.append(json.dumps(row) + "\n")
    run.path("metrics.jsonl").write_text("".join(lines))
    return run


def _text(run, command="styledrop personalize"):
    spec = from_config(run.config)
    return report.write_report(run, spec, command=command).read_text(encoding="utf-8")


def _headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def _between(text, start, end):
    return text[text.index(f"<h2>{start}") : text.index(f"<h2>{end}")]


def _sources(text):
    return re.findall(r'src="(.*?)"', text)


def test_a_full_run_has_every_section(tmp_path):
    text = _text(_full(tmp_path), "styledrop personalize --config.prompts '<a> & b'")
    assert _headings(text) == [
        "Reference",
        "Scores",
        "Before and after",
        "Round 1: all samples",
        "Round 2: all samples",
        "Training",
        "Settings",
        "Reproduce",
    ]
    provenance = ("1,234,567", "4,321", "jax 1.2.3, flax 4.5.6", "cpu of mine", "5" * 64)
    for shown in (*provenance, "my &amp; house.png", "styledrop · 2 rounds · on tiny"):
        assert shown in text, shown
    assert "styledrop personalize --config.prompts &#39;&lt;a&gt; &amp; b&#39;" in text


def test_the_page_is_well_formed_escaped_and_needs_no_network(tmp_path):
    text = _text(_full(tmp_path))
    page = _Page(text)
    assert not page.open
    assert not {"script", "i", "link", "iframe"} & set(page.tags)
    for link in page.links:
        assert link.startswith("data:image/webp;base64,")
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "<title>&lt;i&gt;in ink&lt;/i&gt;</title>" in text
    # 1 reference; before and after: base 2, two rounds of 2, truth 1; all samples: two rounds of 6
    assert page.images == 1 + (2 + 4 + 1) + 12


def test_whatever_a_text_of_the_run_folder_holds_it_is_shown_as_text(tmp_path):
    evil = "\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    run = _run(tmp_path, rounds=1, contents=(evil,))
    run.update_manifest(
        {
            "references": [dict.fromkeys(REFERENCE, evil) | {"file": "references/000.png"}],
            "base": {evil: evil},
            "rounds": {evil: {evil: evil}},
            "versions": {evil: evil},
            "device": evil,
        }
    )
    row = {"stage": f"round_1{evil}", "step": 1, evil: 0.5}
    run.path("metrics.jsonl").write_text(json.dumps(row) + "\n")
    text = _text(run, evil)
    page = _Page(text)
    assert not page.open and not {"x"} & set(page.links)
    assert "{{ 7 * 7 }}" in text and page.images == 1 + 1 + 3


def test_scores_are_means_with_intervals_for_base_rounds_and_truth(tmp_path):
    text = _text(_full(tmp_path))
    rows = re.findall(
        r'<tr><th scope="row">([^<]*)</th><td>(\d+)</td><td>([\d.]+) <small>\[([\d.]+), ', text
    )
    assert rows == [
        ("Base model, descriptor only", "2", "0.200", "0.200"),
        ("Round 1", "6", "0.210", "0.210"),
        ("Round 2", "6", "0.210", "0.210"),
        ("True image", "1", "0.200", "0.200"),
    ]


def test_the_base_model_was_given_the_words_of_the_style_if_its_prompts_have_them(tmp_path):
    run = _full(tmp_path)
    _stage(run, "base", (EVIL, "a dog"), 1, words="")
    text = _text(run)
    assert "Base model, same prompts" in text and "descriptor only" not in text


def test_chosen_samples_are_marked_and_shown_before_better_ones(tmp_path):
    run = _run(tmp_path, rounds=1)
    text = _text(run)
    assert text.count('<figure class="chosen">') == text.count("<mark>chosen</mark>") == 2
    assert "Round 1<br><small>one of 3</small>" in text
    chosen = re.findall(r'<figure class="chosen"><img.*?src="(.*?)"', text)
    assert _sources(_between(text, "Before and after", "Round 1")) == chosen

    run.path("round_1/selected.json").unlink()
    text = _text(run)
    assert "<mark>" not in text
    best = re.findall(r'src="([^"]*)"[^>]*><figcaption>0.220', text)
    assert len(best) == 2
    assert _sources(_between(text, "Before and after", "Round 1")) == best


def test_rounds_with_prompts_of_their_own_have_rows_of_their_own(tmp_path):
    run = _run(tmp_path, contents=("a cat", "a dog"))
    _stage(run, "round_2", ("a horse",), 3)
    table = _between(_text(run), "Before and after", "Round 1")
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    assert [name for name, _ in rows] == ["a cat", "a dog", "a horse"]
    for name, cells in rows:
        _, first, second = cells.split("<td>")
        assert bool(_sources(first)) == (name != "a horse")
        assert bool(_sources(second)) == (name == "a horse")


def test_what_was_generated_anew_stands_beside_its_source(tmp_path):
    run = _run(tmp_path, rounds=1)
    _stage(run, "round_1", (EVIL, "a dog"), 1, source="references/000.png")
    text = _text(run)
    table = _between(text, "Before and after", "Round 1")
    assert '<th scope="col">Source</th>' in table
    reference = _sources(_between(text, "Reference", "Scores"))[0]
    assert _sources(table)[::2] == [reference, reference] and len(_sources(table)) == 4


def test_one_round_without_base_truth_or_curves(tmp_path):
    text = _text(_run(tmp_path, rounds=1))
    assert _headings(text) == [
        "Reference",
        "Scores",
        "Before and after",
        "Round 1: all samples",
        "Settings",
        "Reproduce",
    ]
    assert "Base model" not in text and "True image" not in text and "<svg" not in text


def test_a_run_that_has_not_sampled_yet_and_deleted_samples(tmp_path):
    text = _text(Run.open(tmp_path / "new", to_config(_spec())))
    assert _headings(text) == ["Settings", "Reproduce"] and "<title>new</title>" in text
    run = _run(tmp_path / "thinned")
    run.path("round_1/samples/p000_i000.png").unlink()
    assert "5 samples, 2 chosen" in _text(run)


def test_settings_have_a_column_for_each_round_and_the_whole_run_apart(tmp_path):
    data = {
        "rounds": 3,
        "round_1": {"adapter": {"kind": "styledrop"}, "train": {"steps": 20}},
        "round_2": {"adapter": {"kind": "lora"}, "train": {"steps": 30}},
    }
    run = Run.open(tmp_path, to_config(from_config(data)))
    text = _text(run)
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text))
    assert re.findall(r"<td>(.*?)</td>", rows["train.steps"]) == ["20", "30", "30"]
    assert re.findall(r"<td>(.*?)</td>", rows["adapter.kind"]) == ["styledrop", "lora", "lora"]
    assert re.findall(r"<td>(.*?)</td>", rows["rounds"]) == ["3"]
    assert rows["truth"] == "<td><small>empty</small></td>"
    assert "round_" not in "".join(rows)


def test_no_link_out_of_the_run_folder_is_followed(tmp_path):
    secret = tmp_path / "secret"
    run = _full(tmp_path / "run")
    honest = _Page(_text(run)).images
    _png(secret / "image.png", np.zeros((8, 8, 3)))
    sample = run.path("round_1/samples/p000_i000.png")
    sample.unlink()
    os.symlink(secret / "image.png", sample)
    assert _Page(_text(run)).images == honest - 1

    run.update_manifest({"references": [REFERENCE | {"file": "../secret/image.png"}]})
    assert "Reference" not in _headings(_text(run))

    for name in ("round_1", "metrics.jsonl", "manifest.json"):
        os.rename(run.path(name), secret / name)
        os.symlink(secret / name, run.path(name))
    text = _text(run)
    assert _headings(text) == [
        "Scores",
        "Before and after",
        "Round 2: all samples",
        "Settings",
        "Reproduce",
    ]
    assert "cpu of mine" not in text


def test_a_run_folder_that_is_itself_a_link_is_read(tmp_path):
    _run(tmp_path / "there").close()
    os.symlink(tmp_path / "there", tmp_path / "here")
    assert _Page(_text(Run.load(tmp_path / "here"))).images == 1 + 4 + 12


def test_curves_have_a_line_for_each_round_and_skip_what_is_not_a_number(tmp_path):
    text = _text(_full(tmp_path))
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 2 and "loss" in charts[0] and "accuracy" in charts[1]
    for chart, count in zip(charts, (2, 3), strict=True):
        assert "round 1" in chart and "round 2" in chart and "training step" in chart
        assert "nan" not in chart
        lines = re.findall(r'points="(.*?)"', chart)
        assert len(lines) == 2
        for line in lines:
            points = line.split(" ")
            assert len(points) == count
            for point in points:
                x, y = point.split(",")
                assert 56 <= float(x) <= 508 and 30 <= float(y) <= 236


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 200), (0.37, 5.9), (3.0, 3.0), (0, 0), (-1e-5, 2e-5), (0, 1), (0, 7), (6.9e4, 7.1e4)],
)
def test_ticks_enclose_the_values_with_a_few_round_numbers(low, high):
    ticks = report._ticks(low, high)
    assert ticks[0] <= low + 1e-12 and high - 1e-12 <= ticks[-1] and ticks[0] < ticks[-1]
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(("size", "expected", "exact"), [(300, 256, False), (128, 128, True)])
def test_large_images_become_thumbnails_and_small_ones_stay_exact(tmp_path, size, expected, exact):
    path = tmp_path / "image.png"
    _png(path, np.random.default_rng(0).random((size, size, 3)))
    data, found = report.embedded(path)
    assert found == exact
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (expected, expected)
    if exact:
        assert np.array_equal(np.asarray(image), image_files.read_image(path))
    run = _run(tmp_path / "run", rounds=1, size=size)
    assert _text(run).count('<img class="pixels"') == (9 if exact else 0)


def test_a_failed_report_leaves_the_old_one(tmp_path):
    run = _run(tmp_path, rounds=1)
    old = _text(run)
    run.path("round_1/samples/p000_i000.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="p000_i000.png"):
        _text(run, "again")
    assert run.path("report.html").read_text(encoding="utf-8") == old
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", []),
        ("manifest.json", {"references": [{"caption": "a house"}]}),
        ("manifest.json", {"references": [REFERENCE | {"file": "a\0b"}]}),
        ("manifest.json", {"rounds": {"round_1": 3}}),
        ("metrics.jsonl", ["step"]),
        ("round_1/scores.jsonl", {"prompt": 0}),
        ("round_1/selected.json", {"selected": 3}),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content):
    run = _run(tmp_path, rounds=1)
    write_json(run.path(name), content)
    if name.endswith(".jsonl"):
        run.path(name).write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=re.escape(name)) as error:
        _text(run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_sample_without_a_score_of_clip_is_left_out_of_the_mean(tmp_path):
    run = _run(tmp_path, rounds=1)
    path = run.path("round_1/scores.jsonl")
    samples = [dataclasses.replace(sample, scores={}) for sample in read_samples(path)]
    write_samples(path, samples)
    assert "<td>6</td><td>–</td><td>–</td>" in _text(run)
