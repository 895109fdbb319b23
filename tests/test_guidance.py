"""Drawing: what an image depends on, what guidance adds up to, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from styledrop_jax import guidance, trainable
from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterParam, save_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.guidance import Adapted, base_branches, mixed_branches, style_branches
from styledrop_jax.pipelines import muse
from styledrop_jax.pipelines.base import Edit, SampleSettings
from styledrop_jax.sampling.maskgit import two_scale

BATCH = 4
SETTINGS = SampleSettings(steps=3, temperature=2.0, lambda_a=1.5, lambda_b=2.0)
PROMPTS = ["a cat", "a red house", "a dog in watercolor", "猫", "a cat", "🦊 style"]
CONFIG = styledrop.Config(bottleneck=4, shared=True)


_SAMPLE = muse._sample.__wrapped__
_LOGITS = jax.jit(lambda *args: _SAMPLE(*args), static_argnums=(0, 6))
PLAN = trainable.Trainable(denoiser=CONFIG)


def _adapted(model, seed: int) -> Adapted:
    """The model with an adapter whose every weight is random, as if trained."""
    tuned = trainable.attach(model, PLAN, rngs=nnx.Rngs(0))
    graphdef, state, rest = nnx.split(tuned.denoiser, AdapterParam, ...)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), nnx.as_pure(state))
    tuned = dataclasses.replace(tuned, denoiser=nnx.merge(graphdef, state, nnx.as_pure(rest)))
    return guidance.adapted(model, tuned, PLAN)


@pytest.fixture(scope="module")
def style(tiny_muse):
    return _adapted(tiny_muse, 0)


@pytest.fixture(scope="module")
def off(style):
    return dataclasses.replace(style, state=style.off)


@pytest.fixture
def as_tokens(monkeypatch):
    """`draw` yields tokens in place of their pictures: equal or not, without a tolerance."""
    monkeypatch.setattr(muse.Muse, "decode_tokens", lambda self, tokens, batch_size: tokens)


@pytest.fixture
def as_logits(as_tokens, monkeypatch):
    """`draw` yields the guided logits of every step, all of them for the tokens it starts from: [b, steps, n, v]."""

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


def _draw(
    model, branches, *, seeds=None, settings=SETTINGS, batch_size=BATCH, tokens=None
) -> np.ndarray:
    seeds = range(len(branches[0].prompts)) if seeds is None else seeds
    """`tokens`, one grid a drawing of a single batch, stand for an edited picture's own."""
    with pytest.MonkeyPatch.context() as patch:
        if tokens is not None:
            patch.setattr(muse.Muse, "_masked", lambda self, edit, seeds: edit.own)
            tokens = Edit(tokens, None, 1.0)
        chunks = list(
            guidance.generate(
                branches, seeds, settings=settings, batch_size=batch_size, edit=tokens
            )
        )
    assert all(len(chunk) <= batch_size for chunk in chunks)
    return np.concatenate(chunks)


def _with(**changes) -> SampleSettings:
    return dataclasses.replace(SETTINGS, **changes)


def test_an_image_is_the_same_in_any_company(tiny_muse, style):
    images = _draw(tiny_muse, style_branches(style, PROMPTS, SETTINGS))
    assert (
        images.shape == (6, 8, 8, 3)
        and images.dtype == np.float32
        and images.min() >= 0
        and images.max() <= 1
    )
    for rows in ([5], [2, 0], [4, 3, 2, 1]):
        some = _draw(
            tiny_muse, style_branches(style, [PROMPTS[i] for i in rows], SETTINGS), seeds=rows
        )
        np.testing.assert_array_equal(some, images[rows])


def test_an_image_does_not_depend_on_the_batch_size(tiny_muse):
    branches = base_branches(tiny_muse, PROMPTS, SETTINGS)
    images, other = _draw(tiny_muse, branches), _draw(tiny_muse, branches, batch_size=3)
    np.testing.assert_allclose(other, images, atol=1e-4)


def test_seeds_and_prompts_make_the_image(tiny_muse, style, as_tokens):
    prompts = ["a cat", "a cat", "a cat", "a red house"]
    tokens = _draw(tiny_muse, style_branches(style, prompts, SETTINGS), seeds=[7, 8, 7, 7])
    assert tokens.shape == (4, 4, 4) and tokens.min() >= 0 and tokens.max() < 64
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert (tokens[0] != tokens[1]).any() and (tokens[0] != tokens[3]).any()


def test_one_program_draws_them_all(tiny_muse, style, as_tokens):
    _draw(tiny_muse, style_branches(style, PROMPTS[:1], SETTINGS))
    programs = muse._sample._cache_size()
    other = _with(
        lambda_a=0.5, lambda_b=9.0, temperature=1.0, negative_prompt="a dog", lambda_ramp=True
    )
    for prompts in (PROMPTS, PROMPTS[:3]):
        _draw(tiny_muse, style_branches(_adapted(tiny_muse, 5), prompts, other), settings=other)
    masked = np.full((2, 4, 4), tiny_muse.mask_id)
    _draw(tiny_muse, style_branches(style, PROMPTS[:2], SETTINGS), tokens=masked)
    assert muse._sample._cache_size() == programs


def test_an_adapter_that_is_off_draws_what_the_base_draws(tiny_muse, off, as_tokens):
    base = _draw(tiny_muse, base_branches(tiny_muse, PROMPTS, SETTINGS))
    for lambda_a in (0.0, 1.5, 6.0):
        settings = _with(lambda_a=lambda_a)
        np.testing.assert_array_equal(
            _draw(tiny_muse, style_branches(off, PROMPTS, settings)), base
        )


def test_the_adapter_and_both_scales_and_the_negative_prompt_matter(tiny_muse, style, as_tokens):
    variants = [_with(), _with(lambda_a=5.0), _with(lambda_b=0.0), _with(negative_prompt="a dog")]
    drawn = [_draw(tiny_muse, style_branches(style, PROMPTS[:4], v), settings=v) for v in variants]
    drawn.append(_draw(tiny_muse, base_branches(tiny_muse, PROMPTS[:4], SETTINGS)))
    assert len({tokens.tobytes() for tokens in drawn}) == 5


def test_guided_logits_are_those_of_separate_forwards(tiny_muse, style, as_logits):
    settings = _with(negative_prompt="a dog", lambda_ramp=True)
    grid = np.random.default_rng(0).integers(0, 64, (4, 4, 4)).astype(np.int32)
    grid[:, 1:3] = tiny_muse.mask_id
    ours = _draw(
        tiny_muse, style_branches(style, PROMPTS[:4], settings), settings=settings, tokens=grid
    )
    plain = _draw(
        tiny_muse, base_branches(tiny_muse, PROMPTS[:4], settings), settings=settings, tokens=grid
    )

    with_adapter = nnx.merge(style.graphdef, style.state, style.frozen)
    forward = nnx.jit(lambda denoiser, *inputs: denoiser(*inputs).reshape(4, 16, 64))
    micro = jnp.tile(tiny_muse.micro, (4, 1))
    text, negative = tiny_muse.encode_text(PROMPTS[:4]), tiny_muse.encode_text(["a dog"] * 4)
    adapted = forward(with_adapter, grid, *text, micro)
    base = forward(tiny_muse.denoiser, grid, *text, micro)
    without = forward(tiny_muse.denoiser, grid, *negative, micro)
    assert np.abs(adapted - base).max() > 0.1 and np.abs(base - without).max() > 0.01
    for step in range(3):
        a, b = 1.5 * (step + 1) / 3, 2.0 * (step + 1) / 3
        expected = two_scale(adapted, base, without, lambda_a=a, lambda_b=b)
        np.testing.assert_allclose(ours[:, step], expected, atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(
            plain[:, step], base + b * (base - without), atol=1e-3, rtol=1e-4
        )


def test_a_mix_is_the_weighted_sum_of_both_styles(tiny_muse, style, as_logits):
    subject, contents = _adapted(tiny_muse, 1), ["a house"] * 4
    first = _draw(tiny_muse, style_branches(style, PROMPTS[:4], SETTINGS))
    second = _draw(tiny_muse, style_branches(subject, contents, SETTINGS))
    assert np.abs(first - second).max() > 1
    for gamma in (0.0, 0.6, 1.0):
        branches = mixed_branches(
            style, subject, PROMPTS[:4], contents, gamma=gamma, settings=SETTINGS
        )
        mixed = _draw(tiny_muse, branches)
        np.testing.assert_allclose(
            mixed, (1 - gamma) * first + gamma * second, atol=1e-3, rtol=1e-4
        )


def test_tokens_that_are_given_stay(tiny_muse, style, as_tokens):
    given = np.random.default_rng(0).integers(0, 64, (6, 4, 4)).astype(np.int32)
    holes = np.random.default_rng(1).random((6, 4, 4)) < 0.5
    holes[5] = False
    start = np.where(holes, tiny_muse.mask_id, given)
    tokens = _draw(tiny_muse, style_branches(style, PROMPTS, SETTINGS), tokens=start, batch_size=6)
    np.testing.assert_array_equal(tokens[~holes], given[~holes])
    assert tokens.max() < 64, "every hole is filled"
    assert (tokens[holes] != given[holes]).any()


def test_an_adapter_file_draws_what_was_saved(tiny_muse, style, as_tokens, tmp_path):
    path = tmp_path / "adapter.safetensors"
    fields = {"base_name": "tiny", "config": PLAN.to_dict(), "round": 1}
    state = {"denoiser": style.state}
    save_adapter(path, state, base_hash=tiny_muse.base_hash, **fields)
    loaded = guidance.load(tiny_muse, path)
    np.testing.assert_array_equal(
        _draw(tiny_muse, style_branches(loaded, PROMPTS, SETTINGS)),
        _draw(tiny_muse, style_branches(style, PROMPTS, SETTINGS)),
    )
    assert all(layer.attn_adapter is None for layer in tiny_muse.denoiser.transformer_layers), (
        "the base stays bare"
    )
    save_adapter(path, state, base_hash="f" * 64, **fields)
    with pytest.raises(UserError, match="trained on base model"):
        guidance.load(tiny_muse, path)
    wider = trainable.Trainable(denoiser=styledrop.Config(bottleneck=8)).to_dict()
    save_adapter(path, state, base_hash=tiny_muse.base_hash, **fields | {"config": wider})
    with pytest.raises(UserError, match="does not fit"):
        guidance.load(tiny_muse, path)


def test_scales_are_constant_or_rise_to_their_value():
    np.testing.assert_allclose(SETTINGS.scales(), [[1.5] * 3, [2.0] * 3])
    np.testing.assert_allclose(
        _with(lambda_ramp=True).scales(), [[0.5, 1, 1.5], [2 / 3, 4 / 3, 2]], rtol=1e-6
    )
