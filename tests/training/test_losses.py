"""The losses against NumPy, PyTorch and the laws of their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styledrop_jax.sampling.masking import cosine_mask_rate, mask_tokens
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.training.losses import (
    denoising_loss,
    masked_token_loss,
    sample_noise,
    unmix_loss,
)


def _example(b=3, n=10, v=17):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(b, n, v)).astype("f") * 3
    targets = rng.integers(0, v, (b, n))
    return logits, targets, np.arange(n) < np.array([4, 1, 10])[:, None]


def test_loss_is_the_mean_cross_entropy_of_each_examples_masked_tokens():
    logits, targets, mask = _example()
    loss, metrics = masked_token_loss(logits, targets, mask)
    for i in range(3):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum(-1, keepdims=True)
        expected = -np.log(p[np.arange(10), targets[i]])[mask[i]].mean()
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)
        right = (logits[i].argmax(-1) == targets[i])[mask[i]].mean()
        np.testing.assert_allclose(metrics["accuracy"][i], right, rtol=1e-6)
    np.testing.assert_allclose(metrics["mask_rate"], [0.4, 0.1, 1.0], rtol=1e-6)


def test_loss_agrees_with_torch_with_and_without_smoothing():
    import torch

    logits, targets, mask = _example()
    for smoothing in (0.0, 0.1):
        loss, metrics = masked_token_loss(logits, targets, mask, label_smoothing=smoothing)
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits).flatten(0, 1),
            torch.tensor(np.where(mask, targets, -100), dtype=torch.long).flatten(),
            label_smoothing=smoothing,
        )
        weights = metrics["mask_rate"] / metrics["mask_rate"].sum()
        np.testing.assert_allclose((loss * weights).sum(), expected.item(), rtol=1e-5)


def test_unmasked_tokens_get_no_gradient():
    logits, targets, mask = _example()
    gradient = jax.jit(jax.grad(lambda x: masked_token_loss(x, targets, mask)[0].sum()))
    gradient = np.abs(gradient(logits)).sum(-1)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] > 0).all()


def test_nothing_masked_is_no_loss():
    logits, targets, mask = _example()
    loss, _ = masked_token_loss(logits, targets, np.zeros_like(mask))
    assert (loss == 0).all()


def test_mask_rate_follows_the_cosine_law():
    b, n = 4000, 64
    tokens = jnp.ones((b, n), jnp.int32)
    inputs, mask = mask_tokens(tokens, jax.random.split(jax.random.key(0), b), mask_id=99)
    assert ((inputs == 99) == mask).all() and (jnp.where(mask, 1, inputs) == tokens).all()
    rates = np.asarray(mask.mean(1))
    assert rates.min() >= 1 / n
    expected = np.sort(cosine_mask_rate((np.arange(b) + 0.5) / b))
    np.testing.assert_allclose(np.sort(rates)[:: b // 20], expected[:: b // 20], atol=0.04)
    # Every position is as likely as any other.
    np.testing.assert_allclose(np.asarray(mask.mean(0)), 2 / np.pi, atol=0.05)


def test_an_examples_mask_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = jnp.ones((4, 20), jnp.int32)
    _, together = mask_tokens(tokens, keys, mask_id=99)
    _, alone = mask_tokens(tokens[2:3], keys[2:3], mask_id=99)
    assert (alone[0] == together[2]).all()


def test_timesteps_are_uniform_and_the_offset_moves_whole_channels():
    schedule = NoiseSchedule(num_train_timesteps=10)
    shape = (4, 4, 2)
    keys = jax.random.split(jax.random.key(0), 4000)
    t, noise = jax.device_get(sample_noise(schedule, shape, keys, noise_offset=0.5))
    counts = np.bincount(t, minlength=10)
    assert len(counts) == 10 and counts.min() > 320 and counts.max() < 480
    means = noise.mean(axis=(1, 2))  # [b, c]
    assert abs(means.var() - (0.25 + 1 / 16)) < 0.02 and abs(np.corrcoef(means.T)[0, 1]) < 0.06
    assert abs((noise - means[:, None, None]).var() - 15 / 16) < 0.01
    plain = jax.device_get(sample_noise(schedule, shape, keys)[1])
    assert abs(plain.mean(axis=(1, 2)).var() - 1 / 16) < 0.005
    few_t, few_noise = sample_noise(schedule, shape, keys[2:5], noise_offset=0.5)
    np.testing.assert_allclose(few_t, t[2:5])
    np.testing.assert_allclose(few_noise, noise[2:5], atol=1e-6)

    def silent(x, t, states):
        return 0 * x

    zeros = jnp.zeros((4000, *shape))
    loss, metrics = denoising_loss(silent, schedule, zeros, jnp.zeros(()), keys, noise_offset=0.5)
    np.testing.assert_allclose(loss, (noise**2).mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(metrics["timestep"], t)


@pytest.mark.parametrize("side", [4, 5])
def test_attention_to_the_other_half_counts_and_to_the_own_does_not(side):
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3, side, side, 6)).astype(np.float32)
    apart = np.zeros((2, 6, 2), np.float32)
    apart[0, 1, 1] = 0.25  # token 1 is of the left
    apart[0, 4, 0] = 0.5  # token 4 is of the right
    found = unmix_loss(weights.reshape(2, 3, -1, 6), apart)
    right = (weights[0, ..., -(side // 2) :, 1] ** 2).mean()
    left = (weights[0, ..., : side // 2, 4] ** 2).mean()
    np.testing.assert_allclose(found, [0.25 * right + 0.5 * left, 0], rtol=1e-5)
