"""The forward process of a diffusion model: how much noise each timestep has, and what the model
predicts of it.

At timestep t the latents are x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) noise, with ᾱ_t the product of all
1 - β up to t (DDPM, 2006.11239 Eq. 4; `alphas_cumprod` below).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, did_you_mean, shown

_Array = jax.Array | np.ndarray
_Time = _Array | int
_CLIPS: dict[str, Any] = {"clip_sample": True}
_EVEN: dict[str, Any] = {"timestep_spacing": "linspace"}
_LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_SOURCES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _CLIPS,
    "DDIMInverseScheduler": _CLIPS,
    "DDIMParallelScheduler": _CLIPS,
    "DDPMScheduler": _CLIPS,
    "DDPMParallelScheduler": _CLIPS,
    "RePaintScheduler": _CLIPS,
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DEISMultistepScheduler": _EVEN,
    "DPMSolverMultistepScheduler": _EVEN,
    "DPMSolverMultistepInverseScheduler": _EVEN,
    "DPMSolverSinglestepScheduler": _EVEN,
    "EulerDiscreteScheduler": _EVEN,
    "EulerAncestralDiscreteScheduler": _EVEN,
    "LMSDiscreteScheduler": _EVEN,
    "SASolverScheduler": _EVEN,
    "UniPCMultistepScheduler": _EVEN,
    "DPMSolverSDEScheduler": _EVEN | _LATENT,
    "HeunDiscreteScheduler": _EVEN | _LATENT,
    "KDPM2DiscreteScheduler": _EVEN | _LATENT,
    "KDPM2AncestralDiscreteScheduler": _EVEN | _LATENT,
    "LCMScheduler": _LATENT | {"beta_schedule": "scaled_linear"},
    "TCDScheduler": _LATENT | {"beta_schedule": "scaled_linear"},
}
"""The reference's scheduler classes that train with β, and where the defaults of their files differ
from those of `NoiseSchedule`."""
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "clip_sample": ((True,), "false: the data is not clipped"),
    "thresholding": ((True,), "false: the data is not clipped"),
    "use_flow_sigmas": ((True,), "false: flow matching trains with other noise"),
    "variance_type": (("learned", "learned_range"), "a variance that is not predicted"),
    "timestep_type": (("continuous",), "'discrete'"),
}
"""Fields that say the model is trained otherwise, or its data cut: (values, what is expected)."""


def _laplace(t: np.ndarray) -> np.ndarray:
    log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
    snr = np.exp(log_snr)
    return np.sqrt(snr / (1 + snr))


_LEVELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "squaredcos_cap_v2": lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2,
    "exp": lambda t: np.exp(-12 * t),
    "laplace": _laplace,
}
"""ᾱ as a function of the share of time t, float64 [n] in [0, 1]; the first is 2102.09672 Eq. 17."""
_MOST_TIMESTEPS = 100_000
_GREATEST_BETA = 0.999  # of those schedules
_CHOICES = {
    "beta_schedule": ("scaled_linear", "linear", "sigmoid", *_LEVELS),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The fields of the reference's scheduler_config.json that a model is trained with, under the
    reference's names.

    Hashable, so that it can be a static argument of `jax.jit`. In the methods x, noise, x_t and
    output are [b, h, w, c] and t is an int32 scalar or [b] in [0, num_train_timesteps); results are
    float32.

    Attributes:
        num_train_timesteps: T. Timestep 0 has the least noise, T - 1 the most.
        beta_start, beta_end: β of the first and the last timestep.
        beta_schedule: what is linear in between: β ("linear"), its square root ("scaled_linear") or
            its logit ("sigmoid"). Or the name of a function of time that ᾱ is.
        trained_betas: β of every timestep, in place of the three above.
        rescale_betas_zero_snr: shift and scale the schedule so that nothing of x0 is left at the
            last timestep.
        prediction_type: the model predicts the noise ("epsilon") or v = sqrt(ᾱ) noise -
            sqrt(1 - ᾱ) x0 ("v_prediction"; 2202.00512 section 4).
        timestep_spacing: how samplers lay their steps out over the timesteps (2305.08891 Table 2).
        steps_offset: added to every timestep of the "leading" spacing.
        set_alpha_to_one: DDIM's last step goes to ᾱ = 1; otherwise to that of timestep 0.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        for field, options in _CHOICES.items():
            value = getattr(self, field)
            if value not in options:
                expected = " or ".join(map(repr, options))
                self._refuse(field, expected + did_you_mean(str(value), options))
        for field in ("rescale_betas_zero_snr", "set_alpha_to_one"):
            if not isinstance(getattr(self, field), bool):
                self._refuse(field, "true or false")
        total = self.num_train_timesteps
        if not (type(total) is int and 2 <= total <= _MOST_TIMESTEPS):
            self._refuse("num_train_timesteps", f"an integer from 2 to {_MOST_TIMESTEPS}")
        if not (type(self.steps_offset) is int and 0 <= self.steps_offset < total):
            self._refuse("steps_offset", f"an integer from 0 to {total - 1}")
        self._check_betas()
        # Where nothing of x0 is left, the noise is all there is to see and says nothing about x0
        # (2305.08891 section 3.2).
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            self._refuse("prediction_type", "'v_prediction', as rescale_betas_zero_snr is true")

    def _check_betas(self) -> None:
        for field in ("beta_start", "beta_end"):
            if type(getattr(self, field)) not in (int, float):
                self._refuse(field, "a number")
        if not 0 < self.beta_start <= self.beta_end:
            self._refuse("beta_start", f"above 0, at most beta_end {self.beta_end}")
        if not self.beta_end < 1:
            self._refuse("beta_end", "a number below 1")
        betas = self.trained_betas
        if betas is None:
            return
        if not (isinstance(betas, tuple) and len(betas) == self.num_train_timesteps):
            self._refuse("trained_betas", f"{self.num_train_timesteps} numbers")
        for beta in betas:
            if not (isinstance(beta, int | float) and 0 < beta < 1):
                self._refuse("trained_betas", "numbers between 0 and 1")

    def _refuse(self, field: str, expected: str) -> NoReturn:
        found = shown(getattr(self, field))
        raise UserError(f"scheduler config: {field} is {found}, expected {expected}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the reference's scheduler_config.json. Keys that only choose a solver are ignored.

        An absent key has the default of the file's class; see `_SOURCES`.

        Raises:
            UserError: a scheduler that does not train with β (flow matching, EDM), a value out of
                range, or a field that says that the model is trained otherwise.
        """
        name = config.get("_class_name")
        if not isinstance(name, str) or name not in _SOURCES:
            close = did_you_mean(str(name), _SOURCES)
            raise UserError(
                f"scheduler config: _class_name is {shown(name)}, expected a scheduler of the "
                f"diffusers library that has betas, such as DDIMScheduler{close}"
            )
        given = {key: value for key, value in config.items() if value is not None}
        values = {**_SOURCES[name], **given}
        for field, (refused, expected) in _REFUSED.items():
            if values.get(field) in refused:
                why = "" if field in given else f", the default of {name}"
                raise UserError(
                    f"scheduler config: {field} is {values[field]!r}{why}, expected {expected}"
                )
        known = {}
        for field in dataclasses.fields(cls):
            if field.name in values:
                value = values[field.name]
                known[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """A scheduler_config.json that the reference library loads, as its DDIM scheduler."""
        return {"_class_name": "DDIMScheduler", **dataclasses.asdict(self), "clip_sample": False}

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ: float32 [T], falling; the last is 0 under `rescale_betas_zero_snr` (2305.08891
        Algorithm 1)."""
        # β and 1 - β are rounded to float32, as in the reference: then ᾱ is what its models were
        # trained with, within 4e-7.
        signal = np.cumprod(1 - self._betas(), dtype=np.float64)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(signal)
            signal = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return signal.astype(np.float32)

    def _betas(self) -> np.ndarray:
        """β: float32 [T]"""
        count = self.num_train_timesteps
        start, end = self.beta_start, self.beta_end
        if self.trained_betas is not None:
            return np.array(self.trained_betas, np.float32)
        if self.beta_schedule == "linear":
            return np.linspace(start, end, count, dtype=np.float32)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2
        if self.beta_schedule == "sigmoid":
            share = 1 / (1 + np.exp(-np.linspace(-6, 6, count, dtype=np.float32)))
            return share * (end - start) + start
        level = _LEVELS[self.beta_schedule](np.arange(count + 1) / count)
        betas = np.minimum(1 - level[1:] / level[:-1], _GREATEST_BETA)
        return betas.astype(np.float32)

    def add_noise(self, x: _Array, noise: _Array, t: _Time) -> jax.Array:
        """x_t of the data x (DDPM 2006.11239 Eq. 4)."""
        signal = self._signal(t, x.ndim)
        return jnp.sqrt(signal) * x + jnp.sqrt(1 - signal) * noise

    def target(self, x: _Array, noise: _Array, t: _Time) -> jax.Array:
        """What the model should put out for x_t: the noise, or v (2202.00512 Appendix D)."""
        if self.prediction_type == "epsilon":
            return jnp.asarray(noise, jnp.float32)
        signal = self._signal(t, x.ndim)
        return jnp.sqrt(signal) * noise - jnp.sqrt(1 - signal) * x

    def to_x0(self, x_t: _Array, output: _Time, t: _Time) -> jax.Array:
        """The data that the model's output says is under x_t."""
        of_x, of_output = self.x0_weights(self._signal(t, x_t.ndim))
        return of_x * x_t + of_output * output

    def to_noise(self, x_t: _Array, output: _Time, t: _Time) -> jax.Array:
        """The noise that the model's output says is in x_t."""
        if self.prediction_type == "epsilon":
            return jnp.asarray(output, jnp.float32)
        signal = self._signal(t, x_t.ndim)
        return jnp.sqrt(1 - signal) * x_t + jnp.sqrt(signal) * output

    def x0_weights(self, signal: Any) -> tuple[Any, Any]:
        """(p, q) with x0 = p x_t + q output, where ᾱ is `signal`, any array of numpy or JAX."""
        alpha = signal**0.5
        sigma = (1 - signal) ** 0.5
        if self.prediction_type == "epsilon":
            return 1 / alpha, -sigma / alpha
        return alpha, -sigma

    def snr(self, t: _Time) -> jax.Array:
        """The signal-to-noise ratio ᾱ / (1 - ᾱ), a power ratio, in the shape of t."""
        signal = self._signal(t, 0)
        return signal / (1 - signal)

    def min_snr_weight(self, t: _Time, gamma: float) -> jax.Array:
        """The Min-SNR-γ weight of the squared error of the model's output, in the shape of t
        (2303.09556 section 3.4).

        For either prediction type the weighted loss is min(snr, gamma) times the squared error of
        x0, so it is min(snr, gamma) / snr for the noise and / (snr + 1) for v.

        Raises:
            UserError: gamma is not above 0; the paper takes 5.
        """
        if not gamma > 0:
            raise UserError(f"min-SNR gamma: found {gamma}, expected a number above 0")
        snr = self.snr(t)
        return jnp.minimum(snr, gamma) / (snr if self.prediction_type == "epsilon" else snr + 1)

    def _signal(self, t: _Time, ndim: int) -> jax.Array:
        """ᾱ at t, with axes of length 1 added up to `ndim`."""
        signal = jnp.asarray(self.alphas_cumprod)[t]
        return signal.reshape(signal.shape + (1,) * (ndim - signal.ndim))
