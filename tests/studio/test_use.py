"""From what a page asks for to commands, and back from what they leave to what a page is told."""

import shlex
import shutil
import socket
import subprocess
import sys

import pytest
import studios
import tiny

from styledrop_jax.io.files import read_json, write_json, write_jsonl
from styledrop_jax.studio import views, watch
from styledrop_jax.studio.folders import Studio


@pytest.fixture
def opened(tmp_path):
    studios.waiting(tmp_path / "runs" / "mine")
    with studios.Open(tmp_path / "runs") as opened:
        yield opened


def _words(opened):
    """Of all jobs, the first one first."""
    return [job["words"] for job in reversed(opened.jobs.all())]


def _upload(opened, tmp_path, seed=0):
    return opened.upload(studios.png(tmp_path / f"{seed}.png", seed).read_bytes()).json()["upload"]


# -------------------------------------------------------------- commands


def test_each_pair_of_strengths_is_a_command_on_the_same_seeds(tmp_path, opened):
    body = {"prompts": ["a cat", "--out=/etc"], "num": 2, "seed": 7, "lambda_a": [0, 2.5]}
    found = opened.post("/api/use", run="mine", command="sample", lambda_b=[1], round=1, **body)
    assert found.status_code == 200
    run = f"--run={tmp_path / 'runs' / 'mine'}"
    shared = [run, "--round=1", "--prompt=a cat", "--prompt=--out=/etc", "--num=2", "--seed=7"]
    assert _words(opened) == [
        ["sample", *shared, "--lambda-a=0", "--lambda-b=1"],
        ["sample", *shared, "--lambda-a=2.5", "--lambda-b=1"],
    ]
    assert shlex.split(found.json()["line"])[1:] == _words(opened)[0]


def test_prompts_are_read_as_the_page_asks_and_so_again_by_the_line(tmp_path, opened):
    body = {"prompts": ["a (red:1.3) cat"], "prompt_weights": True, "long_prompts": False}
    assert opened.post("/api/use", run="mine", command="sample", **body).status_code == 200
    (words,) = _words(opened)
    assert words[-1] == "--prompt-weights"
    run = tmp_path / "runs" / "mine"
    row = {"file": "a.png", "prompt": "a (red:1.3) cat", "seed": 0, "prompt_weights": True}
    assert "--prompt-weights" in shlex.split(views.line(run, "sample", row))


def test_an_edit_keeps_its_picture_and_mask_in_the_run(tmp_path, opened):
    image, mask = (_upload(opened, tmp_path, seed) for seed in (1, 2))
    body = {"command": "edit", "prompts": ["a tree"], "image": image, "mask": mask}
    assert opened.post("/api/use", run="mine", **body).status_code == 200
    (words,) = _words(opened)
    given = tmp_path / "runs" / "mine" / "given"
    assert f"--image={given}/image-{image}.png" in words
    assert f"--mask={given}/mask-{mask}.png" in words
    assert len(list(given.iterdir())) == 2


def test_a_subject_is_mixed_and_a_format_exported(tmp_path, opened):
    studios.waiting(tmp_path / "runs" / "dogs" / "rex")
    body = {"command": "mix", "subject": "dogs/rex", "gamma": 0.4, "prompts": ["a dog"]}
    assert opened.post("/api/use", run="mine", **body).status_code == 200
    assert opened.post("/api/use", run="mine", command="export", format="kohya").status_code == 200
    mix, export = _words(opened)
    runs = tmp_path / "runs"
    assert mix[:4] == ["mix", f"--style={runs}/mine", f"--subject={runs}/dogs/rex", "--gamma=0.4"]
    assert export == ["export", f"--run={runs}/mine", "--format=kohya"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"command": "pretrain"}, "command"),
        ({"command": "sample", "prompts": []}, "prompts"),
        ({"command": "sample", "prompts": [" "]}, "prompt"),
        ({"command": "sample", "prompts": ["a"], "num": 1e9}, "num"),
        ({"command": "sample", "prompts": ["a"], "num": True}, "num"),
        ({"command": "sample", "prompts": ["a"], "lambda_a": [float("1e9")]}, "lambda_a"),
        ({"command": "sample", "prompts": ["a"], "lambda_a": [1] * 4, "lambda_b": [1] * 4}, "lam"),
        ({"command": "sample", "prompts": ["a\0b"]}, "prompt"),
        ({"command": "sample", "prompts": ["a"], "long_prompts": 1}, "long_prompts"),
        ({"command": "mix", "prompts": ["a"], "subject": "../mine"}, "no run"),
        ({"command": "edit", "prompts": ["a"], "image": "../../x"}, "no such upload"),
        ({"command": "export", "format": "pickle"}, "format"),
    ],
)
def test_what_no_command_takes_is_refused_by_name(opened, body, field):
    answer = opened.post("/api/use", run="mine", **body)
    assert answer.status_code in (400, 404) and answer.json()["error"].startswith(field)
    assert not opened.jobs.all()


def test_a_run_goes_on_from_its_own_config_once(tmp_path):
    studios.waiting(tmp_path / "runs" / "mine")
    sleeps = (sys.executable, "-c", "import time; time.sleep(60)")
    with studios.Open(tmp_path / "runs", program=sleeps) as opened:
        opened.jobs.add("other", ["x"])  # has the machine
        assert opened.post("/api/continue", run="mine").status_code == 200
        answer = opened.post("/api/continue", run="mine")
        assert answer.status_code == 400 and "already" in answer.json()["error"]
        run = tmp_path / "runs" / "mine"
        assert _words(opened)[1] == ["personalize", f"--config={run}", f"--workdir={run}"]
        (card,) = opened.get("/api/runs").json()
        assert card["state"] == "queued" and not card["waits"]
        for job in opened.jobs.all():
            assert opened.post("/api/stop", job=job["id"]).status_code == 200


def test_a_subject_needs_its_words_and_a_style_its_descriptor(tmp_path, opened):
    upload = _upload(opened, tmp_path)
    body = {"name": "new", "base": "emoji128", "pictures": [{"upload": upload, "content": ""}]}
    for method, field in (("styledrop", "descriptor"), ("dreambooth", "identifier")):
        answer = opened.post("/api/new", method=method, **body)
        assert answer.status_code == 400 and answer.json()["error"].startswith(field)
    words = {"identifier": "sks", "noun": "dog"}
    assert opened.post("/api/new", method="dreambooth", **words, **body).status_code == 200
    assert "--config.words.noun=dog" in _words(opened)[0]
    assert opened.get("/api/runs").json()[0]["name"] == "new"


def test_a_person_chooses_between_two_rounds(tmp_path, opened):
    pictures = [{"upload": _upload(opened, tmp_path), "content": "a key"}]
    body = {"base": "emoji128-muse", "descriptor": "in ink style", "pictures": pictures}
    for name, chooses in (("mine", True), ("its", False)):
        answer = opened.post(
            "/api/new", name=f"of-{name}", method="styledrop", choose=chooses, **body
        )
        assert answer.status_code == 200
        words = next(words for words in _words(opened) if f"of-{name}" in words[-1] + words[1])
        own = {"--config.rounds=2", "--config.round_1.select.by=human"}
        assert own & set(words) == (own if chooses else set()), "else as many as the config has"


def test_words_that_are_found_need_none_that_are_given(tmp_path, opened):
    pictures = [{"upload": _upload(opened, tmp_path), "content": "a key"}]
    body = {"name": "found", "base": "emoji128", "method": "hard_prompt", "pictures": pictures}
    assert opened.post("/api/new", **body).status_code == 200
    assert "--config=hard_prompt:emoji128" in _words(opened)[0]


# -------------------------------------------------------------- what a page is told


def test_what_the_last_run_of_a_config_took_is_known(tmp_path, opened):
    config = "--config=styledrop:emoji128"
    assert views.took(opened.studio, opened.jobs, config) is None
    job = opened.jobs.add("mine", ["personalize", config])
    again = opened.jobs.add("mine", ["personalize", "--config=mine"])  # after a choice

    def over():
        return all(one["state"] in ("done", "failed") for one in opened.jobs.all())

    assert opened.jobs.wait(over, 20)
    assert views.took(opened.studio, opened.jobs, config) is None, "it is not finished"
    (tmp_path / "runs" / "mine" / "report.html").touch()
    seconds = sum(one["ended"] - one["began"] for one in opened.jobs.all())
    found = views.took(opened.studio, opened.jobs, config)
    assert found == {"run": "mine", "seconds": pytest.approx(seconds)}
    assert job.id != again.id
    assert views.took(opened.studio, opened.jobs, "--config=lora:emoji128") is None


def test_the_line_under_an_image_makes_it_again(tmp_path):
    """To the last bit, from another folder, with other words of the style too."""
    root = tmp_path / "runs"
    run = root / "mine"
    root.mkdir()
    shutil.copytree(tiny.finished(), run)
    flags = ["--num", "2", "--seed", "3", "--lambda-a", "0.37", "--descriptor", "in a cat style"]
    assert tiny.styledrop("sample", "--run", run, "--prompt", "a red house", *flags) == 0
    studio = Studio(root)
    newest, first = views.results(studio, "mine")
    studio.close()
    assert first["seed"] == 3 and newest["lambda_a"] == 0.37
    _, *words = shlex.split(newest["line"])
    assert tiny.styledrop(*words, "--out", tmp_path / "again") == 0
    (again,) = (tmp_path / "again").glob("0000_*.png")
    assert again.read_bytes() == (run / newest["file"]).read_bytes()


def test_of_the_same_image_made_twice_one_is_shown(tmp_path, opened):
    drawn = tmp_path / "runs" / "mine" / "drawn"
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        studios.png(drawn / f"{number}.png")
        rows.append({"file": f"{number}.png", "prompt": "a cat", "text": "a cat", "seed": seed})
    rows.append({"file": "../config.json", "prompt": "a cat", "seed": 2})
    write_jsonl(drawn / "images.jsonl", rows)
    found = opened.get("/api/results", run="mine").json()
    assert sorted(row["seed"] for row in found) == [0, 1]
    assert {row["file"] for row in found} == {"drawn/1.png", "drawn/2.png"}


def test_progress_is_counted_in_steps_and_pictures(tmp_path, opened):
    run = tmp_path / "runs" / "mine"
    found = watch.stages(run, read_json(run / "config.json"))
    shown = [(stage["name"], stage["done"], stage["total"], stage["over"]) for stage in found]
    assert shown == [
        ("base model", 3, 3, True),
        ("round 1: training", 10, 10, True),
        ("round 1: drawing", 6, 6, True),
        ("round 1: choice", 0, 1, False),
        ("round 2: training", 0, 10, False),
        ("round 2: drawing", 0, 6, False),
        ("round 2: choice", 0, 1, False),
        ("report", 0, 1, False),
    ]
    (run / "round_1" / "scores.jsonl").unlink()
    (run / "round_1" / "samples" / "p000_i000.png").unlink()
    found = watch.stages(run, read_json(run / "config.json"))
    assert (found[2]["done"], found[2]["total"], found[2]["over"]) == (5, 6, False)
    assert len(watch.newest(run)) == 5
    assert watch.curves(run) == {"round_1": [[10, 0.5]]}


def test_a_damaged_run_is_said_to_be_one(tmp_path, opened):
    run = tmp_path / "runs" / "mine"
    (run / "round_1" / "scores.jsonl").write_text("{}\n{}\n")
    (card,) = opened.get("/api/runs").json()
    assert card["state"].startswith("damaged") and card["best"] == []
    write_json(run / "config.json", {"method": "styledrop", "base": 5, "rounds": "x"})
    (card,) = opened.get("/api/runs").json()
    assert card["state"].startswith("damaged")
    assert opened.get("/api/run", run="mine").status_code == 200
    (run / "config.json").write_text("[]")
    assert opened.get("/api/run", run="mine").status_code == 400


def test_the_server_needs_no_jax():
    code = "import styledrop_jax.studio.server, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_keeps_a_studio_from_opening_is_one_line(tmp_path, capfd, monkeypatch):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    assert tiny.styledrop("studio", tmp_path, "--port", port, "--no-browser") == 2
    assert f"--port {port}: cannot be listened on" in capfd.readouterr().err
    taken.close()
    assert tiny.styledrop("studio", tmp_path, "--port", 70_000) == 2
    assert "--port: found 70000" in capfd.readouterr().err
    assert tiny.styledrop("studio", tmp_path, "--host", "", "--no-browser") == 2
    assert "--host: empty" in capfd.readouterr().err
    assert tiny.styledrop("studio", tmp_path, "--host", "\udcff", "--no-browser") == 2
    assert "cannot be listened on: no address" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "styledrop_jax.studio.server", None)
    assert tiny.styledrop("studio", tmp_path) == 2
    assert "styledrop_jax[studio]" in capfd.readouterr().err
