"""Optimisers: optax chains from the numbers of a config."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


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
    """Adam, or AdamW when `weight_decay` > 0 (matrices and tables only), with warm-up and an optional cosine decay.

    Args:
        learning_rate: the peak.
        steps: total steps, needed by the cosine schedule.
        warmup: steps of linear warm-up.
        schedule: "constant" or "cosine" (to zero).
        weight_decay: decoupled decay.
        clip_norm: global gradient norm limit; 0 means none.
        b2: second-moment decay.
        muon: for matrices and convolutions but the first and last, Muon's orthogonalised momentum in place of Adam's
            step, scaled to the same size (Moonlight, 2502.16982, Eq. 4).
        ema_decay: of the average of the parameters that `averaged` finds in the optimiser's state; 0 keeps none.
    """
    if schedule == "cosine":
        rising = max(warmup, 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, rising, max(steps, rising + 1)
        )
    elif warmup:
        rate = optax.linear_schedule(0.0, learning_rate, warmup)
    else:
        rate = learning_rate
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if muon:
        scaled = {"weight_decay": weight_decay, "adam_b2": b2, "consistent_rms": 0.2}
        parts.append(optax.contrib.muon(rate, muon_weight_dimension_numbers=_orthogonal, **scaled))
    elif weight_decay:
        parts.append(optax.adamw(rate, b2=b2, weight_decay=weight_decay, mask=_matrices))
    else:
        parts.append(optax.adam(rate, b2=b2))
    if ema_decay:
        parts.append(_averaging(ema_decay))
    return optax.chain(*parts)


def averaged(params: optax.Params, state: optax.OptState) -> optax.Params:
    """The average of the parameters over the steps, if the optimiser keeps one; else `params`."""
    return optax.tree.get(state, "average", params)


class _Average(NamedTuple):
    count: jax.Array
    average: optax.Params


def _averaging(decay: float) -> optax.GradientTransformation:
    """Keeps the exponential moving average of the parameters after each step, without the bias towards the first.

    With Adam's correction (1412.6980 section 3) applied as it goes: after t steps the latest parameters count for
    (1 - decay) / (1 - decay^t), all of it after the first, so what training began with has no part in it.
    """

    def init(params: optax.Params) -> _Average:
        return _Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(
        updates: optax.Updates, state: _Average, params: optax.Params
    ) -> tuple[optax.Updates, _Average]:
        count = state.count + 1
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))
        average = optax.incremental_update(
            optax.apply_updates(params, updates), state.average, share
        )
        return updates, _Average(count, average)

    return optax.GradientTransformation(init, update)


def _orthogonal(params):
    """Muon's axes for the matrices inside the network, a convolution's [h·w·c, d] too; None for all else."""

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
