"""The hash of weights: by content, and read again only when a file has changed."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from styledrop_jax.io import identity
from styledrop_jax.io.pretrained import Tensors
from styledrop_jax.models.rules import Rules

RULES = Rules(rules=(), renames=((r"^old\.", "new."),), ignored=r"position_ids")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "styledrop_jax" / "identity.json"


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "new.conv.weight": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "new.linear.weight": rng.normal(size=(5, 4)).astype(np.float16),
        "scale": np.array(2.0, np.float32),
    }


def _open(folder, *parts: dict[str, np.ndarray], metadata=None) -> Tensors:
    """Writes each part as a file and opens them all."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, part in enumerate(parts):
        files.append(folder / f"{number}.safetensors")
        save_file(part, files[-1], metadata=metadata)
    return Tensors(files, RULES)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the tensors whose data is read."""
    names = []
    original = Tensors.__getitem__

    def counted(self, name):
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(Tensors, "__getitem__", counted)
    return names


def test_the_same_tensors_are_the_same_model(tmp_path):
    weights = _weights()
    expected = identity.of_weights(_open(tmp_path / "a", weights))
    conv = weights["new.conv.weight"]
    rest = {name: weights[name] for name in ("scale", "new.linear.weight")}
    same = {
        "another header": (rest | {"new.conv.weight": conv},),
        "shards": (rest, {"new.conv.weight": conv}),
        "an old name": (rest | {"old.conv.weight": conv},),
        "a buffer": (weights | {"position_ids": np.arange(3)},),
        "a linear layer": (rest | {"new.conv.weight": conv[:, :, 0, 0]},),
    }
    for name, parts in same.items():
        tensors = _open(tmp_path / name, *parts, metadata={"made by": name})
        assert identity.of_weights(tensors) == expected, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", np.array(2.0 + 1e-6, np.float32)),
        ("scale", np.array(2.0, np.float16)),
        ("scale", np.array([2.0, 2.0], np.float32)),
        ("new.linear.weight", _weights()["new.linear.weight"].reshape(4, 5)),
        ("another", np.zeros(1, np.float32)),
    ],
    ids=["value", "dtype", "more", "shape", "name"],
)
def test_other_tensors_are_another_model(name, value, tmp_path):
    expected = identity.of_weights(_open(tmp_path / "a", _weights()))
    assert identity.of_weights(_open(tmp_path / "b", _weights() | {name: value})) != expected


def test_the_order_of_names_does_not_decide_which_values_are_whose(tmp_path):
    a = {"x": np.zeros(2, np.float32), "y": np.ones(2, np.float32)}
    b = {"x": np.ones(2, np.float32), "y": np.zeros(2, np.float32)}
    hashes = {identity.of_weights(_open(tmp_path / n, w)) for n, w in (("a", a), ("b", b))}
    assert len(hashes) == 2


def test_unchanged_files_are_not_read_again(tmp_path, cache, reads):
    tensors = _open(tmp_path / "a", _weights())
    expected = identity.of_weights(tensors)
    assert sorted(reads) == sorted(tensors)
    assert list(json.loads(cache.read_text()).values()) == [expected]
    reads.clear()
    assert identity.of_weights(Tensors([tmp_path / "a/0.safetensors"], RULES)) == expected
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert identity.of_weights(Tensors([tmp_path / "link/0.safetensors"], RULES)) == expected
    assert reads == []


def test_touched_or_replaced_files_are_read_again(tmp_path, reads):
    file = tmp_path / "a/0.safetensors"
    expected = identity.of_weights(_open(tmp_path / "a", _weights()))
    reads.clear()
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert identity.of_weights(Tensors([file], RULES)) == expected and len(reads) == 3
    save_file(_weights() | {"scale": np.array(3.0, np.float32)}, file)
    assert identity.of_weights(Tensors([file], RULES)) != expected


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff"])
def test_a_damaged_cache_is_made_anew(content, tmp_path, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    found = identity.of_weights(_open(tmp_path / "a", _weights()))
    assert list(json.loads(cache.read_text()).values()) == [found]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, cache, reads):
    cache.parent.parent.write_text("a file where a folder should be")
    tensors = _open(tmp_path / "a", _weights())
    assert identity.of_weights(tensors) == identity.of_weights(tensors)
    assert len(reads) == 6
    assert cache.parent.parent.is_file()


def test_the_cache_keeps_the_newest(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(identity, "_KEPT", 2)
    hashes = []
    for number in range(3):
        scale = {"scale": np.array(float(number), np.float32)}
        hashes.append(identity.of_weights(_open(tmp_path / str(number), scale)))
    assert list(json.loads(cache.read_text()).values()) == hashes[1:]


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_the_cache_folder_is_in_the_users_home(value, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identity.cache_file() == tmp_path / ".cache/styledrop_jax/identity.json"
