"""Model names: shipped, a folder, the Hugging Face cache, and what is said of the rest."""

import errno
import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.numpy import load_file

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    hub.save_index(
        assets / "emoji64" / "muse", "AmusedPipeline", {"vqvae": ("diffusers", "VQModel")}
    )
    (assets / "emoji64" / "clip").mkdir()
    (assets / "emoji64" / "clip" / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "SHIPPED", assets)
    return assets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hugging Face cache that holds amused/amused-256, and no network."""
    repository = tmp_path / "cache" / "models--amused--amused-256"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_shipped_model_is_found_wherever_one_stands(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("emoji64/muse") == shipped / "emoji64" / "muse"
    assert hub.resolve("emoji64") == shipped / "emoji64"


def test_a_local_folder_is_found_by_any_spelling(shipped, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        str(tmp_path / "models" / "mine"),
        "mine",
        "./mine",
        "../models/mine",
        "~/models/mine",
        ".",
    ):
        assert hub.resolve(name).resolve() in (tmp_path / "models" / "mine", tmp_path / "models")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("emoji46", "emoji64"), ("emoji64/must", "emoji64/muse"), ("Emoji64/Clip", "emoji64/clip")],
)
def test_a_misspelt_shipped_model_gets_a_hint(shipped, cache, tmp_path, name, meant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        hub.resolve(name)


@pytest.mark.parametrize(
    "name", ["", "./nothing", "/no/such/folder", "~/nothing", "a/b/c", "~nobody/x"]
)
def test_a_missing_folder_is_one_line(shipped, cache, name):
    with pytest.raises(
        UserError, match=rf"^model '{name}': no such folder and not a shipped model"
    ):
        hub.resolve(name)


def test_the_cache_is_used_without_a_network(shipped, cache):
    assert hub.resolve("amused/amused-256") == cache


@pytest.mark.parametrize("name", ["amused/amused-512", "no such/name!", "a/" + "b" * 200])
def test_a_model_that_is_nowhere_says_how_to_get_it(shipped, cache, name):
    with pytest.raises(UserError) as error:
        hub.resolve(name)
    message = str(error.value)
    assert message.startswith(
        f"model '{name}': not in the Hugging Face cache and the hub cannot be reached"
    )
    assert (
        f"hf download {name}" in message
        and "local diffusers folder" in message
        and "\n" not in message
    )


def _failing(error: Exception):
    def download(name, *, allow_patterns, ignore_patterns, local_files_only=False):
        assert not any(pattern.endswith((".bin", ".pt", ".ckpt")) for pattern in allow_patterns), (
            "never pickles"
        )
        raise LocalEntryNotFoundError("not there") if local_files_only else error

    return download


class _HttpError(Exception):
    """Stands for the errors of the hub client's HTTP library, which share no type with its own."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OfflineModeIsEnabled("offline"), "the hub cannot be reached"),
        (_HttpError("proxy"), "the hub cannot be reached"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            "no such model, or asks you to log in",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "for owner/name: cannot be written: the disk is full",
        ),
    ],
    ids=["offline", "http", "unknown", "disk"],
)
def test_a_failed_download_says_why(shipped, tmp_path, monkeypatch, error, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", _failing(error))
    with pytest.raises(UserError, match=words):
        hub.resolve("owner/name")


def test_what_is_not_cached_is_downloaded(shipped, tmp_path, monkeypatch):
    def download(name, *, allow_patterns, ignore_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path / name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.resolve("owner/name") == tmp_path / "owner" / "name"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "missing; expected a diffusers model folder"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "found a JSON list, expected an object"),
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
    index = json.loads(Path(tmp_path / "model_index.json").read_text())
    assert index == {"_class_name": "AmusedPipeline", "part": ["diffusers", "VQModel"]}
