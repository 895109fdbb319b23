"""One round of training: streams of images under their prompts, everything frozen computed once, and the loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.pipelines.base import Pipeline, TrainSettings
from styledrop_jax.training import order
from styledrop_jax.training.loop import Loss


class Stream(NamedTuple):
    """Images that train together.

    Attributes:
        images: uint8 [n, r, r, 3]. prompts: n, one an image. weight: of its loss.
        apart: [n, t, 2], see `losses.unmix_loss`; None is all zeros.
    """

    images: np.ndarray
    prompts: Sequence[str]
    weight: float = 1.0
    apart: np.ndarray | None = None


class Tuning(nnx.Module):
    """The modules that train, and everything frozen that a step reads, on the device.

    Attributes:
        parts: see `trainable.parts`.
        targets: what the images of all streams are to the loss. words: features of their prompts, or token ids if the
            text tower trains, and `Stream.apart` if any stream has it; the last row is the empty prompt.
    """

    def __init__(self, parts: nnx.Dict, targets: Any, words: Any):
        self.parts = parts
        self.targets = nnx.List([nnx.Variable(jnp.asarray(x)) for x in jax.tree.leaves(targets)])
        self.words = nnx.List([nnx.Variable(jnp.asarray(x)) for x in jax.tree.leaves(words)])


def prepare(
    model: Pipeline, plan: trainable.Trainable, sources: Sequence[Stream], settings: TrainSettings
) -> tuple[Tuning, Loss]:
    """What `loop.fit` takes.

    Args:
        model: with the `plan` attached.
        plan: what trains.
        sources: at least one stream; each gives a step its own batch, and its loss counts by its weight.
        hyper: `config.round_N.train`: `text_dropout`, and what the pipeline's own loss takes.
    """
    images, prompts = (
        np.concatenate([source.images for source in sources]),
        [p for s in sources for p in s.prompts],
    )
    targets = model.encode_images(images)
    encode = model.text_ids if plan.trains_text else model.encode_text
    words = (
        encode([*prompts, ""]),
        _stacked([source.apart for source in sources], [len(s.prompts) for s in sources]),
    )
    shapes = jax.tree.structure(targets), jax.tree.structure(words)
    weights, empty = np.array([source.weight for source in sources], np.float32), len(prompts)

    def loss(
        tuning: Tuning, rows: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of examples `rows` [b, s] of s streams, the prompt of each dropped with probability `text_dropout`."""
        flat = rows.reshape(-1)
        split = jax.vmap(lambda key: jax.random.split(key, (len(weights), 2)))(keys)  # [b, s, 2]
        drop_keys, loss_keys = split.reshape(-1, 2).T
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, settings.text_dropout))(drop_keys)
        chosen = jnp.where(dropped, empty, flat)
        target = jax.tree.unflatten(shapes[0], [x[...][flat] for x in tuning.targets])
        text, apart = jax.tree.unflatten(shapes[1], [x[...][chosen] for x in tuning.words])
        if plan.trains_text:
            text = model.text_features(tuning.parts.text, text)
        if apart is not None:
            text = text._replace(apart=apart)
        each, metrics = model.loss(tuning.parts.denoiser, target, text, loss_keys, settings)
        per_stream = each.reshape(rows.shape).mean(0)
        named = (
            {f"loss_{s}": value for s, value in enumerate(per_stream)} if len(weights) > 1 else {}
        )
        shown = {
            name: metrics[name].mean() for name in ("accuracy", "error", "unmix") if name in metrics
        }
        return per_stream @ weights, shown | named

    return Tuning(trainable.parts(model, plan), targets, words), loss


def _stacked(apart: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    """`Stream.apart` of all streams with a row for the empty prompt; None if none has it."""
    shape = next((x.shape[1:] for x in apart if x is not None), None)
    if shape is None:
        return None
    rows = [
        np.zeros((n, *shape), np.float32) if x is None else x
        for x, n in zip(apart, counts, strict=True)
    ]
    return np.concatenate([*rows, np.zeros((1, *shape), np.float32)])


def batches(
    sources: Sequence[Stream], *, batch_size: int, seed: int
) -> Callable[[int, int], np.ndarray]:
    """`batches(start, count)` → the rows [count, b, s] of steps [start, start + count); each has its own order."""
    counts = [len(source.prompts) for source in sources]
    first = np.cumsum([0, *counts[:-1]])

    def rows(step: int) -> np.ndarray:
        each = [
            offset + order.indices(step, batch_size=batch_size, count=count, seed=seed + s)
            for s, (offset, count) in enumerate(zip(first, counts, strict=True))
        ]
        return np.stack(each, axis=1)

    return lambda start, count: np.stack([rows(step) for step in range(start, start + count)])
