"""Guidance: what an image depends on, what guidance adds up to, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from styledrop_jax import guidance, trainable
from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterParam, Trainable, save_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.guidance import Tuned, classifier_free, mixed_branches, style_branches
from styledrop_jax.io import image_files
from styledrop_jax.pipelines import muse
from styledrop_jax.pipelines.base import Edit, SampleSettings
from styledrop_jax.sampling.maskgit import two_scale

SETTINGS = SampleSettings(steps=3, batch_size=4, temperature=2.0, lambda_a=1.5, lambda_b=2.0)
PROMPTS = ["a cat", "a red house", "a dog in watercolor", "猫", "a cat", "🦊 style"]
CONFIG = styledrop.Config(bottleneck=4, shared=True)
WHAT = Trainable(denoiser=CONFIG)

_SAMPLE = muse._sample.__wrapped__
_LOGITS = jax.jit(lambda *args: _SAMPLE(*args), static_argnums=(0, 6))


def _tuned(model, seed: int) -> Tuned:
    """The model with an adapter whose every weight is random, as if trained."""
    attached = trainable.attach(model, WHAT, rngs=nnx.Rngs(0))
    graphdef, state, rest = nnx.split(attached.denoiser, AdapterParam, ...)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), nnx.as_pure(state))
    denoiser = nnx.merge(graphdef, state, nnx.as_pure(rest))
    return guidance.tuned(model, dataclasses.replace(attached, denoiser=denoiser), WHAT)


@pytest.fixture(scope="module")
def style(tiny_muse):
    return _tuned(tiny_muse, 0)


@pytest.fixture(scope="module")
def base(tiny_muse):
    return guidance.bare(tiny_muse)


@pytest.fixture(scope="module")
def off(style):
    return dataclasses.replace(style, state=style.off)


@pytest.fixture
def as_tokens(monkeypatch):
    """`generate` yields tokens in place of their images: equal or not, without a tolerance."""
    monkeypatch.setattr(muse.Muse, "decode_tokens", lambda self, tokens, batch_size: tokens)


@pytest.fixture
def as_logits(as_tokens, monkeypatch):
    """`generate` yields the guided logits of every step, all of them for the tokens it starts
    from: [b, steps, n, v].
    """

    class Kept:
        def __init__(self, logits):
            self.logits = logits

        def reshape(self, *shape):
            return self.logits

    def decode(predict, tokens, keys, *, steps, temperature, mask_id):
        logits = jax.lax.map(lambda step: predict(tokens, step), jnp.arange(steps))
        return Kept(jnp.moveaxis(logits, 0, 1))

    monkeypatch.setattr(muse.maskgit, "decode", decode)
    monkeypatch.setattr(muse, "_sample", _LOGITS)


def _generated(branches, *, seeds=None, settings=SETTINGS, tokens=None) -> np.ndarray:
    """`tokens`, one grid a sample of a single batch, stand for an edited image's own."""
    if seeds is None:
        seeds = range(len(branches[0].prompts))
    with pytest.MonkeyPatch.context() as patch:
        start = None
        if tokens is not None:
            patch.setattr(muse.Muse, "_masked", lambda self, edit, seeds: edit.own)
            start = Edit(tokens, None, 1.0)
        chunks = list(guidance.generate(branches, seeds, settings=settings, edit=start))
    assert all(len(chunk) <= settings.batch_size for chunk in chunks)
    return np.concatenate(chunks)


def _with(**changes) -> SampleSettings:
    return dataclasses.replace(SETTINGS, **changes)


def test_an_image_is_the_same_in_any_company(style):
    images = _generated(style_branches(style, PROMPTS, SETTINGS))
    assert images.shape == (6, 8, 8, 3) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    for rows in ([5], [2, 0], [4, 3, 2, 1]):
        prompts = [PROMPTS[i] for i in rows]
        some = _generated(style_branches(style, prompts, SETTINGS), seeds=rows)
        np.testing.assert_allclose(some, images[rows], atol=1e-5, err_msg="but for its place")


def test_an_image_does_not_depend_on_the_batch_size(base):
    branches = classifier_free(base, PROMPTS, SETTINGS)
    images = _generated(branches)
    other = _generated(branches, settings=_with(batch_size=1))
    np.testing.assert_allclose(other, images, atol=1e-4)


@pytest.mark.parametrize(("cores", "sizes"), [(2, [1] * 6), (4, [2, 2, 2]), (32, [4, 2])])
def test_a_cpu_samples_one_image_at_once_for_two_cores(base, monkeypatch, cores, sizes):
    """One that is alone is there soon, in the bits that it has beside others."""
    monkeypatch.setattr(guidance.os, "cpu_count", lambda: cores)
    branches = classifier_free(base, PROMPTS, SETTINGS)
    chunks = list(guidance.generate(branches, range(6), settings=SETTINGS))
    assert [len(chunk) for chunk in chunks] == sizes
    two_devices = AbstractMesh((2, 1), ("data", "fsdp"))
    assert guidance.at_once(SETTINGS, two_devices, cpu=True) == SETTINGS.batch_size
    alone = classifier_free(base, PROMPTS[:1], SETTINGS)
    np.testing.assert_array_equal(_generated(alone, seeds=[0])[0], chunks[0][0])


def test_seeds_and_prompts_make_the_image(style, as_tokens):
    prompts = ["a cat", "a cat", "a cat", "a red house"]
    tokens = _generated(style_branches(style, prompts, SETTINGS), seeds=[7, 8, 7, 7])
    assert tokens.shape == (4, 4, 4) and tokens.min() >= 0 and tokens.max() < 64
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert (tokens[0] != tokens[1]).any() and (tokens[0] != tokens[3]).any()


def test_seeds_of_32_bits_differ_in_every_bit(base, as_tokens):
    seeds = [0, 1, 2**31, 2**32 - 1]
    tokens = _generated(classifier_free(base, ["a cat"] * 4, SETTINGS), seeds=seeds)
    assert len({grid.tobytes() for grid in tokens}) == 4


def test_one_program_generates_them_all(tiny_muse, style, as_tokens):
    _generated(style_branches(style, PROMPTS[:1], SETTINGS))
    programs = muse._sample._cache_size()
    other = _with(
        lambda_a=0.5, lambda_b=9.0, temperature=1.0, negative_prompt="a dog", lambda_ramp=True
    )
    for prompts in (PROMPTS, PROMPTS[:3]):
        _generated(style_branches(_tuned(tiny_muse, 5), prompts, other), settings=other)
    masked = np.full((2, 4, 4), tiny_muse.mask_id)
    _generated(style_branches(style, PROMPTS[:2], SETTINGS), tokens=masked)
    assert muse._sample._cache_size() == programs


def test_an_adapter_that_is_off_generates_what_the_base_does(base, off, as_tokens):
    plain = _generated(classifier_free(base, PROMPTS, SETTINGS))
    for lambda_a in (0.0, 1.5, 6.0):
        branches = style_branches(off, PROMPTS, _with(lambda_a=lambda_a))
        np.testing.assert_array_equal(_generated(branches), plain)


def test_the_adapter_and_both_scales_and_the_negative_prompt_matter(base, style, as_tokens):
    found = {_generated(classifier_free(base, PROMPTS[:4], SETTINGS)).tobytes()}
    for changes in ({}, {"lambda_a": 5.0}, {"lambda_b": 0.0}, {"negative_prompt": "a dog"}):
        settings = _with(**changes)
        branches = style_branches(style, PROMPTS[:4], settings)
        found.add(_generated(branches, settings=settings).tobytes())
    assert len(found) == 5


def test_guided_logits_are_those_of_separate_forwards(tiny_muse, base, style, as_logits):
    settings = _with(negative_prompt="a dog", lambda_ramp=True)
    grid = np.random.default_rng(0).integers(0, 64, (4, 4, 4)).astype(np.int32)
    grid[:, 1:3] = tiny_muse.mask_id
    prompts = PROMPTS[:4]
    ours = _generated(style_branches(style, prompts, settings), settings=settings, tokens=grid)
    plain = _generated(classifier_free(base, prompts, settings), settings=settings, tokens=grid)

    with_adapter = nnx.merge(style.graphdef, style.state, style.frozen)
    forward = nnx.jit(lambda denoiser, *inputs: denoiser(*inputs).reshape(4, 16, 64))
    micro = jnp.tile(tiny_muse.micro, (4, 1))
    text = tiny_muse.encode_text(prompts)
    negative = tiny_muse.encode_text(["a dog"] * 4)
    adapted = forward(with_adapter, grid, *text, micro)
    bare = forward(tiny_muse.denoiser, grid, *text, micro)
    without = forward(tiny_muse.denoiser, grid, *negative, micro)
    assert np.abs(adapted - bare).max() > 0.1 and np.abs(bare - without).max() > 0.01
    for step in range(3):
        a = 1.5 * (step + 1) / 3
        b = 2.0 * (step + 1) / 3
        expected = two_scale(adapted, bare, without, lambda_a=a, lambda_b=b)
        np.testing.assert_allclose(ours[:, step], expected, atol=1e-3, rtol=1e-4)
        free = bare + b * (bare - without)
        np.testing.assert_allclose(plain[:, step], free, atol=1e-3, rtol=1e-4)


def test_a_mix_is_the_weighted_sum_of_both_styles(tiny_muse, style, as_logits):
    subject = _tuned(tiny_muse, 1)
    contents = ["a house"] * 4
    first = _generated(style_branches(style, PROMPTS[:4], SETTINGS))
    second = _generated(style_branches(subject, contents, SETTINGS))
    assert np.abs(first - second).max() > 1
    for gamma in (0.0, 0.6, 1.0):
        branches = mixed_branches(
            style, subject, PROMPTS[:4], contents, gamma=gamma, settings=SETTINGS
        )
        expected = (1 - gamma) * first + gamma * second
        np.testing.assert_allclose(_generated(branches), expected, atol=1e-3, rtol=1e-4)


def test_tokens_that_are_given_stay(tiny_muse, style, as_tokens):
    given = np.random.default_rng(0).integers(0, 64, (6, 4, 4)).astype(np.int32)
    holes = np.random.default_rng(1).random((6, 4, 4)) < 0.5
    holes[5] = False
    start = np.where(holes, tiny_muse.mask_id, given)
    settings = _with(batch_size=6)
    tokens = _generated(style_branches(style, PROMPTS, settings), settings=settings, tokens=start)
    np.testing.assert_array_equal(tokens[~holes], given[~holes])
    assert tokens.max() < 64, "every hole is filled"
    assert (tokens[holes] != given[holes]).any()


def test_an_adapter_file_generates_what_was_saved(tiny_muse, style, as_tokens, tmp_path):
    path = tmp_path / "adapter.safetensors"
    fields = {"base_name": "tiny", "config": WHAT.to_dict(), "round": 1}
    state = {"denoiser": style.state}
    save_adapter(path, state, base_hash=tiny_muse.base_hash, **fields)
    loaded = guidance.load(tiny_muse, path)
    np.testing.assert_array_equal(
        _generated(style_branches(loaded, PROMPTS, SETTINGS)),
        _generated(style_branches(style, PROMPTS, SETTINGS)),
    )
    layers = tiny_muse.denoiser.transformer_layers
    assert all(layer.attn_adapter is None for layer in layers), "the base stays bare"
    save_adapter(path, state, base_hash="f" * 64, **fields)
    with pytest.raises(UserError, match="trained on base model"):
        guidance.load(tiny_muse, path)
    wider = Trainable(denoiser=styledrop.Config(bottleneck=8)).to_dict()
    save_adapter(path, state, base_hash=tiny_muse.base_hash, **fields | {"config": wider})
    with pytest.raises(UserError, match="does not fit"):
        guidance.load(tiny_muse, path)


def test_scales_are_constant_or_rise_to_their_value():
    np.testing.assert_allclose(SETTINGS.scales(), [[1.5] * 3, [2.0] * 3])
    rising = _with(lambda_ramp=True).scales()
    np.testing.assert_allclose(rising, [[0.5, 1, 1.5], [2 / 3, 4 / 3, 2]], rtol=1e-6)


# -------------------------------------------------------------- files


def _files(style, folder, count, settings=SETTINGS):
    paths = [folder / f"{i}.png" for i in range(count)]
    guidance.generate_files(
        "sampling",
        paths,
        [PROMPTS[i] for i in range(count)],
        range(count),
        lambda texts: style_branches(style, texts, settings),
        base=style.base,
        settings=settings,
    )
    return [image_files.read_image(path) for path in paths]


@pytest.mark.parametrize("lost", [[0], [3], [1, 2], [4], [0, 5]])
def test_images_that_are_lost_come_back_to_the_bit(style, tmp_path, monkeypatch, lost):
    settings = _with(batch_size=2)
    monkeypatch.setattr(guidance.os, "cpu_count", lambda: 4)
    before = _files(style, tmp_path, 6, settings)
    generated = []
    generate = muse.Muse.generate

    def counted(self, groups, seeds, **more):
        generated.append(list(seeds))
        return generate(self, groups, seeds, **more)

    monkeypatch.setattr(muse.Muse, "generate", counted)
    for i in lost:
        (tmp_path / f"{i}.png").unlink()
    np.testing.assert_array_equal(_files(style, tmp_path, 6, settings), before)
    chunks = sorted({i // 2 for i in lost})
    assert generated == [[2 * chunk, 2 * chunk + 1] for chunk in chunks], "in the same company"
    generated.clear()
    _files(style, tmp_path, 6, settings)
    assert not generated, "nothing is missing"
