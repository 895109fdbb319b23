"""The rule engine: both directions, every layout and dtype, and every way a weight file can be
wrong."""

import json
import os
import pickle
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from numpy.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.layers import Conv, Embed, LayerNorm, Linear
from styledrop_jax.models.rules import COMMON, Rule, Rules

STEM = "diffusion_pytorch_model"


class _Up(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (2, 2, 3, 4)))


class Tiny(nnx.Module):
    """One parameter of every layout."""

    def __init__(self, rngs):
        self.embed = Embed(7, 3, rngs=rngs)
        self.layers = nnx.List([Linear(3, 5, rngs=rngs), Linear(5, 3, rngs=rngs)])
        self.norm = LayerNorm(3, rngs=rngs)
        self.conv = Conv(3, 4, 3, rngs=rngs)
        self.shortcut = Linear(3, 4, rngs=rngs)
        self.up = _Up(rngs)
        self.gamma = nnx.Param(jax.random.normal(rngs.params(), (6,)))


RULES = Rules(
    rules=(
        Rule(r"up\.kernel", "up.weight", "conv_transpose"),
        Rule(r"conv\.kernel", "conv.weight", "conv"),
        Rule(r"shortcut\.kernel", "shortcut.weight", "1x1"),
        Rule(r"gamma", "gamma", "row"),
        *COMMON,
    ),
    renames=((r"^old_norm\.", "norm."),),
    ignored=r".*position_ids",
)
SHAPES = {
    "conv.bias": (4,),
    "conv.weight": (4, 3, 3, 3),
    "embed.weight": (7, 3),
    "gamma": (1, 1, 1, 6),
    "layers.0.bias": (5,),
    "layers.0.weight": (5, 3),
    "layers.1.bias": (3,),
    "layers.1.weight": (3, 5),
    "norm.bias": (3,),
    "norm.weight": (3,),
    "shortcut.bias": (4,),
    "shortcut.weight": (4, 3, 1, 1),
    "up.weight": (3, 4, 2, 2),
}


def _build() -> Tiny:
    return Tiny(nnx.Rngs(0))


def _tensors(dtype: DTypeLike = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def _load(files) -> Tiny:
    return pretrained.load(_build, pretrained.Tensors(files, RULES), RULES, source="tiny")


def _agrees(model: Tiny, tensors: dict[str, np.ndarray]) -> None:
    """Position by position, written out rather than by the engine's own transposes."""
    expected = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    for ours, theirs in [
        (model.embed.embedding, expected["embed.weight"]),
        (model.layers[0].kernel, expected["layers.0.weight"].T),
        (model.layers[1].bias, expected["layers.1.bias"]),
        (model.norm.scale, expected["norm.weight"]),
        (model.conv.kernel, np.einsum("oihw->hwio", expected["conv.weight"])),
        (model.shortcut.kernel, np.einsum("oixy->io", expected["shortcut.weight"])),
        (model.up.kernel, np.einsum("iohw->hwio", expected["up.weight"])),
        (model.gamma, expected["gamma"].reshape(6)),
    ]:
        assert ours[...].dtype == jnp.float32
        np.testing.assert_array_equal(ours[...], theirs)


def test_names_and_shapes_of_every_layout():
    assert pretrained.shapes(nnx.eval_shape(_build), RULES) == SHAPES


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_files_of_every_float_load(dtype, tmp_path):
    tensors = _tensors(dtype)
    save_file(tensors, tmp_path / "x.safetensors")
    _agrees(_load([tmp_path / "x.safetensors"]), tensors)


def test_export_is_the_inverse(tmp_path):
    tensors = _tensors()
    model = pretrained.load(_build, tensors, RULES, source="dict")
    exported = pretrained.export(model, RULES)
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(exported[name], tensor)
    pretrained.save(
        tmp_path / "new" / "x.safetensors",
        pretrained.export(model, RULES, dtype=np.float16),
        {"a": "b"},
    )
    for name, tensor in load_file(tmp_path / "new" / "x.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name].astype(np.float16))


def test_old_names_are_renamed_and_buffers_ignored(tmp_path):
    tensors = _tensors()
    stored = {name.replace("norm.", "old_norm."): tensor for name, tensor in tensors.items()}
    save_file(stored | {"text.position_ids": np.arange(4)}, tmp_path / "x.safetensors")
    _agrees(_load([tmp_path / "x.safetensors"]), tensors)


def test_one_error_lists_all_that_differs(tmp_path):
    tensors = _tensors()
    del tensors["conv.bias"], tensors["norm.weight"]
    tensors |= {
        "extra.weight": np.zeros((2, 2), np.float32),
        "embed.weight": np.zeros((7, 4), np.float32),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as error:
        _load([tmp_path / "x.safetensors"])
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "tiny does not fit the model, 4 tensors differ",
        "missing conv.bias (4,)",
        "missing norm.weight (3,)",
        "unexpected extra.weight (2, 2)",
        "embed.weight has shape (7, 4), expected (7, 3)",
    ):
        assert part in message


def _shard(folder, tensors, names=("a.safetensors", "b.safetensors"), variant="") -> None:
    weight_map = {}
    for number, shard in enumerate(names):
        part = dict(list(tensors.items())[number::2])
        save_file(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index{variant}.json").write_text(json.dumps(index))


def test_shards_are_one_model(tmp_path):
    tensors = _tensors()
    _shard(tmp_path, tensors)
    save_file({"other": np.zeros(1)}, tmp_path / "not-in-the-index.safetensors")
    files = pretrained.weight_files(tmp_path, STEM)
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
    _agrees(_load(files), tensors)


def test_a_missing_shard_is_named(tmp_path):
    _shard(tmp_path, _tensors())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"index\.json: shards not found: b\.safetensors; finish the download"
    ):
        pretrained.weight_files(tmp_path, STEM)


@pytest.mark.parametrize(
    "text",
    ["not json", "[]", "{}", *(f'{{"weight_map": {x}}}' for x in ("3", '{"a": 1}', '{"a": null}'))],
)
def test_a_broken_index_is_named(text, tmp_path):
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
    with pytest.raises(
        UserError, match=r"index\.json: .*expected (JSON|a JSON object|a file for each tensor)"
    ):
        pretrained.weight_files(tmp_path, STEM)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ((".fp16",), ".fp16"),
        ((".bf16",), ".bf16"),
        ((".bf16", ".fp16"), ".fp16"),
        (("", ".fp16", ".bf16"), ""),
    ],
)
def test_one_variant_is_taken_and_the_plain_file_before_it(there, taken, tmp_path):
    for variant in there:
        save_file({"a": np.zeros(1)}, tmp_path / f"{STEM}{variant}.safetensors")
    save_file({"a": np.zeros(1)}, tmp_path / f"{STEM}.non_ema.safetensors")
    assert pretrained.weight_files(tmp_path, STEM) == [tmp_path / f"{STEM}{taken}.safetensors"]


@pytest.mark.parametrize("variant", [".fp16", ".bf16"])
def test_shards_of_a_variant_are_one_model(variant, tmp_path):
    tensors = _tensors()
    stem = f"{STEM}{variant}"
    names = (f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors")
    _shard(tmp_path, tensors, names, variant)
    files = pretrained.weight_files(tmp_path, STEM)
    assert [file.name for file in files] == list(names)
    _agrees(_load(files), tensors)


def test_a_whole_variant_is_taken_before_one_that_lacks_a_shard(tmp_path):
    _shard(tmp_path, _tensors())
    (tmp_path / "b.safetensors").unlink()
    save_file(_tensors(np.float16), tmp_path / f"{STEM}.fp16.safetensors")
    found = pretrained.weight_files(tmp_path, STEM)
    assert [file.name for file in found] == [f"{STEM}.fp16.safetensors"]


def test_a_link_to_nothing_is_no_file(tmp_path):
    """As a cache has it whose blobs were deleted."""
    (tmp_path / f"{STEM}.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"expected {STEM}.safetensors"):
        pretrained.weight_files(tmp_path, STEM)


def test_a_model_that_does_not_fit_at_all_is_said_in_a_short_line(tmp_path):
    save_file({"other": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    expected = r"does not fit the model, 14 tensors differ: missing conv\.bias .*; and \d+ more$"
    with pytest.raises(UserError, match=expected) as error:
        _load([tmp_path / "x.safetensors"])
    assert len(str(error.value)) < 300


class _Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_alone_is_refused_by_name(tmp_path):
    (tmp_path / f"{STEM}.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(
        UserError,
        match=rf"expected {STEM}\.safetensors; {STEM}\.bin is a pickle and is never opened",
    ):
        pretrained.weight_files(tmp_path, STEM)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["pickle", "text", "empty", "truncated", "cut in the header"])
def test_what_is_no_safetensors_file_is_refused_by_name(kind, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(_tensors(), file)
    content = {
        "pickle": pickle.dumps(_Trap(tmp_path / "sprung")),
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "empty": b"",
        "truncated": file.read_bytes()[:-3],
        "cut in the header": file.read_bytes()[:20],
    }
    file.write_bytes(content[kind])
    with pytest.raises(
        UserError,
        match=r"x\.safetensors: not a readable safetensors file .*pickles are never opened",
    ):
        _load([file])
    assert not (tmp_path / "sprung").exists()


def test_absent_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.safetensors: no such file"):
        _load([tmp_path / "nothing.safetensors"])
    with pytest.raises(UserError, match=rf"nowhere: expected {STEM}\.safetensors"):
        pretrained.weight_files(tmp_path / "nowhere", STEM)


def test_quantised_weights_are_refused(tmp_path):
    save_file(_tensors() | {"norm.weight": np.zeros(3, np.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"norm\.weight is I8, expected one of F16"):
        _load([tmp_path / "x.safetensors"])


def test_who_may_read_the_folder_may_read_what_is_saved_in_it(tmp_path):
    tmp_path.chmod(0o755)
    pretrained.save(tmp_path / "a.safetensors", {"w": np.zeros(2, np.float32)})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    pretrained.save(file, _tensors())
    before = file.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written: the disk is full"):
        pretrained.save(file, _tensors(np.float16))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_in_the_way_of_a_save_is_named(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written"):
        pretrained.save(tmp_path / "x.safetensors", _tensors())


def test_loading_holds_one_tensor_of_the_file_at_a_time(tmp_path, monkeypatch):
    save_file(
        _tensors(np.float16), tmp_path / "x.safetensors"
    )  # float16: what is kept is a converted copy
    read, alive, most = [], weakref.WeakSet(), 0
    original = pretrained.Tensors.__getitem__

    class Tracked(np.ndarray):
        __hash__ = object.__hash__  # so that the set can hold it

    def counting(self, name):
        nonlocal most
        tensor = original(self, name).view(Tracked)
        read.append(name)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(pretrained.Tensors, "__getitem__", counting)
    _load([tmp_path / "x.safetensors"])
    assert sorted(read) == sorted(SHAPES), "each is read once"
    assert most <= 2, "the last one may still be on its way to the device"
