"""Parallel decoding against aMUSEd's scheduler and the laws of its randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styledrop_jax.sampling import maskgit
from styledrop_jax.sampling.masking import masked_after_step

MASK = 40  # not a multiple of the blocks of the vocabulary


def _keys(b, seed=0):
    return jax.random.split(jax.random.key(seed), b)


def _logits(tokens, step):
    """A model without weights, which looks at the position, the token before it, and the step."""
    v = jnp.arange(MASK)
    position = 1.0 + jnp.arange(tokens.shape[1])[:, None]
    neighbour = jnp.roll(tokens, 1, axis=1)[..., None]
    return jnp.sin(v * position + neighbour + step)


def _trace(tokens, keys, predict=_logits, **kwargs):
    """The tokens that each step starts from, and the result."""
    seen = []

    def record(t, k):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), t, ordered=True)
        return predict(t, k)

    out = jax.jit(lambda t, k: maskgit.decode(record, t, k, mask_id=MASK, **kwargs))(tokens, keys)
    jax.effects_barrier()
    return seen, np.asarray(out)


def _reference_trace(tokens, steps, logits, temperatures=None):
    torch = pytest.importorskip("torch")
    from diffusers import AmusedScheduler

    scheduler = AmusedScheduler(mask_token_id=MASK)
    scheduler.set_timesteps(steps)
    if temperatures is not None:
        scheduler.temperatures = torch.tensor(temperatures)
    torch.manual_seed(0)
    sample = torch.tensor(np.asarray(tokens), dtype=torch.long)
    logits = torch.tensor(np.asarray(logits))
    ratio = (sample[0] == MASK).float().mean().item()
    seen = []
    for timestep in scheduler.timesteps:
        seen.append(sample.numpy())
        out = scheduler.step(logits, timestep, sample, starting_mask_ratio=ratio)
        sample = out.prev_sample
    return seen


@pytest.mark.parametrize("masked", [256, 97])
def test_unmasks_as_many_tokens_a_step_as_the_reference(masked):
    tokens = np.where(np.arange(256) < masked, MASK, 3)[None]
    logits = np.random.default_rng(0).normal(size=(1, 256, MASK)).astype("f")
    after = jax.jit(masked_after_step)
    for steps in (1, 2, 3, 5, 8, 12, 18, 24, 36):
        reference = [int((t == MASK).sum()) for t in _reference_trace(tokens, steps, logits)]
        ours = [masked]
        for step in range(steps - 1):
            now = np.array(ours[-1:])
            ours.append(int(after(np.array([masked]), now, step=step, steps=steps)[0]))
        assert ours == reference


def test_decoding_unmasks_as_the_schedule_says():
    tokens = jnp.where(jnp.arange(32) < jnp.array([[32], [17], [3]]), MASK, 3)
    seen, out = _trace(tokens, _keys(3), steps=5, temperature=4.5)
    counts = [(t == MASK).sum(1).tolist() for t in [*seen, out]]
    assert counts == [[32, 17, 3], [30, 16, 2], [25, 13, 1], [18, 9, 1], [9, 5, 1], [0, 0, 0]]


def test_which_tokens_stay_masked_follows_the_reference_law():
    b = 4000
    n = 8
    one = np.linspace(0, 6, n, dtype="f")[:, None] * (np.arange(MASK) == 7)
    logits = np.tile(one, (b, 1, 1)).astype("f")
    tokens = jnp.full((b, n), MASK)
    ours, _ = _trace(tokens, _keys(b), lambda t, k: jnp.asarray(logits), steps=2, temperature=3.0)
    reference = _reference_trace(tokens, 2, logits, temperatures=[1.5, 0.0])
    # Shares of 4000 images: five standard errors of a difference are below 0.06.
    np.testing.assert_allclose((ours[1] == MASK).mean(0), (reference[1] == MASK).mean(0), atol=0.06)
    np.testing.assert_allclose((ours[1] == 7).mean(0), (reference[1] == 7).mean(0), atol=0.06)


def _everywhere(logits):
    """A model with the same logits at every position."""
    return lambda tokens, step: jnp.tile(logits, (*tokens.shape, 1))


def test_tokens_are_sampled_from_the_softmax():
    logits = jax.random.normal(jax.random.key(1), (MASK,)) * 2
    tokens = jnp.full((50, 400), MASK)
    _, out = _trace(tokens, _keys(50), _everywhere(logits), steps=1, temperature=1.0)
    shares = np.bincount(np.asarray(out).ravel(), minlength=MASK) / out.size
    expected = np.asarray(jax.nn.softmax(logits))
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected / out.size) + 1e-4).all()


def test_an_impossible_token_is_never_sampled():
    tokens = jnp.full((20, 500), MASK)
    allowed = jnp.where(jnp.arange(MASK) % 7 == 5, 0.0, -jnp.inf)
    _, out = _trace(tokens, _keys(20), _everywhere(allowed), steps=1, temperature=1.0)
    assert (out % 7 == 5).all()


def test_at_temperature_zero_the_most_confident_are_kept_first():
    # Equally likely tokens: the fewer there are, the more confident is the model.
    choices = np.array([3, 9, 5, 7, 4, 8, 2, 6])
    logits = jnp.asarray(np.where(np.arange(MASK) < choices[:, None], 0, -np.inf))[None]
    tokens = jnp.full((1, 8), MASK)
    seen, _ = _trace(tokens, _keys(1), lambda t, k: logits, steps=8, temperature=0.0)
    for tokens in seen[1:]:
        masked = tokens[0] == MASK
        assert choices[~masked].max() < choices[masked].min()


def test_given_tokens_stay():
    tokens = np.random.default_rng(0).integers(0, MASK, (4, 30))
    mask = np.arange(30) < np.array([[0], [1], [7], [30]])
    _, out = _trace(np.where(mask, MASK, tokens), _keys(4), steps=12, temperature=4.5)
    assert (np.where(mask, tokens, out) == tokens).all()
    assert (out != MASK).all()


def test_an_image_does_not_depend_on_its_batch():
    keys = _keys(5)
    tokens = jnp.full((5, 32), MASK).at[1, :20].set(3)
    settings = {"steps": 6, "temperature": 4.5, "mask_id": MASK}
    run = jax.jit(functools.partial(maskgit.decode, _logits, **settings))
    together = run(tokens, keys)
    for i in (0, 1, 4):
        assert (run(tokens[i : i + 1], keys[i : i + 1])[0] == together[i]).all()


def test_one_program_for_every_step_count_and_temperature():
    traces = []

    @jax.jit
    def run(tokens, keys, steps, temperature):
        traces.append(1)
        settings = {"steps": steps, "temperature": temperature, "mask_id": MASK}
        return maskgit.decode(_logits, tokens, keys, **settings)

    tokens = jnp.full((2, 16), MASK)
    for steps, temperature in ((3, 4.5), (8, 0.0)):
        _, expected = _trace(tokens, _keys(2), steps=steps, temperature=temperature)
        assert (run(tokens, _keys(2), steps, temperature) == expected).all()
    assert len(traces) == 1


def test_two_scale_is_equation_4_and_classifier_free_guidance_without_an_adapter():
    adapted, base, negative = np.random.default_rng(0).normal(size=(3, 2, 4, 8)).astype("f")
    expected = adapted + 2 * (adapted - base) + 5 * (base - negative)
    found = maskgit.two_scale(adapted, base, negative, lambda_a=2, lambda_b=5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    free = negative + 6 * (base - negative)
    found = maskgit.two_scale(base, base, negative, lambda_a=3, lambda_b=5)
    np.testing.assert_allclose(found, free, atol=1e-5)


def test_mix_goes_from_style_to_subject():
    style, subject = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("f")
    np.testing.assert_array_equal(maskgit.mix(style, subject, gamma=0.0), style)
    np.testing.assert_array_equal(maskgit.mix(style, subject, gamma=1.0), subject)
    found = maskgit.mix(style, subject, gamma=0.6)
    np.testing.assert_allclose(found, 0.4 * style + 0.6 * subject, rtol=1e-5)


def test_the_ramp_ends_at_its_end():
    scales = [float(maskgit.linear_ramp(0.0, 4.0, step=k, steps=4)) for k in range(4)]
    assert scales == [1.0, 2.0, 3.0, 4.0]
    assert float(maskgit.linear_ramp(0.0, 4.0, step=0, steps=1)) == 4.0


def test_edit_masks_the_share_of_the_region_and_nothing_else():
    tokens = np.random.default_rng(0).integers(0, MASK, (2, 40))
    region = np.stack([np.arange(40) < 20, np.arange(40) >= 10])
    edit = jax.jit(functools.partial(maskgit.mask_for_edit, mask_id=MASK))
    edited = np.asarray(edit(tokens, _keys(2), region=region, strength=0.3))
    assert (edited == MASK).sum(1).tolist() == [6, 9]
    assert (np.where(region, tokens, edited) == tokens).all()
    assert (edit(tokens, _keys(2), region=np.ones_like(region), strength=0.0) == tokens).all()
    assert (maskgit.mask_for_edit(tokens, _keys(2), mask_id=MASK) == MASK).all()
