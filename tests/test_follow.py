"""Samples that follow an image: the invariants of attention control with a Stable Diffusion."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from styledrop_jax import guidance
from styledrop_jax.pipelines import load
from styledrop_jax.pipelines.base import Edit, SampleSettings
from styledrop_jax.pipelines.stable_diffusion_sampling import sample_latents

SETTINGS = SampleSettings(steps=3, batch_size=2, guidance="classifier_free", lambda_b=2.0)
OLD = "a cat in red"
NEW = "a house in red"
SEEDS = [3, 4]


@pytest.fixture(scope="module")
def model():
    return load.load(str(tiny.stable_diffusion()))


@pytest.fixture(scope="module")
def own(model):
    return model.encode_images(np.random.default_rng(0).random((1, 16, 16, 3), np.float32))


def _branches(model, prompt):
    return guidance.classifier_free(guidance.bare(model), [prompt] * len(SEEDS), SETTINGS)


def _following(model, own, *, share, prompt=NEW, tokens=None, batch_size=2, strength=1.0):
    if tokens is None:
        tokens = np.ones(model.text.config.max_position_embeddings, bool)
    settings = dataclasses.replace(SETTINGS, batch_size=batch_size)
    follow = guidance.Follow(own, OLD, tokens, share, strength)
    chunks = guidance.generate(_branches(model, prompt), SEEDS, settings=settings, follow=follow)
    return np.concatenate(list(chunks))


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_control_of_no_step_or_of_no_other_prompt_is_none(model, own):
    def free(prompt, strength=1.0):
        start = Edit(jax.tree.map(lambda x: np.repeat(x, len(SEEDS), axis=0), own), None, strength)
        branches = _branches(model, prompt)
        chunks = guidance.generate(branches, SEEDS, settings=SETTINGS, edit=start)
        return np.concatenate(list(chunks))

    new = free(NEW)
    old = free(OLD)
    assert np.abs(new - old).max() > 1e-2 and np.abs(new[0] - new[1]).max() > 1e-2
    _close(_following(model, own, share=0.0), new)
    _close(_following(model, own, share=1.0, prompt=OLD), old)
    _close(_following(model, own, share=0.0, strength=0.67), free(NEW, 0.67))
    nowhere = np.zeros(model.text.config.max_position_embeddings, bool)
    _close(_following(model, own, share=1.0, tokens=nowhere), new)


def test_each_sample_follows_the_image_for_its_share_by_one_program(model, own):
    found = [_following(model, own, share=share) for share in (0.0, 1 / 3, 1.0)]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:i])
    programs = sample_latents._cache_size()
    some = np.arange(model.text.config.max_position_embeddings) < 3
    partly = _following(model, own, share=0.5, tokens=some, batch_size=3)
    assert sample_latents._cache_size() == programs
    assert np.abs(partly - found[0]).max() > 1e-3
    other = own._replace(mean=-own.mean)
    assert np.abs(_following(model, other, share=1.0) - found[-1]).max() > 1e-3
