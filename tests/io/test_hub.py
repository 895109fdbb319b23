"""Model names: shipped, a folder, the Hugging Face cache and hub, and what is said of the rest."""

import errno
import json
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
from loopback_hub import COMMIT, LoopbackHub, sha1
from safetensors.numpy import load_file

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub

UNET = "unet/diffusion_pytorch_model"
VAE = "vae/diffusion_pytorch_model"
TEXT = "text_encoder/model"
SD = hub.Layout(
    weights={
        "unet": "diffusion_pytorch_model",
        "vae": "diffusion_pytorch_model",
        "text_encoder": "model",
    },
    tokenizers=("tokenizer",),
    others=("scheduler/scheduler_config.json",),
)
MUSE = hub.Layout(
    weights={
        "transformer": "diffusion_pytorch_model",
        "vqvae": "diffusion_pytorch_model",
        "text_encoder": "model",
    },
    tokenizers=("tokenizer",),
)
LAYOUTS = (MUSE, SD)
CONFIGS = (
    "scheduler/scheduler_config.json",
    *("unet/config.json", "vae/config.json", "text_encoder/config.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
)
OTHERS = (
    *("README.md", "model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"),
    *("safety_checker/config.json", "safety_checker/model.safetensors"),
    *("feature_extractor/preprocessor_config.json", f"{UNET}.bin", f"{TEXT}.ckpt"),
    f"{UNET}.non_ema.safetensors",
)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    hub.save_index(assets / "emoji128-muse", "AmusedPipeline", {"vqvae": ("diffusers", "VQModel")})
    (assets / "emoji64/clip").mkdir(parents=True)
    (assets / "emoji64/clip/config.json").write_text("{}")
    monkeypatch.setattr(hub, "SHIPPED", assets)
    return assets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def _files(*paths: str) -> dict[str, bytes]:
    return {path: path.encode() for path in paths}


def _index(*shards: str) -> bytes:
    weight_map = {f"tensor.{number}": shard for number, shard in enumerate(shards)}
    return json.dumps({"weight_map": weight_map}).encode()


def _whole(*weights: str) -> dict[str, bytes]:
    """A Stable Diffusion with these weight files, and with much that is not opened."""
    return _files(*CONFIGS, *OTHERS, *weights)


def _plain(*stems: str, variant: str = "") -> list[str]:
    return [f"{stem}{variant}.safetensors" for stem in stems or (UNET, VAE, TEXT)]


def _cached(folder) -> set[str]:
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            found.add(path.relative_to(folder).as_posix())
    return found


def test_the_shipped_models_are_there():
    for name in ("emoji128", "emoji128-muse", "emoji64/clip"):
        assert (hub.SHIPPED / name).is_dir()


def test_a_shipped_model_is_found_wherever_one_stands(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("emoji128-muse") == shipped / "emoji128-muse"
    assert hub.resolve("emoji64/clip") == shipped / "emoji64/clip"


def test_a_model_of_ones_own_has_no_vocabulary(tmp_path):
    (tmp_path / "vocabulary.json").write_text("of another kind")
    assert not (hub.shipped_vocabulary(str(tmp_path)) / "vocabulary.json").exists()
    assert (hub.shipped_vocabulary("emoji128-muse") / "vocabulary.json").exists()


def test_a_local_folder_is_found_by_any_spelling(shipped, tmp_path, monkeypatch):
    folder = tmp_path / "models/mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "mine", "./mine", "../models/mine", "~/models/mine"):
        assert hub.resolve(name).resolve() == folder
    assert hub.resolve(".").resolve() == tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("emoji128-must", "emoji128-muse"),
        ("emoji64-muse", "emoji128-muse"),
        ("Emoji64/Clip", "emoji64/clip"),
    ],
)
def test_a_misspelt_shipped_model_gets_a_hint(shipped, cache, name, meant):
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        hub.resolve(name)


@pytest.mark.parametrize(
    "name", ["", "./nothing", "/no/such/folder", "~/nothing", "a/b/c", "~nobody/x", "nul\\x00"]
)
def test_a_missing_folder_is_one_line(shipped, cache, name):
    start = f"model {name!r} (--config.clip): no such folder, not a shipped model"
    with pytest.raises(UserError, match=f"^{re.escape(start)}"):
        hub.resolve(name, field="config.clip")


def test_exactly_what_is_opened_is_downloaded_once(shipped, cache, monkeypatch):
    wanted = {*CONFIGS, *_plain()}
    variants = _plain(variant=".fp16") + _plain(variant=".bf16")
    with LoopbackHub({"owner/name": _whole(*_plain(), *variants)}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("owner/name", LAYOUTS)
        assert sorted(server.served) == sorted(wanted)
        assert _cached(folder) == wanted
        assert (folder / _plain(UNET)[0]).read_bytes() == _plain(UNET)[0].encode()
        server.served.clear()
        assert hub.resolve("owner/name", LAYOUTS) == folder
        assert server.served == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve("owner/name", LAYOUTS) == folder


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_is_downloaded_where_there_is_no_other(variant, shipped, cache, monkeypatch):
    """Here of the U-Net alone, and in shards; of the rest the plain files are taken."""
    stem = f"diffusion_pytorch_model.{variant}"
    shards = [f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"]
    paths = [f"unet/{shards[0]}", f"unet/{shards[1]}"]
    index = f"{UNET}.safetensors.index.{variant}.json"
    weights = [*_plain(VAE, TEXT), f"{VAE}.fp16.safetensors", f"{VAE}.bf16.safetensors"]
    files = _whole(*weights, *paths)
    with LoopbackHub({"owner/name": files | {index: _index(*shards)}}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("owner/name", LAYOUTS)
    assert _cached(folder) == {*CONFIGS, *_plain(VAE, TEXT), index, *paths}


def test_a_partial_cache_is_completed(shipped, cache, monkeypatch):
    with LoopbackHub({"owner/name": _whole(*_plain())}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("owner/name", LAYOUTS)
        shutil.rmtree(folder / "vae")
        server.served.clear()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError) as error:
            hub.resolve("owner/name", LAYOUTS, field="config.base")
        assert str(error.value) == (
            "model 'owner/name' (--config.base): the Hugging Face cache lacks a file "
            "(owner/name/vae: expected diffusion_pytorch_model.safetensors) and "
            "HF_HUB_OFFLINE is set; with a network run `styledrop fetch owner/name`, or pass a "
            "local folder"
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assert hub.resolve("owner/name", LAYOUTS) == folder
        assert _cached(folder) == {*CONFIGS, *_plain()}


@pytest.mark.parametrize(
    "missing", ["unet/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"]
)
def test_the_file_that_a_cache_lacks_is_named(missing, shipped, cache, monkeypatch):
    with LoopbackHub({"owner/name": _whole(*_plain())}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("owner/name", LAYOUTS)
    (folder / missing).unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    named = {"tokenizer/vocab.json": r"tokenizer: no tokenizer"}.get(missing, f"{missing}: missing")
    with pytest.raises(UserError, match=rf"lacks a file \(owner/name/{named}"):
        hub.resolve("owner/name", LAYOUTS)


def test_a_shard_that_a_cache_lacks_is_named(shipped, cache, monkeypatch):
    shards = ["a.safetensors", "b.safetensors"]
    files = _whole(*_plain(VAE, TEXT), "unet/a.safetensors", "unet/b.safetensors")
    files[f"{UNET}.safetensors.index.json"] = _index(*shards)
    with LoopbackHub({"owner/name": files}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("owner/name", LAYOUTS)
        (folder / "unet/b.safetensors").unlink()
        assert hub.resolve("owner/name", LAYOUTS) == folder
    (folder / "unet/b.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"index\.json: shards not found: b\.safetensors"):
        hub.resolve("owner/name", LAYOUTS)


def test_a_cache_of_another_variant_is_enough(shipped, cache, monkeypatch):
    """Downloaded by another program, of a repository that has the plain files too."""
    half = _plain(variant=".fp16")
    with LoopbackHub({"owner/name": _whole(*_plain(), *half)}) as server:
        server.use(monkeypatch)
        folder = huggingface_hub.snapshot_download("owner/name", allow_patterns=[*CONFIGS, *half])
        server.served.clear()
        assert str(hub.resolve("owner/name", LAYOUTS)) == folder
        assert server.served == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            _files(*CONFIGS, *_plain(VAE, TEXT), f"{UNET}.bin"),
            r"unet: expected diffusion_pytorch_model\.safetensors; .*\.bin is a pickle",
        ),
        (_files("README.md"), r"on the hub/transformer: expected diffusion_pytorch_model"),
        (_files("vae/config.json", *_plain(VAE)), r"on the hub/unet: expected diffusion_pytorch"),
    ],
)
def test_what_a_model_on_the_hub_lacks_is_named(files, words, shipped, cache, monkeypatch):
    with LoopbackHub({"owner/name": files}) as server:
        server.use(monkeypatch)
        with pytest.raises(UserError, match=rf"^model 'owner/name' \(--config\.base\): .*{words}"):
            hub.resolve("owner/name", LAYOUTS)
        assert not any(path.endswith(".safetensors") for path in server.served)


def test_a_lone_model_and_a_tokenizer_alone_are_downloaded(shipped, cache, monkeypatch):
    small = ("config.json", "tokenizer.json", "tokenizer_config.json")
    others = ("flax_model.msgpack", "pytorch_model.bin", "preprocessor_config.json", "vocab.json")
    with LoopbackHub({"a/clip": _files(*small, *others, "model.safetensors")}) as server:
        server.use(monkeypatch)
        folder = hub.resolve("a/clip", (hub.Layout(tokenizers=("",)),))
        assert _cached(folder) == set(small[1:])
        assert hub.resolve("a/clip") == folder
        assert _cached(folder) == {*small, "model.safetensors"}


@pytest.mark.parametrize("name", ["amused/amused-512", "no such/name!", "a/" + "b" * 60])
def test_a_model_that_is_nowhere_says_how_to_get_it(shipped, cache, name):
    with pytest.raises(UserError) as error:
        hub.resolve(name, field="config.clip")
    message = str(error.value)
    assert (
        message.startswith(f"model '{name[:50]}") and "(--config.clip): not in the Hug" in message
    )
    why = "the hub has no such names" if "!" in name else "HF_HUB_OFFLINE is set"
    assert f"and {why}" in message and f"styledrop fetch {name}" in message
    assert "pass a local folder" in message and "\n" not in message and len(message) < 300


def test_sizes_are_said_before_anything_is_downloaded(shipped, cache, monkeypatch, capfd):
    files = _whole(*_plain()) | {_plain(UNET)[0]: bytes(3_000_000)}
    with LoopbackHub({"owner/name": files}) as server:
        server.use(monkeypatch)
        folder = hub.fetch("owner/name", LAYOUTS)
        assert f"owner/name at {COMMIT[:12]}: 10 files, 3.0 MB, of which 3.0 MB" in _said(capfd)
        (folder / _plain(UNET)[0]).resolve().unlink()
        (folder / _plain(UNET)[0]).unlink()
        server.served.clear()
        assert hub.fetch("owner/name", LAYOUTS) == folder
        assert server.served == _plain(UNET), "a partial cache is completed"
        assert "of which 3.0 MB are to be downloaded" in _said(capfd)
        hub.fetch("owner/name", LAYOUTS)
        assert "of which 0.0 MB are to be downloaded" in _said(capfd)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("owner/name", LAYOUTS) == folder
    assert "HF_HUB_OFFLINE is set; the cache has all that is opened" in _said(capfd)


def _said(capfd) -> str:
    return capfd.readouterr().out


def test_a_connection_that_is_cut_goes_on_where_it_was(shipped, cache, monkeypatch):
    weights = bytes(range(256)) * 4000
    with LoopbackHub({"owner/name": _whole(*_plain()) | {_plain(UNET)[0]: weights}}) as server:
        server.use(monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        server.cuts[_plain(UNET)[0]] = 2
        folder = hub.resolve("owner/name", LAYOUTS)
        assert (folder / _plain(UNET)[0]).read_bytes() == weights
        starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in server.ranges]
        assert len(starts) == 2 and 0 < starts[0] < starts[1] < len(weights)


def test_a_download_that_broke_off_is_continued_by_the_same_call(shipped, cache, monkeypatch):
    with LoopbackHub({"owner/name": _whole(*_plain())}) as server:
        server.use(monkeypatch)
        server.broken = set(_plain(UNET))
        for call in (hub.fetch, hub.resolve):
            with pytest.raises(UserError, match="the download broke off .the same command goes on"):
                call("owner/name", LAYOUTS)
        assert set(server.served) >= {"vae/config.json", "text_encoder/config.json"}
        server.broken.clear()
        before = set(server.served)
        server.served.clear()
        folder = hub.fetch("owner/name", LAYOUTS)
        assert before.isdisjoint(server.served) and _plain(UNET)[0] in server.served
        assert _cached(folder) == {*CONFIGS, *_plain()}


def test_a_revision_is_fetched_and_found_again_beside_another(shipped, cache, monkeypatch):
    old = _whole(*_plain()) | {_plain(UNET)[0]: b"old"}
    with LoopbackHub({"owner/name": _whole(*_plain())}) as server:
        server.others["v1"] = {"owner/name": old}
        server.use(monkeypatch)
        now = hub.resolve("owner/name", LAYOUTS)
        then = hub.fetch("owner/name", LAYOUTS, revision="v1")
        assert hub.commit(now) == COMMIT and hub.commit(then) == sha1(b"v1")
        assert (then / _plain(UNET)[0]).read_bytes() == b"old"
        with pytest.raises(UserError, match="the hub has no revision 'v2' of it"):
            hub.fetch("owner/name@v2", LAYOUTS)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, revision in (("owner/name@v1", ""), ("owner/name", hub.commit(then))):
        assert hub.resolve(name, LAYOUTS, revision=revision) == then
        assert hub.on_this_machine(f"owner/name@{hub.commit(then)}", LAYOUTS) == then
    assert hub.commit(shipped / "emoji128-muse") == ""


def test_a_cache_that_is_not_enough_offline_is_one_line(shipped, cache):
    with pytest.raises(UserError) as error:
        hub.fetch("owner/name", LAYOUTS)
    assert str(error.value) == (
        "model 'owner/name': not in the Hugging Face cache and HF_HUB_OFFLINE is set"
    )


def test_what_is_here_is_not_fetched(shipped, cache, tmp_path):
    assert hub.fetch("emoji128-muse", LAYOUTS) == shipped / "emoji128-muse"
    assert hub.fetch(str(tmp_path), LAYOUTS) == tmp_path


def test_a_model_that_the_hub_does_not_have_says_so(shipped, cache, monkeypatch):
    with LoopbackHub({}) as server:
        server.use(monkeypatch)
        with pytest.raises(UserError, match="the hub has no such model, or asks you to log in"):
            hub.resolve("owner/name")


class _HttpError(Exception):
    """Stands for the errors of the hub client's HTTP library, which share no type with its own."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_HttpError("proxy"), "the hub cannot be reached"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "for owner/name: cannot be written: the disk is full",
        ),
    ],
    ids=["http", "disk"],
)
def test_a_failed_download_says_why(shipped, cache, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub.HfApi, "model_info", fail)
    with pytest.raises(UserError, match=words):
        hub.resolve("owner/name")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "missing; expected a diffusers model folder"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[1]", "found .1., expected a JSON object"),
    ],
)
def test_a_bad_config_is_named(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json: {words}"):
        hub.read_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "file"),
    [({"_class_name": "VQModel"}, "diffusion_pytorch_model"), ({"model_type": "clip"}, "model")],
)
def test_a_component_is_saved_where_the_reference_looks(config, file, tmp_path):
    hub.save_component(tmp_path / "part", config, {"a": np.ones(2, np.float16)})
    assert hub.read_config(tmp_path / "part") == config
    np.testing.assert_array_equal(
        load_file(tmp_path / "part" / f"{file}.safetensors")["a"], np.ones(2)
    )
    hub.save_index(tmp_path, "AmusedPipeline", {"part": ("diffusers", "VQModel")})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {"_class_name": "AmusedPipeline", "part": ["diffusers", "VQModel"]}
