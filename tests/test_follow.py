"""Drawings that follow a picture: the invariants of attention control with a whole Stable Diffusion."""

import jax
import numpy as np
import pytest
import tiny

from styledrop_jax import guidance
from styledrop_jax.pipelines import load, stable_diffusion
from styledrop_jax.pipelines.base import Edit, SampleSettings

SETTINGS = SampleSettings(steps=3, guidance="classifier_free", lambda_b=2.0)
OLD, NEW, SEEDS = "a cat in red", "a house in red", [3, 4]


@pytest.fixture(scope="module")
def model():
    return load.load(str(tiny.stable_diffusion()))


@pytest.fixture(scope="module")
def own(model):
    return model.encode_images(np.random.default_rng(0).random((1, 16, 16, 3), np.float32))


def _draw(model, own, *, share, prompt=NEW, tokens=None, batch_size=2, strength=1.0):
    whole = np.ones(model.text.config.max_position_embeddings, bool)
    follow = guidance.Follow(own, OLD, whole if tokens is None else tokens, share, strength)
    branches = guidance.base_branches(model, [prompt] * len(SEEDS), SETTINGS)
    return np.concatenate(
        list(
            guidance.generate(
                branches, SEEDS, settings=SETTINGS, batch_size=batch_size, follow=follow
            )
        )
    )


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_control_of_no_step_or_of_no_other_prompt_is_none(model, own):
    def free(prompt, strength=1.0):
        branches = guidance.base_branches(model, [prompt] * len(SEEDS), SETTINGS)
        start = Edit(jax.tree.map(lambda x: np.repeat(x, len(SEEDS), axis=0), own), None, strength)
        return next(guidance.generate(branches, SEEDS, settings=SETTINGS, batch_size=2, edit=start))

    new, old = free(NEW), free(OLD)
    assert np.abs(new - old).max() > 1e-2 and np.abs(new[0] - new[1]).max() > 1e-2
    _close(_draw(model, own, share=0.0), new)
    _close(_draw(model, own, share=1.0, prompt=OLD), old)
    _close(_draw(model, own, share=0.0, strength=0.67), free(NEW, 0.67))
    nowhere = np.zeros(model.text.config.max_position_embeddings, bool)
    _close(_draw(model, own, share=1.0, tokens=nowhere), new)


def test_each_drawing_follows_the_picture_for_its_share_by_one_program(model, own):
    drawn = [_draw(model, own, share=share) for share in (0.0, 1 / 3, 1.0)]
    assert min(np.abs(a - b).max() for i, a in enumerate(drawn) for b in drawn[:i]) > 1e-3
    programs = stable_diffusion._sample._cache_size()
    some = np.arange(model.text.config.max_position_embeddings) < 3
    partly = _draw(model, own, share=0.5, tokens=some, batch_size=3)
    assert (
        stable_diffusion._sample._cache_size() == programs
        and np.abs(partly - drawn[0]).max() > 1e-3
    )
    other = own._replace(mean=-own.mean)
    assert np.abs(_draw(model, other, share=1.0) - drawn[-1]).max() > 1e-3
