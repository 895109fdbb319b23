"""Control of cross-attention: whose maps are used where, and which prompts align."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styledrop_jax.sampling.attention_control import aligned_tokens, replacement

STEPS = 4
CONTENT = np.array([False, False, True, True, False])


def _controlled(weights, *, step, branch=0, tokens=CONTENT, share=0.5, start=0):
    settings = {"share": share, "steps": STEPS, "start": start}
    control = replacement(tokens=tokens, branches=[True, False], **settings)
    place = "mid_block.attn2"
    return np.asarray(control(jnp.asarray(weights), place, jnp.int32(step), jnp.int32(branch)))


@pytest.fixture(scope="module")
def weights():
    two_pairs = jax.random.normal(jax.random.key(0), (4, 2, 3, 5))
    return np.asarray(jax.nn.softmax(two_pairs))


def test_at_the_words_of_the_content_the_maps_are_the_sources(weights):
    found = _controlled(weights, step=0)
    np.testing.assert_array_equal(found[1::2][..., CONTENT], weights[0::2][..., CONTENT])
    np.testing.assert_array_equal(found[1::2][..., ~CONTENT], weights[1::2][..., ~CONTENT])
    np.testing.assert_array_equal(found[0::2], weights[0::2])
    everywhere = _controlled(weights, step=0, tokens=np.ones(5, bool))  # Prompt-to-Prompt
    np.testing.assert_array_equal(everywhere[1::2], weights[0::2])


@pytest.mark.parametrize(
    ("share", "start", "controlled"),
    [
        (0.0, 0, []),
        (0.25, 0, [0]),
        (0.5, 0, [0, 1]),
        (0.7, 0, [0, 1, 2]),
        (1.0, 0, [0, 1, 2, 3]),
        (0.0, 2, []),
        (0.5, 2, [2]),
        (1.0, 2, [2, 3]),
    ],
)
def test_a_share_of_the_steps_is_controlled_in_branches_of_the_prompt(
    share, start, controlled, weights
):
    for step in range(start, STEPS):
        found = _controlled(weights, step=step, share=share, start=start)
        assert (found != weights).any() == (step in controlled)
        other = _controlled(weights, step=step, branch=1, share=share)
        np.testing.assert_array_equal(other, weights)


def test_prompts_align_where_a_part_is_at_one_place_of_both():
    source = np.array([0, 5, 6, 7, 8, 9])
    target = np.array([0, 6, 5, 7, 8, 9])
    found = aligned_tokens(source, target, np.array([7, 8]))
    assert found.tolist() == [False, False, False, True, True, False]
    repeated = np.array([0, 7, 7, 9])
    assert aligned_tokens(repeated, repeated, np.array([7])).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ([0, 5, 7, 8, 9], [0, 5, 5, 7, 8, 9]),
        ([0, 5, 7, 8, 9], [0, 7, 8, 5, 9]),
        ([0, 5, 5, 5, 9], [0, 5, 5, 5, 9]),
    ],
    ids=["longer", "elsewhere", "cut"],
)
def test_other_prompts_do_not_align(source, target):
    assert aligned_tokens(np.array(source), np.array(target), np.array([7, 8])) is None
