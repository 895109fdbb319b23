"""Tiny bases of random weights that adapters are put into, and the reference's same models."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import torch
import transformers
from diffusers import UNet2DConditionModel, UVit2DModel
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.adapters import slots
from styledrop_jax.adapters.base import AdapterParam
from styledrop_jax.io import pretrained
from styledrop_jax.models import clip, unet, uvit
from styledrop_jax.models.rules import Rules

_RNG = np.random.default_rng(0)
_UVIT = uvit.Config(
    hidden_size=12,
    cond_embed_dim=6,
    micro_cond_encode_dim=4,
    micro_cond_embed_dim=20,
    encoder_hidden_size=10,
    vocab_size=12,
    codebook_size=8,
    in_channels=8,
    block_out_channels=8,
    num_res_blocks=1,
    block_num_heads=2,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=10,
    sample_size=3,
)
_UNET = tiny.unet_config(sample_size=4, cross_attention_dim=10)
_TEXT = clip.TextConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=5,
    bos_token_id=18,
    eos_token_id=19,
)


class Base(NamedTuple):
    """A model.

    How to build it, its naming, one batch of inputs, the reference's class, and its place in a
    pipeline.
    """

    build: Callable[[], nnx.Module]
    rules: Rules
    inputs: tuple[np.ndarray, ...]
    reference: Callable[[], torch.nn.Module]
    prefix: str


def _normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape, np.float32)


BASES = {
    "uvit": Base(
        lambda: uvit.UVit(_UVIT, rngs=pretrained.ONE_KEY),
        uvit.RULES,
        (
            _RNG.integers(0, 8, (2, 3, 3)).astype(np.int32),
            _normal(2, 5, 10),
            _normal(2, 6),
            np.array([[8, 8, 0, 0, 6]] * 2, np.float32),
        ),
        lambda: UVit2DModel.from_config(_UVIT.to_dict()),
        "transformer",
    ),
    "unet": Base(
        lambda: unet.UNet(_UNET, rngs=pretrained.ONE_KEY),
        unet.RULES,
        (_normal(2, 4, 4, 4), np.array([3, 700], np.float32), _normal(2, 5, 10)),
        lambda: UNet2DConditionModel.from_config(_UNET.to_dict()),
        "unet",
    ),
    "text": Base(
        lambda: clip.ClipText(_TEXT, rngs=pretrained.ONE_KEY),
        clip.RULES,
        (np.array([[18, 3, 4, 19, 19], [18, 5, 19, 19, 19]]),),
        lambda: transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**_TEXT.to_dict())
        ),
        "text_encoder",
    ),
}


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """The weights in the reference's names.

    Nothing is zero, so that no bias, norm or output layer hides a mistake.
    """
    shapes = pretrained.shapes(nnx.eval_shape(BASES[name].build), BASES[name].rules)
    found = {}
    for key, shape in shapes.items():
        found[key] = _normal(*shape) * np.float32(0.3) + ("norm" in key)
    return found


@functools.cache
def _bare(name: str) -> tuple[nnx.GraphDef, Any]:
    module = pretrained.load(BASES[name].build, tensors(name), BASES[name].rules, source=name)
    graphdef, state = nnx.split(module)
    return graphdef, nnx.as_pure(state)


def load(name: str) -> nnx.Module:
    """A new module with the weights of `tensors`."""
    return nnx.merge(*_bare(name))


def _output(name: str, graphdef: nnx.GraphDef, *states: Any) -> jax.Array:
    out = nnx.merge(graphdef, *states)(*BASES[name].inputs)
    return (
        jnp.concatenate([out.last_hidden_state.ravel(), out.embeds.ravel()])
        if name == "text"
        else out
    )


def _gradient(name: str, graphdef: nnx.GraphDef, adapter: Any, frozen: Any) -> Any:
    return jax.grad(lambda adapter: jnp.sum(_output(name, graphdef, adapter, frozen) ** 2))(adapter)


# Hardly optimised: compiling is what takes the time, and without fusion two programs round alike.
_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
_jit_output = _jit(_output, static_argnums=(0, 1))
_jit_gradient = _jit(_gradient, static_argnums=(0, 1))


class Adapted(NamedTuple):
    """A base with an adapter.

    Attributes:
        fresh: the state it begins with, pure. frozen: all the rest.
        run: a state of the adapter → the model's output. gradient: → of the sum of its squares.
    """

    fresh: Any
    frozen: Any
    run: Callable[[Any], jax.Array]
    gradient: Callable[[Any], Any]


def adapted(name: str, attach: Callable[[nnx.Module], None]) -> Adapted:
    """The base with the adapter that `attach` puts in."""
    graphdef, state = _bare(name)

    def attached(state: Any) -> nnx.Module:
        module = nnx.merge(graphdef, state)
        attach(module)
        return module

    def split(state: Any) -> tuple[Any, Any]:
        _, adapter, frozen = nnx.split(attached(state), AdapterParam, ...)
        return nnx.as_pure(adapter), nnx.as_pure(frozen)

    fresh, frozen = _jit(split)(state)
    new = nnx.graphdef(nnx.eval_shape(attached, state))
    return Adapted(
        fresh,
        frozen,
        lambda adapter: _jit_output(name, new, adapter, frozen),
        lambda adapter: _jit_gradient(name, new, adapter, frozen),
    )


def with_kernels(
    name: str, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, kernel: kernel
) -> np.ndarray:
    """The bare base's output after `change(layer's path, kernel)` of every kernel in it."""
    graphdef, state = _bare(name)
    flat = nnx.traversals.flatten_mapping(state)
    for path, leaf in flat.items():
        if path[-1] == "kernel":
            flat[path] = change(tree.path_name(path[:-1]), np.asarray(leaf))
    return np.asarray(_jit_output(name, graphdef, nnx.traversals.unflatten_mapping(flat)))


def merged(name: str, module: nnx.Module) -> np.ndarray:
    """The bare base's output with the kernels of `module`, whose adapters are merged into them."""
    slots.merge(module)
    kernels = tree.flatten(nnx.state(module))
    assert "adapter" not in " ".join(kernels)
    return with_kernels(name, lambda path, _: np.asarray(kernels[f"{path}.kernel"]))


def by_layer(state: Any, weight: str) -> dict[str, np.ndarray]:
    """{path of a layer: the adapter's weight of that name in it}."""
    found = {}
    for path, leaf in tree.flatten(state).items():
        layer, _, name = path.rpartition(".adapter.")
        if name == weight:
            found[layer] = np.asarray(leaf)
    return found


def silent(gradients: Any) -> list[str]:
    """The names of the gradients that are zero throughout."""
    found = []
    for name, gradient in tree.flatten(gradients).items():
        if not np.asarray(gradient).any():
            found.append(name)
    return found


def random(state: Any, *, scale: float = 0.2, seed: int = 0) -> Any:
    """A state of the same structure, as if trained: nothing in it is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32), state
    )


def load_weights(model: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Puts arrays into a module of the reference, which must be exactly its own."""
    found = {}
    for key, value in weights.items():
        found[key] = torch.from_numpy(np.array(value))
    model.load_state_dict(found)


@torch.no_grad()
def reference(name: str, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The reference model's output with these weights, as `with_kernels` gives it."""
    model = BASES[name].reference().train(False)
    load_weights(model, weights)
    inputs = [torch.from_numpy(part) for part in BASES[name].inputs]
    if name == "text":
        out = model(*inputs)
        return np.concatenate(
            [out.last_hidden_state.numpy().ravel(), out.text_embeds.numpy().ravel()]
        )
    if name == "unet":
        inputs[0] = inputs[0].permute(0, 3, 1, 2)
    out = model(*inputs)
    return (out.sample if name == "unet" else out).permute(0, 2, 3, 1).numpy()
