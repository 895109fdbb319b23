"""Optimisers: optax chains from the numbers of a config."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@functools.lru_cache(maxsize=8)
def make(
    learning_rate: float,
    *,
    steps: int = 0,
    warmup: int = 0,
    schedule: str = "constant",
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    b2: float = 0.999,
    muon: bool = False,
    ema_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with warm-up and an optional cosine decay of its rate.

    It is AdamW if `weight_decay` is above 0, which is then for matrices and tables only. Of the
    same arguments it is the same object.

    Args:
        learning_rate: the peak.
        steps: total steps, needed by the cosine schedule.
        warmup: steps of linear warm-up.
        schedule: "constant" or "cosine" (to zero).
        weight_decay: decoupled decay.
        clip_norm: global gradient norm limit; 0 means none.
        b2: second-moment decay.
        muon: for matrices and convolutions but the first and last, Muon's orthogonalised momentum
            in place of Adam's step, scaled to the same size (Moonlight, 2502.16982, Eq. 4).
        ema_decay: of the average of the parameters that `averaged` finds in the optimiser's state;
            0 keeps none.
    """
    rate = _rate(learning_rate, steps, warmup, cosine=schedule == "cosine")
    parts = []
    if clip_norm:
        parts.append(optax.clip_by_global_norm(clip_norm))
    if muon:
        parts.append(
            optax.contrib.muon(
                rate,
                adam_b2=b2,
                weight_decay=weight_decay,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=_orthogonal,
            )
        )
    elif weight_decay:
        parts.append(optax.adamw(rate, b2=b2, weight_decay=weight_decay, mask=_matrices))
    else:
        parts.append(optax.adam(rate, b2=b2))
    if ema_decay:
        parts.append(_averaging(ema_decay))
    return optax.chain(*parts)


def _rate(peak: float, steps: int, warmup: int, *, cosine: bool) -> optax.ScalarOrSchedule:
    if cosine:
        rising = max(warmup, 1)
        return optax.warmup_cosine_decay_schedule(0.0, peak, rising, max(steps, rising + 1))
    if warmup:
        return optax.linear_schedule(0.0, peak, warmup)
    return peak


def averaged(params: Any, state: optax.OptState) -> Any:
    """The average of the parameters over the steps, if the optimiser keeps one; else `params`."""
    return optax.tree.get(state, "average", params)


class _Average(NamedTuple):
    count: jax.Array
    average: optax.Params


def _averaging(decay: float) -> optax.GradientTransformation:
    """Keeps an unbiased exponential moving average of the parameters after each step.

    Adam's correction of the bias (1412.6980 section 3) is applied at every step: after t steps the
    latest parameters count for (1 - decay) / (1 - decay^t). After the first step that is all, so
    what training began with has no part in the average.
    """

    def init(params: optax.Params) -> _Average:
        return _Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _Average]:
        if params is None:
            raise ValueError("an average of the parameters needs the parameters")
        count = state.count + 1
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))
        moved = optax.apply_updates(params, updates)
        return updates, _Average(count, optax.incremental_update(moved, state.average, share))

    return optax.GradientTransformation(init, update)


def _orthogonal(params):
    """Muon's axes for the matrices inside the network, None for all else.

    A convolution is one of them, as the matrix [h·w·c, d].
    """

    def axes(path, p):
        name = jax.tree_util.keystr(path)
        outer = any(part in name for part in ("embedding", "mlm_layer", "conv_in", "conv_out"))
        depthwise = p.ndim == 4 and p.shape[2] == 1
        if outer or depthwise or p.ndim not in (2, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)
