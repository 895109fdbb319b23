"""The programs of a run, built from shapes: what the stages run on arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from styledrop_jax import guidance, trainable
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.io.fit import Size
from styledrop_jax.io.pretrained import ONE_KEY
from styledrop_jax.models.reading import Tokens
from styledrop_jax.pipelines.base import Compilable, Group, Pipeline, SampleSettings, TrainSettings
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, mesh, optim
from styledrop_jax.training.step import make_train_step


class Images(NamedTuple):
    """A stream as a plan knows it: the height and width of each of its images, its weight, whether
    their halves are kept apart, how many distinct prompts they have.
    """

    sizes: Sequence[Size]
    weight: float = 1.0
    unmix: bool = False
    prompts: int = 1


def trained(pipeline: Pipeline, what: Trainable) -> tuple[Any, Any]:
    """What trains of a pipeline, and the frozen rest of the modules that it is in, as shapes."""

    def build(base: Pipeline) -> tuple[Any, Any]:
        modules = trainable.parts(trainable.put(base, what, rngs=ONE_KEY), what)
        _, state, rest = nnx.split(modules, trainable.trained(what), ...)
        return nnx.as_pure(state), nnx.as_pure(rest)

    names = ("denoiser", "text") if what.trains_text else ("denoiser",)
    return _of_shapes(pipeline, build, names)


def training(
    pipeline: Pipeline,
    what: Trainable,
    streams: Sequence[Images],
    settings: TrainSettings,
    *,
    steps: int,
    devices: AbstractMesh,
    chunks: int = 1,
) -> Compilable:
    """A dispatch of at most `steps` training steps of a pipeline of shapes, whose prompts are read
    in `chunks`; its arguments say how they lie on the devices.
    """
    graphdef: Any = None
    loss: Any = None

    def build(base: Pipeline) -> tuple[Any, Any]:
        nonlocal graphdef, loss
        model = trainable.attach(base, what, rngs=ONE_KEY)
        count = sum(len(stream.sizes) for stream in streams)

        def encoded(size: Size, own: np.ndarray) -> Any:
            return base.autoencoder.encode(jnp.zeros((len(own), *size, 3)))

        targets = objective.laid_out([stream.sizes for stream in streams], encoded)
        prompts = sum(stream.prompts for stream in streams)
        tokens = Tokens(jnp.zeros((prompts + 1, chunks, base.prompt_length), jnp.int32))
        text = tokens if what.trains_text else base.text_features(base.text, tokens)
        apart = None
        if any(stream.unmix for stream in streams):
            apart = jnp.zeros((count + 1, base.prompt_length, 2))
        words = objective.Words(text, jnp.zeros(count + 1, jnp.int32), apart)
        weights = [stream.weight for stream in streams]
        tuning, loss = objective.assembled(model, what, targets, words, weights, settings)
        graphdef, params, frozen = loop.split(tuning, trainable.trained(what))
        return params, frozen

    params, frozen = _of_shapes(pipeline, build)
    optimizer = optim.make(settings.learning_rate, ema_decay=settings.ema_decay)
    state = jax.eval_shape(lambda params: loop.init_state(params, optimizer), params)
    shardings = None if devices.size == 1 else mesh.shardings(state, devices)
    rows = jax.ShapeDtypeStruct((steps, settings.batch_size, len(streams)), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(loss, optimizer, accumulate=settings.accumulate, shardings=shardings)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state, frozen = placed(state, devices), placed(frozen, devices)
    return Compilable(step, (graphdef, state, frozen, _cut(rows, devices, 1), count, key))


def sampling(
    pipeline: Pipeline,
    what: Trainable,
    settings: SampleSettings,
    devices: AbstractMesh,
    chunks: int = 1,
) -> dict[str, Compilable]:
    """The sampler and the decoder of a batch, of a pipeline of shapes with what trains in it; see
    `training`.
    """
    count = mesh.rounded(settings.batch_size, devices)
    statics: list[Group] = []

    def build(base: Pipeline) -> list[Any]:
        model = trainable.attach(base, what, rngs=ONE_KEY)
        tuned = guidance.tuned(base, model, what)
        branches = guidance.style_branches(tuned, [""] * count, settings)
        tokens = Tokens(jnp.zeros((count, chunks, base.prompt_length), jnp.int32))
        texts = []
        for branch in branches:
            encoder = branch.tuned.model if branch.on else branch.tuned.base
            texts.append(encoder.text_features(encoder.text, tokens))
        found = guidance.groups(branches, texts, np.arange(count))
        statics.extend(group._replace(states=None, frozen=None, text=None) for group in found)
        return [group.arrays for group in found]

    groups = []
    arrays_of = _of_shapes(pipeline, build)
    for static, arrays in zip(statics, arrays_of, strict=True):
        states, frozen, text, weights = arrays
        groups.append(
            static._replace(
                states=placed(states, devices, stacked=not static.shared),
                frozen=placed(frozen, devices),
                text=jax.tree.map(lambda x: _cut(x, devices, 1), text),
                weights=weights,
            )
        )
    found = pipeline.programs(groups, count, settings)
    decode, (weights, codes) = found["decoding"]
    codes = jax.ShapeDtypeStruct((mesh.rounded(len(codes), devices), *codes.shape[1:]), codes.dtype)
    found["decoding"] = Compilable(decode, (placed(weights, devices), _cut(codes, devices, 0)))
    return found


def placed(tree: Any, devices: AbstractMesh, *, stacked: bool = False) -> Any:
    """Shapes of weights with how they lie on several devices.

    Args:
        stacked: several of each, along a first axis.
    """
    if devices.size == 1:
        return tree
    first = int(stacked)
    each = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[first:], x.dtype), tree)

    def put(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*[None] * first, *sharding.spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(devices, spec))

    return jax.tree.map(put, tree, mesh.shardings(each, devices))


def _cut(x: Any, devices: AbstractMesh, axis: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of which each device has its part along `axis`."""
    if devices.size == 1:
        return x
    spec = PartitionSpec(*[None] * axis, mesh.AXES)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(devices, spec))


def _of_shapes(
    pipeline: Pipeline,
    build: Callable[[Pipeline], Any],
    names: Sequence[str] = ("denoiser", "autoencoder", "text"),
) -> Any:
    """What `build` makes of a pipeline, a pure tree, as shapes, without computing it.

    Args:
        names: of the modules that it reads.
    """
    graphs = {}
    states = {}
    for name in names:
        graphs[name], states[name] = nnx.split(getattr(pipeline, name))

    def run(states: dict[str, Any]) -> Any:
        modules = {}
        for name, graphdef in graphs.items():
            modules[name] = nnx.merge(graphdef, states[name])
        return build(dataclasses.replace(pipeline, **modules))

    return jax.eval_shape(run, states)
