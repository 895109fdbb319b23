"""Optimisers: optax chains from the numbers of a config."""

import jax
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
        muon: for matrices but the first and last, Muon's orthogonalised momentum in place of Adam's step, scaled to
            the same size (Moonlight, 2502.16982, Eq. 4).
    """
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(warmup, 1), max(steps, warmup + 1))
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
    return optax.chain(*parts)


def _orthogonal(params):
    """Muon's axes for the matrices inside the network; None for embeddings, the output layer and vectors."""

    def axes(path, p):
        name = jax.tree_util.keystr(path)
        outer = "embedding" in name or "mlm_layer" in name
        return None if p.ndim != 2 or outer else optax.contrib.MuonDimensionNumbers()

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)
