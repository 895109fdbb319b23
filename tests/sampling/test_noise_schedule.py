"""The forward process against diffusers' schedulers."""

import dataclasses
import importlib
import inspect
import json
import sys
import types

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from styledrop_jax.errors import UserError
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

pytestmark = pytest.mark.filterwarnings("ignore:__array")

SD_1_5 = {  # scheduler/scheduler_config.json of Stable Diffusion 1.5, and below of 2.1
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD_2_1 = SD_1_5 | {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "prediction_type": "v_prediction",
}
CONFIGS = {
    "SD 1.5": SD_1_5,
    "SD 2.1": SD_2_1,
    "zero terminal SNR": SD_2_1 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "linear, 250 timesteps": SD_1_5
    | {"beta_schedule": "linear", "num_train_timesteps": 250, "beta_end": 0.05},
}
CLASSES = (
    *("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler"),
    *("DDPMParallelScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverMultistepInverseScheduler", "DPMSolverSDEScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler"),
    *("SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler"),
)
EVERY_CLASS = pytest.mark.parametrize("name", CLASSES)
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def _reference(config, cls=DDPMScheduler):
    return cls.from_config(NoiseSchedule.from_dict(config).to_dict())


def _latents(t):
    """x, noise and a wrong output, for timesteps t [b]: float32 [b, 4, 3, 2]."""
    return np.random.default_rng(0).standard_normal((3, len(t), 4, 3, 2), np.float32)


def _timesteps(config):
    total = config["num_train_timesteps"]
    return np.array([0, 1, total // 3, total - 2, total - 1])


@EVERY_CONFIG
def test_the_signal_left_is_the_reference(config):
    found = NoiseSchedule.from_dict(config).alphas_cumprod
    expected = _reference(config).alphas_cumprod.numpy()
    assert found.dtype == np.float32 and found.shape == (config["num_train_timesteps"],)
    if config.get(
        "rescale_betas_zero_snr"
    ):  # float32 roundings of the reference, which goes back to betas and again
        assert found[-1] == 0
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@EVERY_CONFIG
def test_noised_latents_and_targets_are_the_reference(config):
    schedule, reference, t = NoiseSchedule.from_dict(config), _reference(config), _timesteps(config)
    x, noise, _ = _latents(t)
    x_t, target = jax.jit(lambda *args: (schedule.add_noise(*args), schedule.target(*args)))(
        x, noise, t
    )
    args = (torch.tensor(x), torch.tensor(noise), torch.tensor(t))
    np.testing.assert_allclose(x_t, reference.add_noise(*args), atol=1e-5)
    is_v = config.get("prediction_type") == "v_prediction"
    np.testing.assert_allclose(target, reference.get_velocity(*args) if is_v else noise, atol=1e-5)
    one = schedule.add_noise(x[2], noise[2], int(t[2]))  # a scalar t
    np.testing.assert_allclose(one, x_t[2], atol=1e-6)


@EVERY_CONFIG
def test_a_perfect_output_gives_the_data_and_the_noise_back(config):
    schedule, t = NoiseSchedule.from_dict(config), _timesteps(config)
    x, noise, _ = _latents(t)
    x_t, output = schedule.add_noise(x, noise, t), schedule.target(x, noise, t)
    np.testing.assert_allclose(schedule.to_x0(x_t, output, t), x, atol=1e-4)
    np.testing.assert_allclose(schedule.to_noise(x_t, output, t), noise, atol=1e-4)


@EVERY_CONFIG
def test_snr_is_the_reference(config):
    t = _timesteps(config)
    expected = compute_snr(_reference(config), torch.tensor(t))
    np.testing.assert_allclose(NoiseSchedule.from_dict(config).snr(t), expected, rtol=3e-4)


@EVERY_CONFIG
def test_the_min_snr_weighted_loss_is_the_clipped_snr_times_the_error_of_the_data(config):
    schedule = NoiseSchedule.from_dict(config)
    t = np.arange(0, config["num_train_timesteps"] - 1, 7)  # the last may have an SNR of 0
    x, noise, output = _latents(t)

    def error(found, expected):
        return jnp.square(found - expected).mean(axis=(1, 2, 3))

    loss = schedule.min_snr_weight(t, 5.0) * error(output, schedule.target(x, noise, t))
    wrong_x0 = schedule.to_x0(schedule.add_noise(x, noise, t), output, t)
    np.testing.assert_allclose(
        loss, np.minimum(schedule.snr(t), 5.0) * error(wrong_x0, x), rtol=2e-3
    )


def test_without_signal_the_weight_of_v_is_zero():
    schedule = NoiseSchedule.from_dict(CONFIGS["zero terminal SNR"])
    assert float(schedule.min_snr_weight(999, 5.0)) == 0


def test_bfloat16_latents_are_noised_in_float32():
    schedule, t = NoiseSchedule.from_dict(SD_2_1), np.array([5, 700])
    x, noise, _ = (jnp.asarray(a, jnp.bfloat16) for a in _latents(t))
    for found in (
        schedule.add_noise(x, noise, t),
        schedule.target(x, noise, t),
        schedule.to_x0(x, noise, t),
    ):
        assert found.dtype == jnp.float32
    expected = schedule.add_noise(x.astype(jnp.float32), noise.astype(jnp.float32), t)
    np.testing.assert_array_equal(schedule.add_noise(x, noise, t), expected)


def test_the_public_files_are_read():
    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    expected = NoiseSchedule(**common, set_alpha_to_one=False)
    assert NoiseSchedule.from_dict(SD_1_5) == expected
    assert NoiseSchedule.from_dict(SD_2_1) == dataclasses.replace(
        expected, prediction_type="v_prediction"
    )


@EVERY_CONFIG
def test_export_reloads_in_the_reference(config):
    schedule = NoiseSchedule.from_dict(config)
    reference = _reference(config, DDIMScheduler)
    assert NoiseSchedule.from_dict(dict(reference.config)) == schedule
    assert reference.config.clip_sample is False


def _reference_class(name: str, monkeypatch):
    """One of the library's scheduler classes; that of the SDE wants a package for its noise."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    path = "diffusers.schedulers.scheduling_dpmsolver_sde"
    return importlib.import_module(path).DPMSolverSDEScheduler


def test_the_classes_are_all_that_have_betas():
    """But for three: two shift their signal, one has its own relation of beta and noise."""
    found = set()
    for name in dir(diffusers.schedulers):
        parameters = getattr(getattr(diffusers, name, None), "__init__", None)
        if name.endswith("Scheduler") and parameters is not None:
            if "trained_betas" in inspect.signature(parameters).parameters:
                found.add(name)
    others = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "IPNDMScheduler"}
    assert found - others == set(CLASSES) - {"DPMSolverSDEScheduler"}  # a stand-in without torchsde


@EVERY_CLASS
def test_absent_keys_have_the_defaults_of_the_files_class(name, monkeypatch):
    found = NoiseSchedule.from_dict({"_class_name": name, "clip_sample": False})
    reference = _reference_class(name, monkeypatch)()
    for field in dataclasses.fields(found):
        if field.name in reference.config:
            assert getattr(found, field.name) == reference.config[field.name], field.name
    np.testing.assert_allclose(found.alphas_cumprod, reference.alphas_cumprod, rtol=1e-6)


TRAINED = [0.001 + 0.0005 * i for i in range(40)]


@EVERY_CLASS
@pytest.mark.parametrize(
    "training",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 40, "trained_betas": TRAINED},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["scaled linear", "cosine", "a table", "zero terminal SNR"],
)
def test_the_training_schedule_of_every_class_is_the_reference(name, training, monkeypatch):
    cls = _reference_class(name, monkeypatch)
    accepted = inspect.signature(cls.__init__).parameters
    if not set(training) <= set(accepted):
        pytest.skip("the class has no such field")
    if name == "RePaintScheduler" and "trained_betas" in training:
        pytest.skip("the class takes an array, which no file holds")
    reference = cls(**training, **{"clip_sample": False} if "clip_sample" in accepted else {})
    file = json.loads(reference.to_json_string())
    found = NoiseSchedule.from_dict(file)
    for field in dataclasses.fields(found):
        if field.name in file:
            expected = file[field.name]
            expected = tuple(expected) if isinstance(expected, list) else expected
            assert getattr(found, field.name) == expected, field.name
    # The reference goes from zero SNR back to betas, and some of its classes end just above zero.
    zero = {"rtol": 1e-4, "atol": 2**-24} if "rescale_betas_zero_snr" in training else {}
    np.testing.assert_allclose(
        found.alphas_cumprod, reference.alphas_cumprod, **{"rtol": 1e-5, **zero}
    )


@pytest.mark.parametrize(
    ("name", "beta_schedule"),
    [
        ("HeunDiscreteScheduler", "exp"),
        ("DDPMScheduler", "laplace"),
        ("DDPMScheduler", "sigmoid"),
    ],
)
def test_the_rarer_schedules_are_the_reference(name, beta_schedule):
    reference = getattr(diffusers, name)(beta_schedule=beta_schedule, num_train_timesteps=100)
    file = json.loads(reference.to_json_string()) | {"clip_sample": False}
    found = NoiseSchedule.from_dict(file).alphas_cumprod
    np.testing.assert_allclose(found, reference.alphas_cumprod, rtol=1e-5)


def test_an_exported_table_reloads_in_the_reference():
    schedule = NoiseSchedule(num_train_timesteps=40, trained_betas=tuple(TRAINED))
    reference = DDIMScheduler.from_config(json.loads(json.dumps(schedule.to_dict())))
    np.testing.assert_allclose(schedule.alphas_cumprod, reference.alphas_cumprod, rtol=1e-6)
    assert hash(schedule) == hash(NoiseSchedule.from_dict(dict(reference.config)))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name is 'FlowMatchEuler.*', expected a scheduler .* betas, such as DDIM",
        ),
        (
            {"_class_name": "EDMEulerScheduler"},
            "_class_name is 'EDMEulerScheduler', expected a sch",
        ),
        (
            {"_class_name": "IPNDMScheduler"},
            "_class_name is 'IPNDMScheduler', expected a scheduler",
        ),
        ({"_class_name": "DDIMSchedular"}, "did you mean 'DDIMScheduler'"),
        ({"_class_name": None}, "_class_name is None"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name is \\['DDIM"),
        (
            {"prediction_type": "sample"},
            "prediction_type is 'sample', expected 'epsilon' or 'v_prediction'",
        ),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"prediction_type": "v_predicton"}, "did you mean 'v_prediction'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True, expected false: flow matching"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous', expected 'discrete'"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"beta_schedule": "cosine"}, "beta_schedule is 'cosine', expected 'scaled_linear'"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'"),
        ({"clip_sample": True}, "clip_sample is True"),
        (
            {"_class_name": "DDIMScheduler", "clip_sample": None},
            "clip_sample is True, the default of DDIMScheduler",
        ),
        ({"thresholding": True}, "thresholding is True"),
        ({"trained_betas": [0.1] * 999}, r"trained_betas is \(0.1, .*…, expected 1000 numbers"),
        ({"trained_betas": [0.1] * 999 + [1.0]}, "expected numbers between 0 and 1"),
        ({"trained_betas": "table.npy"}, "trained_betas is 'table.npy', expected 1000 numbers"),
        ({"beta_start": 0.0}, "beta_start is 0.0"),
        ({"beta_start": 0.02}, "beta_start is 0.02, expected above 0, at most beta_end 0.012"),
        ({"beta_end": 1.5}, "beta_end is 1.5"),
        ({"beta_end": "0.012"}, "beta_end is '0.012', expected a number"),
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1"),
        ({"steps_offset": 1000}, "steps_offset is 1000"),
        ({"set_alpha_to_one": "false"}, "set_alpha_to_one is 'false', expected true or false"),
        ({"rescale_betas_zero_snr": True}, "prediction_type is 'epsilon', expected 'v_prediction'"),
    ],
)
def test_unsupported_files_are_named_in_one_line(change, words):
    with pytest.raises(UserError, match=words) as error:
        NoiseSchedule.from_dict(SD_1_5 | change)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_gamma_that_is_not_positive_is_refused(gamma):
    with pytest.raises(UserError, match="gamma: found"):
        NoiseSchedule().min_snr_weight(3, gamma)
