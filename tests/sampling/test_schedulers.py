"""Diffusion samplers against diffusers' schedulers, step by step, and what a user asks of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)

from styledrop_jax.errors import UserError
from styledrop_jax.sampling import schedulers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.sampling.schedulers import SAMPLERS

STEPS = 20
SHAPE = (2, 4, 4, 3)
SD = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
)
V = {"prediction_type": "v_prediction"}
LEADING = {"timestep_spacing": "leading"}
TRAILING = {"timestep_spacing": "trailing"}
SCHEDULES = {
    "epsilon, leading": LEADING,
    "epsilon, trailing": TRAILING,
    "v, leading": V | LEADING,
    "v, trailing": V | TRAILING,
    "zero SNR": V | TRAILING | {"rescale_betas_zero_snr": True},
}
KARRAS = functools.partial(DPMSolverMultistepScheduler.from_config, use_karras_sigmas=True)
REFERENCES = {
    "ddim": DDIMScheduler.from_config,
    "ddpm": DDPMScheduler.from_config,
    "dpm_solver": DPMSolverMultistepScheduler.from_config,
    "dpm_solver_karras": KARRAS,
    "euler": EulerDiscreteScheduler.from_config,
    "euler_ancestral": EulerAncestralDiscreteScheduler.from_config,
    "heun": HeunDiscreteScheduler.from_config,
    "deis": DEISMultistepScheduler.from_config,
    "unipc": UniPCMultistepScheduler.from_config,
    "lcm": LCMScheduler.from_config,
}
WITH_NOISE = (scheduling_ddpm, scheduling_euler_ancestral_discrete, scheduling_lcm)
ON_SCALED_LATENTS = (
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)
WITHOUT_ZERO_SNR = ("heun", "deis")  # of which the reference has no such schedule
MIX = np.random.default_rng(1).normal(0, 0.8, (3, 3)).astype("f")
HALF = functools.partial(schedulers.ddim, eta=0.5)


def _schedule(**changes) -> NoiseSchedule:
    return NoiseSchedule.from_dict(SD.to_dict() | changes)


def _keys(b=2, seed=0):
    return jax.random.split(jax.random.key(seed), b)


def _normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _predict(x, t, step):
    """A model of one layer, which looks at a latent, the one above it, and the timestep."""
    return 0.9 * jnp.tanh(x @ MIX + 0.5 * jnp.roll(x, 1, axis=1)) + 0.3 * jnp.sin(t / 150)


def _noises() -> list[torch.Tensor]:
    """The noise of every step."""
    noises = []
    for step in range(STEPS):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(_keys(), step)
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE[1:]))(keys)
        noises.append(torch.tensor(np.asarray(noise)))
    return noises


def _trace(predict, x, schedule, **kwargs):
    """(step, timestep, latents) at every call of the model, and the result."""
    seen = []

    def see(step, t, x):
        seen.append((int(step), int(t), np.asarray(x)))

    def record(x, t, step):
        jax.debug.callback(see, step, t, x, ordered=True)
        return predict(x, t, step)

    settings = {"keys": _keys(len(x))} | kwargs
    out = jax.jit(lambda x: schedulers.sample(record, x, schedule, **settings))(x)
    jax.effects_barrier()
    return seen, np.asarray(out)


def _reference_trace(scheduler, x, start=0, **kwargs):
    """(timestep, latents) at every call of the model, and the result.

    `kwargs` hold one value for each step.
    """
    scheduler.set_timesteps(STEPS)
    start *= scheduler.order  # calls of the model in a step
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    x = torch.tensor(x)
    if isinstance(scheduler, ON_SCALED_LATENTS):
        x = x * (scheduler.sigmas[start] ** 2 + 1) ** 0.5
    seen = []
    for step, t in enumerate(scheduler.timesteps[start:], start):
        shown = scheduler.scale_model_input(x, t)
        seen.append((int(t), shown.numpy()))
        inside = shown @ torch.tensor(MIX) + 0.5 * shown.roll(1, 1)
        output = 0.9 * torch.tanh(inside) + 0.3 * torch.sin(t / 150)
        of_step = {name: values[step] for name, values in kwargs.items()}
        x = scheduler.step(output, t, x, **of_step).prev_sample
    return seen, x.numpy()


def _assert_same_path(found, expected):
    seen, out = found
    reference, reference_out = expected
    assert np.abs(reference_out).max() > 0.1
    worst = _error(out, reference_out)
    for (_, t, x), (reference_t, y) in zip(seen, reference, strict=True):
        assert t == reference_t
        worst = max(worst, _error(x, y))
    print(f"\nmax relative error: {worst:.1e}")
    assert worst < 1e-4


def _error(x, y):
    return float(np.abs(x - y).max() / np.abs(y).max())


@pytest.mark.parametrize("changes", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_the_reference(sampler, changes, monkeypatch):
    schedule = _schedule(**changes)
    if schedule.rescale_betas_zero_snr and sampler in WITHOUT_ZERO_SNR:
        return
    x = _normal(0)
    noise = iter(_noises())
    for module in WITH_NOISE:
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(noise))
    found = _trace(_predict, x, schedule, steps=STEPS, sampler=sampler)
    _assert_same_path(found, _reference_trace(REFERENCES[sampler](schedule.to_dict()), x))
    times: dict[int, int] = {}
    for step, t, _ in found[0]:
        times.setdefault(step, t)
    assert schedulers.timesteps(schedule, STEPS, sampler).tolist() == list(times.values())


def test_the_last_step_of_a_short_deis_is_the_references(monkeypatch):
    monkeypatch.setitem(globals(), "STEPS", 7)
    found = _trace(_predict, _normal(0), SD, steps=7, sampler="deis")
    _assert_same_path(found, _reference_trace(REFERENCES["deis"](SD.to_dict()), _normal(0)))


@pytest.mark.parametrize("changes", [{}, SCHEDULES["zero SNR"], {"set_alpha_to_one": True}])
def test_ddim_with_noise_is_the_reference(changes):
    schedule = _schedule(**changes)
    x = _normal(0)
    reference = DDIMScheduler.from_config(schedule.to_dict())
    expected = _reference_trace(reference, x, eta=[0.5] * STEPS, variance_noise=_noises())
    _assert_same_path(_trace(_predict, x, schedule, steps=STEPS, sampler=HALF), expected)


@pytest.mark.parametrize("sampler", ["dpm_solver", "dpm_solver_karras", "euler", "heun", "deis"])
def test_a_start_part_way_is_the_reference(sampler):
    x = _normal(0)
    start = schedulers.sdedit_start(STEPS, 0.6)
    expected = _reference_trace(REFERENCES[sampler](SD.to_dict()), x, start)
    _assert_same_path(_trace(_predict, x, SD, steps=STEPS, sampler=sampler, start=start), expected)


def test_a_unipc_that_starts_part_way_has_nothing_to_correct_yet():
    """Its first step is the references, and a model that knows the data is believed."""
    x = _normal(0)
    start = schedulers.sdedit_start(STEPS, 0.6)
    seen, out = _trace(_predict, x, SD, steps=STEPS, sampler="unipc", start=start)
    expected, reference_out = _reference_trace(REFERENCES["unipc"](SD.to_dict()), x, start)
    for (_, t, found), (reference_t, latents) in zip(seen[:2], expected[:2], strict=True):
        assert t == reference_t and _error(found, latents) < 1e-4
    assert _error(out, reference_out) < 0.05


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver", "deis", "unipc"])
def test_linspace_timesteps_are_the_reference(sampler):
    schedule = _schedule(timestep_spacing="linspace")
    reference = REFERENCES[sampler](schedule.to_dict())
    for steps in (2, 7, 50):
        reference.set_timesteps(steps)
        found = schedulers.timesteps(schedule, steps, sampler)
        assert found.tolist() == reference.timesteps.tolist()


def _believed(schedule, x0, sampler, steps):
    """What a model that knows the data x0 makes of noise."""

    def predict(x, t, step):
        signal = jnp.asarray(schedule.alphas_cumprod)[t]
        return schedule.target(x0, (x - jnp.sqrt(signal) * x0) / jnp.sqrt(1 - signal), t)

    settings = {"steps": steps, "sampler": sampler, "keys": _keys()}
    return schedulers.sample(predict, _normal(0), schedule, **settings)


@pytest.mark.parametrize("changes", [V, {"timestep_spacing": "linspace"}], ids=["v", "epsilon"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, HALF])
def test_a_model_that_knows_the_data_is_believed(sampler, changes):
    x0 = _normal(1)
    out = _believed(_schedule(set_alpha_to_one=True, **changes), x0, sampler, 9)
    # DEIS ends at the level of timestep 0, and what is consistent has a trace of the noise.
    tolerance = {"deis": 0.2, "lcm": 2e-4}.get(sampler, 1e-4)
    np.testing.assert_allclose(out, x0, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver", "unipc"])
def test_few_steps_suffice_for_a_model_that_knows_the_data(sampler, steps):
    x0 = _normal(1)
    schedule = _schedule(**SCHEDULES["zero SNR"], set_alpha_to_one=True)
    # In one step, the solver takes x to hold 2^-12 of the data where the model takes it to hold
    # none.
    tolerance = 1e-3 if sampler != "ddim" and steps == 1 else 1e-5
    np.testing.assert_allclose(_believed(schedule, x0, sampler, steps), x0, atol=tolerance)


@pytest.mark.parametrize("sampler", ["ddpm", HALF, "dpm_solver"])
def test_an_image_does_not_depend_on_its_batch(sampler):
    x = _normal(0, (5, 4, 4, 3))
    known = _normal(1, (5, 4, 4, 3))
    keys = _keys(5)
    mask = np.broadcast_to(np.arange(4)[:, None] < 2, (5, 4, 4))[..., None].astype("f")

    @jax.jit
    def run(x, keys, known, mask):
        kwargs = {"steps": 6, "sampler": sampler, "keys": keys, "known": known, "mask": mask}
        return schedulers.sample(_predict, x, SD, **kwargs)

    together = run(x, keys, known, mask)
    for i in (0, 2, 4):
        own = slice(i, i + 1)
        alone = run(x[own], keys[own], known[own], mask[own])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert float(jnp.abs(run(x, _keys(5, seed=1), known, mask) - together).max()) > 0.1


def test_strength_is_the_share_of_the_steps_taken():
    x = _normal(0)
    for strength, calls in ((0.0, 0), (0.29, 29), (1.0, 100)):
        start = schedulers.sdedit_start(100, strength)
        seen, out = _trace(_predict, x, SD, steps=100, sampler="dpm_solver", start=start)
        assert [step for step, _, _ in seen] == list(range(100 - calls, 100))
        assert calls or (out == x).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_kept_region_is_noised_to_each_steps_level_and_exact_at_the_end(sampler):
    shape = (1, 24, 24, 4)
    known = _normal(1, shape)
    mask = np.zeros((1, 24, 24, 1), np.float32)
    mask[:, :4] = 1
    kwargs = {"steps": 8, "sampler": sampler, "known": known, "mask": mask}
    seen, out = _trace(lambda x, t, step: 0.1 * x, _normal(0, shape), SD, **kwargs)
    assert (out[:, 4:] == known[:, 4:]).all()
    assert np.abs(out[:, :4] - known[:, :4]).min() > 0
    # At the last step it would show that a Karras level lies between two timesteps.
    for _, t, x in seen[1:-1]:
        signal = SD.alphas_cumprod[t]
        noise = ((x - np.sqrt(signal) * known) / np.sqrt(1 - signal))[:, 4:]
        assert abs(noise.std() - 1) < 0.06 and abs((noise * known[:, 4:]).mean()) < 0.06


def test_inpainting_everything_is_sampling():
    settings = {"steps": 5, "sampler": "ddpm", "keys": _keys()}
    run = functools.partial(schedulers.sample, _predict, _normal(0), SD, **settings)
    ones = np.ones((2, 4, 4, 1), "f")
    np.testing.assert_allclose(run(known=_normal(1), mask=ones), run(), atol=1e-6)


def test_known_latents_need_a_mask():
    settings = {"steps": 5, "sampler": "ddim", "keys": _keys()}
    with pytest.raises(ValueError, match="go together"):
        schedulers.sample(_predict, _normal(0), SD, known=_normal(1), **settings)


def test_one_program_for_all_inputs_and_starts():
    traces = []

    def run(weights, x, kwargs):
        traces.append(1)

        def predict(x, t, step):
            return jnp.tanh(x @ weights)

        return schedulers.sample(predict, x, SD, steps=6, sampler="dpm_solver", **kwargs)

    compiled = jax.jit(run)
    mask = (_normal(3) > 0)[..., :1].astype("f")
    for seed, start in ((0, 0), (1, 4), (2, 6)):
        known = _normal(seed + 5)
        kwargs = {"keys": _keys(seed=seed), "start": start, "known": known, "mask": mask}
        found = compiled(MIX + seed, _normal(seed), kwargs)
        expected = run(MIX + seed, _normal(seed), kwargs)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert len(traces) == 1 + 3, "one compiled program, beside the three runs without one"


def test_a_model_in_bfloat16_keeps_the_latents_in_float32():
    def predict(x, t, step):
        return _predict(x, t, step).astype(jnp.bfloat16)

    seen, out = _trace(predict, _normal(0), SD, steps=4, sampler="ddim")
    assert out.dtype == np.float32
    for _, _, x in seen:
        assert x.dtype == np.float32


def test_guidance_is_the_reference_with_and_without_rescaling():
    cond = _normal(0) * np.array([1.0, 3.0], "f")[:, None, None, None]
    uncond = _normal(1)
    guided = uncond + 7.5 * (cond - uncond)
    for rescale in (0.0, 0.7, 1.0):
        expected = rescale_noise_cfg(torch.tensor(guided), torch.tensor(cond), rescale)
        found = schedulers.guidance(cond, uncond, 7.5, rescale=rescale)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(schedulers.guidance(cond, uncond, 1.0), cond, atol=1e-6)
    zero = jnp.zeros(SHAPE)
    assert (schedulers.guidance(zero, zero, 7.5, rescale=0.7) == 0).all()


@pytest.mark.parametrize(
    ("spacing", "steps", "sampler", "words"),
    [
        ("leading", 20, "dim", "sampler: found 'dim', expected one of ddim.*mean 'ddim'"),
        ("leading", 0, "ddim", "steps: found 0, expected at least 1"),
        ("leading", -3, "dpm_solver_karras", "steps: found -3"),
        ("leading", 1001, "ddpm", "steps: found 1001, expected fewer: 1000 timesteps"),
        # The offset pushes the first timestep over the end.
        ("leading", 1000, "euler", "steps: found 1000.* spaced 'leading'"),
        ("trailing", 1001, "ddim", "steps: found 1001"),
        ("linspace", 1000, "dpm_solver", "steps: found 1000"),
        ("leading", 51, "lcm", "^steps: found 51, expected 1 to 50 of lcm$"),
    ],
)
def test_steps_that_do_not_fit_are_named_in_one_line(spacing, steps, sampler, words):
    with pytest.raises(UserError, match=words) as error:
        schedulers.timesteps(_schedule(timestep_spacing=spacing), steps, sampler)
    assert "\n" not in str(error.value)


def test_shares_are_from_0_to_1():
    with pytest.raises(UserError, match="^eta: found 1.5, expected a number from 0 to 1$"):
        schedulers.ddim(SD, 20, eta=1.5)
    for strength in (-0.1, float("nan")):
        words = f"^strength: found {strength}, expected a number from 0 to 1$"
        with pytest.raises(UserError, match=words):
            schedulers.sdedit_start(20, strength)


def test_a_stride_that_rounds_up_gives_no_extra_step():
    schedule = _schedule(timestep_spacing="trailing")
    for steps in (1, 3, 30, 49, 999, 1000):
        for sampler in set(SAMPLERS) - {"lcm"}:
            t = schedulers.timesteps(schedule, steps, sampler)
            assert len(t) == steps and t[0] == 999 and t[-1] >= 0
