"""The slots of a model's layers: where adapters of one layer each go, and how they are merged."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.errors import UserError, shown
from styledrop_jax.models.layers import Conv, Linear, convolution

TARGETS = {
    "attention": r"(?:.+\.)?(?:to_[qkv]|to_out\.0|[qkv]_proj|out_proj)",
    "all": r".+",
}
"""Which layers: a regular expression over dotted paths, for the image models and CLIP's towers."""


def check_targets(targets: str, *, kind: str) -> None:
    """Raises a UserError unless `targets` is one of `TARGETS`."""
    if targets not in TARGETS:
        raise UserError(
            f"{kind} targets: found {shown(targets)}, expected one of {', '.join(TARGETS)}"
        )


class Projection(nnx.Module):
    """The part of a layer that reads its input, with another kernel in place of its own."""

    def __init__(self, layer: Linear | Conv):
        self.window = None
        if isinstance(layer, Conv):
            self.window = ((layer.strides,) * 2, layer.padding)

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns [..., r].

        Args:
            x: what the layer takes.
            kernel: [c, r], or [k, k, c, r] of a convolution.
        """
        if self.window is None:
            return x @ kernel
        return convolution(x, kernel, *self.window)


class LayerAdapter(nnx.Module):
    """What a slot holds: it maps a layer's input and output to a new output.

    Every one is linear in the input, so that it can also be merged into the layer's kernel.
    """

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the new output, in y's dtype.

        Args:
            x: the layer's input.
            y: the layer's output [..., c_out].
        """
        raise NotImplementedError

    def change(self) -> jax.Array:
        """What merging adds to the layer's kernel: float32 [c, c_out], or [k, k, c, c_out]."""
        raise NotImplementedError


def slots(module: nnx.Module) -> dict[str, Linear | Conv]:
    """{dotted path: layer} of every linear layer and convolution of `module` that has a slot."""
    found = {}
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear | Conv):
            found[tree.path_name(path)] = layer
    return found


def fill(module: nnx.Module, pattern: str, make: Callable[[Any], LayerAdapter]) -> None:
    """Sets `make(layer)` into the slot of every layer whose path matches, and clears all others.

    Args:
        module: a U-ViT, a U-Net, a CLIP tower, or anything made of `models.layers`.
        pattern: a regular expression over the layers' dotted paths.
        make: layer → its adapter.

    Raises:
        UserError: the path of no layer matches.
    """
    layers = slots(module)
    chosen = {name for name in layers if re.fullmatch(pattern, name)}
    if not chosen:
        raise UserError(f"adapter: {type(module).__name__} has no layers that it could be put into")
    for name, layer in layers.items():
        _set(layer, make(layer) if name in chosen else None)


def merge(module: nnx.Module) -> None:
    """Adds what is in the slots to the kernels and empties the slots; the outputs stay the same.

    The layers get new variables, in float32: modules that shared the old ones keep them as they
    are.
    """
    for layer in slots(module).values():
        adapter: Any = layer.adapter
        if adapter is not None:
            kernel = layer.kernel[...].astype(jnp.float32)
            layer.kernel = nnx.Param(kernel + adapter.change())
            _set(layer, None)


def _set(layer: Any, adapter: LayerAdapter | None) -> None:
    layer.adapter = nnx.data(adapter)
