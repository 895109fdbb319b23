"""The forward process of a diffusion model: how much noise each timestep has, and what the model predicts of it.

At timestep t the latents are x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) noise, with ᾱ_t the product of all 1 - β up to t (DDPM,
2006.11239 Eq. 4; `alphas_cumprod` below).
"""

import dataclasses
import functools
import reprlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, did_you_mean

# The reference's scheduler classes, and where the defaults of their files differ from those of `NoiseSchedule`.
_SOURCES = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
    "LMSDiscreteScheduler": {"timestep_spacing": "linspace"},
    "UniPCMultistepScheduler": {"timestep_spacing": "linspace"},
}
_CHOICES = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The fields of the reference's scheduler_config.json that a model is trained with, under the reference's names.

    Hashable, so that it can be a static argument of `jax.jit`. In the methods x, noise, x_t and output are
    [b, h, w, c] and t is an int32 scalar or [b] in [0, num_train_timesteps); results are float32.

    Attributes:
        num_train_timesteps: T. Timestep 0 has the least noise, T - 1 the most.
        beta_start, beta_end: β of the first and the last timestep.
        beta_schedule: what is linear in between: β ("linear") or its square root ("scaled_linear").
        rescale_betas_zero_snr: shift and scale the schedule so that nothing of x0 is left at the last timestep.
        prediction_type: the model predicts the noise ("epsilon") or v = sqrt(ᾱ) noise - sqrt(1 - ᾱ) x0 ("v_prediction";
            2202.00512 section 4).
        timestep_spacing: how samplers lay their steps out over the timesteps (2305.08891 Table 2).
        steps_offset: added to every timestep of the "leading" spacing.
        set_alpha_to_one: DDIM's last step goes to ᾱ = 1; otherwise to that of timestep 0.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        def require(fits: bool, field: str, expected: str) -> None:
            if not fits:
                raise UserError(
                    f"scheduler config: {field} is {getattr(self, field)!r}, expected {expected}"
                )

        for field, options in _CHOICES.items():
            expected = " or ".join(map(repr, options))
            require(
                getattr(self, field) in options,
                field,
                expected + did_you_mean(getattr(self, field), options),
            )
        for field in ("rescale_betas_zero_snr", "set_alpha_to_one"):
            require(isinstance(getattr(self, field), bool), field, "true or false")
        for field in ("beta_start", "beta_end"):
            require(isinstance(getattr(self, field), int | float), field, "a number")
        require(
            0 < self.beta_start <= self.beta_end,
            "beta_start",
            f"above 0, at most beta_end {self.beta_end}",
        )
        require(self.beta_end < 1, "beta_end", "a number below 1")
        total = self.num_train_timesteps
        require(
            isinstance(total, int) and total >= 2, "num_train_timesteps", "an integer of at least 2"
        )
        offset = self.steps_offset
        require(
            isinstance(offset, int) and 0 <= offset < total,
            "steps_offset",
            f"an integer from 0 to {total - 1}",
        )
        # Where nothing of x0 is left, the noise is all there is to see and says nothing about x0 (2305.08891 sec. 3.2).
        shows_x0 = self.prediction_type == "v_prediction" or not self.rescale_betas_zero_snr
        require(shows_x0, "prediction_type", "'v_prediction', as rescale_betas_zero_snr is true")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's scheduler_config.json. Keys that only choose a solver are ignored.

        An absent key has the default of the file's class: "linspace" spacing for the DPM-Solver, Euler, LMS and UniPC
        files, `set_alpha_to_one` false for PNDM, `clip_sample` true for DDIM and DDPM.

        Raises:
            UserError: a scheduler of another kind, a value out of range, clipped or thresholded x0, or a β table.
        """
        name = config.get("_class_name")
        if name not in _SOURCES:
            expected = f"one of {', '.join(_SOURCES)}{did_you_mean(name, _SOURCES)}"
            raise UserError(f"scheduler config: _class_name is {name!r}, expected {expected}")
        values = _SOURCES[name] | {key: value for key, value in config.items() if value is not None}
        for key in ("clip_sample", "thresholding", "trained_betas"):
            if values.get(key):
                why = "" if key in config else f", the default of {name}"
                raise UserError(
                    f"scheduler config: {key} is {reprlib.repr(values[key])}{why}, expected false or none"
                )
        return cls(
            **{
                field.name: values[field.name]
                for field in dataclasses.fields(cls)
                if field.name in values
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """A scheduler_config.json that the reference library loads, as its DDIM scheduler."""
        return {"_class_name": "DDIMScheduler", **dataclasses.asdict(self), "clip_sample": False}

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ: float32 [T], falling; the last is 0 under `rescale_betas_zero_snr` (2305.08891 Algorithm 1)."""
        power = 2 if self.beta_schedule == "scaled_linear" else 1
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        # β and 1 - β rounded to float32, as in the reference: then ᾱ is what its models were trained with, within 4e-7
        betas = np.linspace(*ends, self.num_train_timesteps, dtype=np.float32) ** power
        signal = np.cumprod(1 - betas, dtype=np.float64)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(signal)
            signal = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return signal.astype(np.float32)

    def add_noise(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x_t of the data x (DDPM 2006.11239 Eq. 4)."""
        signal = self._signal(t, x.ndim)
        return jnp.sqrt(signal) * x + jnp.sqrt(1 - signal) * noise

    def target(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """What the model should put out for x_t: the noise, or v (2202.00512 Appendix D)."""
        if self.prediction_type == "epsilon":
            return noise.astype(jnp.float32)
        signal = self._signal(t, x.ndim)
        return jnp.sqrt(signal) * noise - jnp.sqrt(1 - signal) * x

    def to_x0(self, x_t: jax.Array, output: jax.Array, t: jax.Array) -> jax.Array:
        """The data that the model's output says is under x_t."""
        of_x, of_output = self.x0_weights(self._signal(t, x_t.ndim))
        return of_x * x_t + of_output * output

    def to_noise(self, x_t: jax.Array, output: jax.Array, t: jax.Array) -> jax.Array:
        """The noise that the model's output says is in x_t."""
        if self.prediction_type == "epsilon":
            return output.astype(jnp.float32)
        signal = self._signal(t, x_t.ndim)
        return jnp.sqrt(1 - signal) * x_t + jnp.sqrt(signal) * output

    def x0_weights(self, signal: Any) -> tuple[Any, Any]:
        """(p, q) with x0 = p x_t + q output, where ᾱ is `signal`, any array of numpy or JAX."""
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        return (1 / alpha, -sigma / alpha) if self.prediction_type == "epsilon" else (alpha, -sigma)

    def snr(self, t: jax.Array) -> jax.Array:
        """The signal-to-noise ratio ᾱ / (1 - ᾱ), a power ratio, in the shape of t."""
        signal = self._signal(t, 0)
        return signal / (1 - signal)

    def min_snr_weight(self, t: jax.Array, gamma: float) -> jax.Array:
        """The Min-SNR-γ weight of the squared error of the model's output, in the shape of t (2303.09556 section 3.4).

        For either prediction type the weighted loss is min(snr, gamma) times the squared error of x0, so it is
        min(snr, gamma) / snr for the noise and / (snr + 1) for v.

        Raises:
            UserError: gamma is not above 0; the paper takes 5.
        """
        if not gamma > 0:
            raise UserError(f"min-SNR gamma: found {gamma}, expected a number above 0")
        snr = self.snr(t)
        return jnp.minimum(snr, gamma) / (snr if self.prediction_type == "epsilon" else snr + 1)

    def _signal(self, t: jax.Array, ndim: int) -> jax.Array:
        """ᾱ at t, with axes of length 1 added up to `ndim`."""
        signal = jnp.asarray(self.alphas_cumprod)[t]
        return signal.reshape(signal.shape + (1,) * (ndim - signal.ndim))
