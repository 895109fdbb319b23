"""What files of low-rank adapters change a layer's kernel by: LoRA, LoCon, LoHa, LoKr and DoRA.

A kernel is here as files have it, [out, in] or [out, in, k, k], float32.

Source: LoRA 2106.09685, DoRA 2402.09353, and the others LyCORIS 2309.14859.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]
KEYS = {
    "lora": ("down", "up", "mid"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ),
}
"""{kind: the tensors that it may have of a layer}, beside "alpha" and "magnitude", DoRA's."""


_RANKS = 64  # times as many numbers as the kernel has may stand between the products


def kernel(tensors: Tensors, before: np.ndarray, alpha: float | None) -> np.ndarray:
    """The kernel that a layer has with the adapter at full strength.

    Args:
        tensors: of the layer, by the names in `KEYS`, float32.
        before: its kernel without.
        alpha: the strength is α over the rank; None is 1.

    Raises:
        KeyError, ValueError: a tensor is missing, or they do not fit each other or the layer.
    """
    kind = next(kind for kind, keys in KEYS.items() if set(keys) & set(tensors))
    change, rank = _KINDS[kind](tensors, before.size)
    if change.shape[0] != before.shape[0]:
        raise ValueError
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    after = before + np.float32(scale) * change.reshape(before.shape)
    return _decomposed(after, tensors["magnitude"]) if "magnitude" in tensors else after


def _lora(tensors: Tensors, most: int) -> tuple[np.ndarray, int]:
    """B A; a LoCon's may have a small convolution between the two."""
    up = _flat(tensors["up"])
    if "mid" in tensors:
        return _tucker(tensors["mid"], up.T, _flat(tensors["down"]), most), up.shape[1]
    return _product(up, _flat(tensors["down"]), most), up.shape[1]


def _loha(tensors: Tensors, most: int) -> tuple[np.ndarray, int]:
    """The product, number by number, of two of low rank."""
    factors = []
    for i in (1, 2):
        first, second = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        factors.append(_joined(tensors.get(f"hada_t{i}"), first, second, most))
    return factors[0] * factors[1], len(tensors["hada_w1_b"])


def _lokr(tensors: Tensors, most: int) -> tuple[np.ndarray, int | None]:
    """The Kronecker product of two, each whole or of low rank; of two whole ones there is no
    rank."""
    rank = None
    factors = []
    for i in (1, 2):
        whole = tensors.get(f"lokr_w{i}")
        if whole is None:
            first, second = tensors[f"lokr_w{i}_a"], tensors[f"lokr_w{i}_b"]
            rank = len(second)
            core = tensors.get("lokr_t2") if i == 2 else None
            whole = _joined(core, first, second, most)
        factors.append(whole)
    one, two = factors
    if one.size * two.size > most:
        raise ValueError
    while one.ndim < two.ndim:
        one = one[..., None]
    return np.kron(one, two), rank


_KINDS: dict[str, Callable[[Tensors, int], tuple[np.ndarray, int | None]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
}


def _joined(
    core: np.ndarray | None, first: np.ndarray, second: np.ndarray, most: int
) -> np.ndarray:
    return _product(first, second, most) if core is None else _tucker(core, first, second, most)


def _product(first: np.ndarray, second: np.ndarray, most: int) -> np.ndarray:
    """ValueError if it has more numbers than the kernel: nothing of that size is made."""
    if len(first) * second.shape[1] > most:
        raise ValueError
    return first @ second


def _tucker(core: np.ndarray, first: np.ndarray, second: np.ndarray, most: int) -> np.ndarray:
    """[out, in, k, k] of a core [r, s, k, k] between [r, out] and [s, in]; see `_product`."""
    r, s, *window = core.shape
    size = math.prod(window) * second.shape[1]
    if max(first.shape[1], r / _RANKS) * size > most or s != len(second):
        raise ValueError
    return np.einsum("rs...,ro,si->oi...", core, first, second, optimize=True)


def _flat(half: np.ndarray) -> np.ndarray:
    return half.reshape(len(half), -1)


def _decomposed(kernel: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """DoRA: each column of the kernel's direction has the length that was trained, of the outputs,
    or in some of LyCORIS' files of the inputs."""
    of_inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.size > 1
    kept = 1 if of_inputs else 0
    axes = tuple(axis for axis in range(kernel.ndim) if axis != kept)
    length = np.sqrt(np.square(kernel).sum(axis=axes, keepdims=True))
    length = np.maximum(length, np.finfo(np.float32).tiny)  # of what is all zeros
    return kernel * magnitude.reshape(length.shape) / length
