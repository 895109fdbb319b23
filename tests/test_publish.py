"""Publishing what a run learnt, on a hub of our own: the folder, its card, and what comes back."""

import re
import shutil
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import numpy as np
import pytest
import runs
import tiny
import yaml
from loopback_hub import LoopbackHub
from PIL import Image

from styledrop_jax import publish
from styledrop_jax.interchange import trained
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.style import Style

NAME = "me/watercolor"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Of which somebody is a member."""
    with LoopbackHub({}) as running:
        running.use(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def _push(run, *words) -> list:
    return ["push", "--run", run, "--to", NAME, *words]


def _front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_pushed_draws_the_same_elsewhere(server, tmp_path, capfd):
    run = tiny.finished()
    out = tmp_path / "out"
    assert tiny.styledrop(*_push(run, "--private", "--out", out)) == 0
    assert f"{server.endpoint}/{NAME}" in capfd.readouterr().out
    assert server.private == {NAME: True}
    pushed = server.models[NAME]
    assert {"README.md", "styledrop/config.json", "images/00.png"} <= set(pushed)
    words = re.compile(rb"[\"' ]/(tmp|home|root|work)/")
    for path, content in pushed.items():
        assert (out / path).read_bytes() == content
        assert not words.search(content), f"{path} says where it was made"
    again = huggingface_hub.snapshot_download(NAME, local_dir=tmp_path / "again")
    base = tiny.models() / "muse"
    theirs = Style.load(f"{again}/styledrop", base=str(base)).sample("a cat", seed=3)
    ours = Style.load(run).sample("a cat", seed=3)
    np.testing.assert_array_equal(np.asarray(theirs[0]), np.asarray(ours[0]))


def test_the_card_says_what_it_is_and_how_to_use_it(tmp_path):
    out = tmp_path / "out"
    assert tiny.styledrop(*_push(tiny.finished(), "--dry-run", "--out", out)) == 0
    card = (out / "README.md").read_text()
    front = _front(card)
    assert front["instance_prompt"] == "in watercolor painting style"
    assert "styledrop_jax" in front["tags"] and "text-to-image" in front["tags"]
    assert "base_model" not in front, "a folder of this machine is none of the hub's"
    (first, second) = front["widget"]
    assert first["text"] == "a cat in watercolor painting style"
    assert Image.open(out / second["output"]["url"]).size == (tiny.RESOLUTION, tiny.RESOLUTION)
    assert f"![{first['text']}]({first['output']['url']})" in card
    assert f"hf download {NAME} --local-dir watercolor" in card
    assert "styledrop sample --run watercolor/styledrop" in card
    assert "--base FOLDER_OF_THE_BASE_MODEL" in card and "With diffusers" not in card
    assert tiny.styledrop(*_push(tiny.finished(), "--dry-run", "--out", out)) == 2, "not empty"


@pytest.fixture(scope="module")
def of_hub(tmp_path_factory) -> tuple:
    """A run of LoRA whose base is of a hub, and all that the hub has."""
    base = tiny.models() / "muse"
    files = {}
    for path in base.rglob("*"):
        if path.is_file():
            files[path.relative_to(base).as_posix()] = path.read_bytes()
    files["README.md"] = b"---\nlicense: openrail\nlicense_name: 3\n---\n# A base\n"
    workdir = tmp_path_factory.mktemp("of_hub") / "run"
    with pytest.MonkeyPatch.context() as patch, LoopbackHub({"owner/base": files}) as running:
        running.use(patch)
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        words = ["--config.round_1.adapter.kind", "lora", "--config.rounds", 1]
        line = tiny.arguments(workdir, "--config.base", "owner/base", *words)
        assert tiny.styledrop(*line) == 0
    return workdir, files, cache


def test_a_run_keeps_the_commit_of_its_base(of_hub, server, monkeypatch, tmp_path, capfd):
    workdir, files, cache = of_hub
    commit = read_json(workdir / "manifest.json")["base"]["revision"]
    assert commit == server.commit
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    server.models["owner/base"] = files | {"model_index.json": b"{}"}
    server.others[commit] = {"owner/base": files}
    server.commit = "d" * 40
    assert tiny.styledrop("fetch", "owner/base") == 0
    said = capfd.readouterr().out
    assert re.search(r"owner/base at d{12}: \d+ files, 0\.\d MB, of which", said), said
    assert said.rstrip().endswith("snapshots/" + "d" * 40)
    run = shutil.copytree(workdir, tmp_path / "run")
    server.served.clear()
    assert Style.load(run).pipeline.revision == commit and server.served == []
    (run / "report.html").unlink()
    words = ["--config.round_1.adapter.kind", "lora", "--config.rounds", 1]
    line = tiny.arguments(run, "--config.base", "owner/base", *words)
    assert tiny.styledrop(*line) == 0, "it goes on with its own commit, which the cache has"
    assert server.served == []
    write_json(run / "manifest.json", {"base": {"revision": "../.."}, "references": [{}]})
    said = runs.refused(capfd, "sample", "--run", run, "--prompt", "a cat")
    assert "base.revision is '../..', expected the 40 digits" in said


def test_of_a_base_on_the_hub_the_card_has_licence_and_lines_for_diffusers(
    of_hub, server, monkeypatch, tmp_path
):
    workdir, files, cache = of_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    server.models["owner/base"] = files
    assert tiny.styledrop(*_push(workdir, "--dry-run", "--out", tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front = _front(card)
    assert (front["base_model"], front["license"]) == ("owner/base", "openrail")
    assert front["library_name"] == "diffusers" and "lora" in front["tags"]
    assert "license_name" not in front
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert 'folder = snapshot_download("me/watercolor")'.replace('"', "'") in code
    assert "DiffusionPipeline.from_pretrained('owner/base')" in code
    assert "load_lora_adapter(folder" in code
    found = {path.name for path in (tmp_path / "out").rglob("*.safetensors")}
    assert {"pytorch_lora_weights.safetensors", "adapter_model.safetensors"} <= found
    assert read_json(tmp_path / "out/styledrop/manifest.json")["base"]["revision"]


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["--to", "no name!"], "", "--to: expected OWNER/NAME"),
        (["--to", "watercolor"], "", "--to: expected OWNER/NAME"),
        (["--to", NAME], "", "--to: no token of the hub; set HF_TOKEN"),
        (["--to", NAME], "hf_wrong", "the hub refuses it ('Invalid username or password"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    server, monkeypatch, tmp_path, capfd, words, token, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = runs.refused(capfd, "push", "--run", tiny.finished(), "--out", tmp_path / "out", *words)
    assert message in said and server.models == {}


def test_a_hub_that_is_gone_is_one_line(server, monkeypatch, tmp_path, capfd):
    (tmp_path / "folder").mkdir()
    server.shutdown()
    server.server_close()
    with pytest.raises(publish.UserError, match="^--to me/watercolor: the hub cannot be reached"):
        publish.upload(tmp_path / "folder", NAME, private=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(publish.UserError, match="^--to me/watercolor: HF_HUB_OFFLINE is set"):
        publish.upload(tmp_path / "folder", NAME, private=False)


def test_pictures_are_the_best_of_each_prompt_and_prompts_stay_plain(tmp_path):
    run = tiny.finished()
    style = Style.load(run)
    files = publish.write(style, tmp_path / "out", NAME)
    assert len([path for path in files if path.startswith("images/")]) == len(tiny.PROMPTS)
    assert trained.plain("a [cat](x)\n<b> `y`") == r"a \[cat\](x) \<b\> \`y\`"


@pytest.mark.parametrize(
    ("base", "said"),
    [("emoji128", "  # ships with styledrop_jax"), ("mine", "  # the base model's folder")],
)
def test_the_example_says_where_a_base_is_that_no_hub_has(base, said):
    named = SimpleNamespace(base_title=base, base_name=base)
    code = publish._with_diffusers(cast("Any", named), NAME, "pipeline.load_lora()", "a cat")
    (line,) = [line for line in code if "from_pretrained" in line]
    assert line.startswith(f"pipeline = DiffusionPipeline.from_pretrained({base!r}){said}")
