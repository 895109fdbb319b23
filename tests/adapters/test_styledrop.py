import dataclasses
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bases import silent
from flax import nnx
from safetensors.numpy import load_file, save_file

from styledrop_jax import tree
from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterParam, identity, load_adapter, restore, save_adapter
from styledrop_jax.errors import UserError

ROUND_1 = styledrop.Config(bottleneck=4, shared=True)
ROUND_2 = styledrop.Config(bottleneck=32, shared=False)


class Layer(nnx.Module):
    """The two sub-layers of a U-ViT layer that have a slot, as matrices."""

    def __init__(self, width, rngs):
        self.attn = nnx.Linear(width, width, rngs=rngs)
        self.mlp = nnx.Linear(width, width, rngs=rngs)
        self.width = width
        self.attn_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(self, x):
        y = self.attn(x)
        x = x + (y if self.attn_adapter is None else self.attn_adapter(y))
        y = self.mlp(x)
        return x + (y if self.mlp_adapter is None else self.mlp_adapter(y))


class Denoiser(nnx.Module):
    def __init__(self, *, layers=3, width=8, seed=0):
        rngs = nnx.Rngs(seed)
        self.transformer_layers = nnx.List([Layer(width, rngs) for _ in range(layers)])

    def __call__(self, x):
        for layer in self.transformer_layers:
            x = layer(x)
        return x


def _split(config, **kwargs):
    """A denoiser with adapters: its graph, pure adapter and frozen states, and a batch."""
    model = Denoiser(**kwargs)
    styledrop.attach(model, config, rngs=nnx.Rngs(1))
    graph, adapter, frozen = nnx.split(model, AdapterParam, ...)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("f")
    return graph, nnx.as_pure(adapter), nnx.as_pure(frozen), x


def _filled(state, seed=0):
    """The state as if trained: nothing in it is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), state)


def _run(graph):
    return jax.jit(lambda adapter, frozen, x: nnx.merge(graph, adapter, frozen)(x))


@pytest.mark.parametrize(
    ("config", "layers", "width", "expected"),
    [(ROUND_1, 48, 2048, 229_760), (ROUND_2, 48, 2048, 12_582_912), (ROUND_2, 48, 1024, 6_291_456)],
)
def test_parameter_counts_are_the_papers(config, layers, width, expected):
    def build():
        model = Denoiser(layers=layers, width=width)
        styledrop.attach(model, config, rngs=nnx.Rngs(0))
        return model

    assert tree.count(nnx.state(nnx.eval_shape(build), AdapterParam)) == expected


@pytest.mark.parametrize("config", [ROUND_1, ROUND_2])
def test_a_fresh_adapter_changes_nothing(config):
    graph, adapter, frozen, x = _split(config)
    bare_graph, bare = nnx.split(Denoiser())
    np.testing.assert_array_equal(_run(graph)(adapter, frozen, x), nnx.merge(bare_graph, bare)(x))
    for name, leaf in tree.flatten(adapter).items():
        assert (leaf != 0).any() == ("down" in name)


def test_output_is_the_papers_formula():
    for config in (ROUND_1, ROUND_2):
        generator = styledrop.Generator(config, layers=3, width=8, rngs=nnx.Rngs(0))
        nnx.update(generator, _filled(nnx.state(generator)))
        emb = np.random.default_rng(1).normal(size=(2, 8)).astype("f")
        for layer in range(3):
            if config.shared:
                wd = generator.down[0] + generator.down_shift[layer][None, :]
                wu = generator.up[0] + generator.up_shift[layer][None, :]
            else:
                wd = generator.down[layer]
                wu = generator.up[layer]
            inner = np.asarray(emb @ wd)
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            np.testing.assert_allclose(
                styledrop.Adapter(generator, layer)(emb), emb + inner @ wu, rtol=1e-4, atol=1e-4
            )


def test_the_identity_state_turns_a_trained_adapter_off_exactly():
    graph, adapter, frozen, x = _split(ROUND_1)
    run = _run(graph)
    trained = _filled(adapter)
    base = nnx.merge(*nnx.split(Denoiser()))(x)
    assert jnp.abs(run(trained, frozen, x) - base).max() > 0.1
    np.testing.assert_array_equal(run(identity(trained), frozen, x), run(adapter, frozen, x))


@pytest.mark.parametrize("config", [ROUND_1, ROUND_2])
def test_gradients_reach_every_adapter_weight_and_nothing_else(config):
    graph, adapter, frozen, x = _split(config)
    assert tree.count(adapter) + tree.count(frozen) == tree.count(
        nnx.state(nnx.merge(graph, adapter, frozen))
    )
    loss = jax.jit(jax.grad(lambda state: (nnx.merge(graph, state, frozen)(x) ** 2).sum()))
    gradients = tree.flatten(loss(_filled(adapter)))
    assert gradients.keys() == tree.flatten(adapter).keys()
    assert "attn.kernel" not in " ".join(gradients) and not silent(gradients)
    # At the start only the up weights can move: the others are multiplied by zero.
    for name, gradient in tree.flatten(loss(adapter)).items():
        assert (gradient != 0).any() == ("up" in name)


def test_each_site_has_one_generator_that_all_layers_share():
    _, adapter, _, _ = _split(ROUND_1)
    expected = []
    for site in ("attn", "mlp"):
        for name in ("down", "down_shift", "up", "up_shift"):
            expected.append(f"transformer_layers.0.{site}_adapter.generator.{name}")
    assert list(tree.flatten(adapter)) == expected


def test_a_vmap_over_stacked_adapters_is_each_on_its_own():
    graph, adapter, frozen, x = _split(ROUND_1)
    states = [_filled(adapter, seed=1), identity(adapter), _filled(adapter, seed=2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together = jax.jit(jax.vmap(lambda state: nnx.merge(graph, state, frozen)(x)))(stacked)
    for i, state in enumerate(states):
        np.testing.assert_allclose(together[i], _run(graph)(state, frozen, x), rtol=1e-4, atol=1e-4)


def test_a_decoder_is_the_later_half_or_the_up_blocks():
    config = styledrop.Config(bottleneck=2, shared=False, blocks="decoder")
    model = Denoiser(layers=4)
    styledrop.attach(model, ROUND_1, rngs=nnx.Rngs(0))
    styledrop.attach(model, config, rngs=nnx.Rngs(0))
    filled = [layer.mlp_adapter is not None for layer in model.transformer_layers]
    assert filled == [False, False, True, True]
    assert tree.count(nnx.state(model, AdapterParam)) == 4 * 2 * 8 * 2
    model = nnx.Dict(down_blocks=Denoiser(layers=1), up_blocks=Denoiser(layers=2))
    styledrop.attach(model, config, rngs=nnx.Rngs(0))
    (first,) = model.down_blocks.transformer_layers
    assert first.mlp_adapter is None and first.attn_adapter is None
    assert all(layer.attn_adapter for layer in model.up_blocks.transformer_layers)
    with pytest.raises(UserError, match="no transformer layers"):
        model = nnx.Dict(down_blocks=Denoiser(), up_blocks=nnx.Dict())
        styledrop.attach(model, config, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"blocks: found 'up', expected one of all, decoder"):
        styledrop.Config(blocks="up")


def test_attaching_again_starts_a_new_adapter():
    model = Denoiser()
    styledrop.attach(model, ROUND_1, rngs=nnx.Rngs(0))
    styledrop.attach(model, ROUND_2, rngs=nnx.Rngs(0))
    assert tree.count(nnx.state(model, AdapterParam)) == 4 * 3 * 8 * 32


SAVED = dict(
    base_name="emoji128", base_hash="abc", config=ROUND_1.to_dict(), round=2, extra={"step": 7}
)


@pytest.fixture
def saved(tmp_path):
    """A saved adapter, as a file and as the state that was saved."""
    _, adapter, _, _ = _split(ROUND_1)
    state = _filled(adapter)
    save_adapter(tmp_path / "adapter.safetensors", state, **SAVED)
    return tmp_path / "adapter.safetensors", state


def test_a_saved_adapter_comes_back(saved, tmp_path):
    path, state = saved
    file = load_adapter(path, base_hash="abc")
    assert (file.base_name, file.round, file.extra) == ("emoji128", 2, {"step": 7})
    assert styledrop.Config.from_dict(file.config) == ROUND_1
    model = Denoiser()
    styledrop.attach(model, styledrop.Config.from_dict(file.config), rngs=nnx.Rngs(3))
    for like in (nnx.state(model, AdapterParam), nnx.as_pure(nnx.state(model, AdapterParam))):
        restored = restore(like, file)
        assert jax.tree.structure(restored) == jax.tree.structure(like)
        jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(restored), state)
    save_adapter(tmp_path / "again.safetensors", restored, **SAVED)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["adapter.safetensors", "again.safetensors"]


def test_another_base_model_is_refused(saved):
    with pytest.raises(UserError, match="emoji128 .abc., but this one has hash xyz"):
        load_adapter(saved[0], base_hash="xyz")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (
            "attn_adapter.generator.down",
            None,
            "1 tensors differ: missing transformer_layers.0.attn",
        ),
        ("stray", np.zeros(2, "f"), "1 tensors differ: unexpected transformer_layers.0.stray (2,)"),
        ("mlp_adapter.generator.up", np.zeros((1, 2, 3), "f"), "has shape (1, 2, 3), expected (1,"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved, name, tensor, words):
    path, state = saved
    file = load_adapter(path)
    tensors = dict(file.tensors)
    tensors[f"transformer_layers.0.{name}"] = tensor
    if tensor is None:
        del tensors[f"transformer_layers.0.{name}"]
    with pytest.raises(UserError) as error:
        restore(state, dataclasses.replace(file, tensors=tensors))
    assert words in str(error.value) and path.name in str(error.value)


def test_many_tensors_that_do_not_fit_are_counted(saved):
    path, state = saved
    tensors = {f"stray_{i}": np.zeros(2, "f") for i in range(100)}
    with pytest.raises(UserError, match=r"108 tensors differ: missing .*; and \d+ more$") as error:
        restore(state, dataclasses.replace(load_adapter(path), tensors=tensors))
    assert len(str(error.value)) < 300


def test_damaged_and_foreign_files_are_refused_by_name(saved, tmp_path):
    data = saved[0].read_bytes()
    corrupted = bytearray(data)
    corrupted[-3] ^= 1
    save_file({"a": np.zeros(2)}, tmp_path / "lora.safetensors")
    save_file(
        {"a": np.zeros(2)},
        tmp_path / "odd.safetensors",
        metadata={"styledrop_jax": json.dumps(["x"])},
    )
    cases = {
        "absent.safetensors": (None, "no such file"),
        "cut.safetensors": (data[:-100], "cut short"),
        "head.safetensors": (data[:20], "cut short"),
        "empty.safetensors": (b"", "not a readable safetensors"),
        "flipped.safetensors": (bytes(corrupted), "checksum"),
        "renamed.safetensors": (pickle.dumps({"a": 1}), "not a readable safetensors"),
        "weights.pt": (pickle.dumps({"a": 1}), "never opened"),
        "lora.safetensors": (None, "not an adapter that styledrop_jax wrote"),
        "odd.safetensors": (None, "metadata is corrupted"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            load_adapter(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    path, state = saved
    before = path.read_bytes()

    def full(file_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="adapter.safetensors: cannot be written: the disk is full"):
        save_adapter(path, identity(state), **SAVED)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_tensors_are_named_and_plain(saved):
    tensors = load_file(saved[0])
    assert tensors["transformer_layers.0.attn_adapter.generator.down_shift"].shape == (3, 4)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}


def test_a_config_of_another_adapter_is_refused():
    with pytest.raises(UserError, match="'lora', expected 'styledrop'"):
        styledrop.Config.from_dict({"adapter": "lora", "rank": 4})
    with pytest.raises(UserError, match="does not fit"):
        styledrop.Config.from_dict({"adapter": "styledrop", "rank": 4})
