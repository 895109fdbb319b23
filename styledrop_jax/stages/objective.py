"""What a round trains on: streams of images under their prompts, everything frozen computed once,
and the loss.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.io import fit
from styledrop_jax.io.fit import Size
from styledrop_jax.methods.base import Example, Stream
from styledrop_jax.models.reading import PLAIN
from styledrop_jax.pipelines.base import Loss, Pipeline, TrainSettings
from styledrop_jax.training import order
from styledrop_jax.training.step import Choice, Losses

_CROPS = 8  # cached variants of each image when crops are random
_SHOWN = ("accuracy", "error", "unmix")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The images of a stream as they train.

    Attributes:
        images: n, uint8 [h, w, 3] of a few sizes. prompts: n, one an image. weight: of its loss.
        apart: [n, t, 2], see `losses.unmix_loss`; None is all zeros.
    """

    images: Sequence[np.ndarray]
    prompts: Sequence[str]
    weight: float = 1.0
    apart: np.ndarray | None = None

    @property
    def sizes(self) -> list[Size]:
        """The height and width of each image."""
        return [image.shape[:2] for image in self.images]


def sizes(streams: Sequence[Stream], pipeline: Pipeline) -> list[list[Size]]:
    """The height and width, pixels, at which each image of each stream trains: see `fit.sizes`.

    Raises:
        UserError: an image is to keep its shape, and the pipeline has one size alone.
    """
    offered = pipeline.canvases
    shapes = []
    for stream in streams:
        own = [example.shape for example in stream.examples]
        if len(offered) == 1 and any(own):
            raise UserError(
                f"config.{stream.section}.fit: found 'keep', expected auto, crop or pad: "
                f"{pipeline.name!r} learns from squares of {pipeline.resolution} pixels alone"
            )
        shapes += own
    generated = [None] * any(stream.generated for stream in streams)
    found = iter(fit.sizes([*shapes, *generated], offered))
    return [[next(found) for _ in stream.examples] for stream in streams]


def said(found: Sequence[Sequence[Size]]) -> str:
    """The `sizes` of images that do not all have one, in words; empty if they have."""
    counts = collections.Counter(itertools.chain.from_iterable(found))
    if len(counts) < 2 and all(height == width for height, width in counts):
        return ""
    each = [f"{count} at {width}x{height}" for (height, width), count in counts.most_common()]
    return f"images train in {len(counts)} sizes, width x height: {', '.join(each)}"


def batch(
    stream: Stream,
    pipeline: Pipeline,
    settings: TrainSettings,
    *,
    seed: int,
    sizes: Sequence[Size] | None = None,
) -> Batch:
    """The images of a stream, each once, or in several crops.

    Args:
        seed: of the crops.
        sizes: of each image; None is the pipeline's resolution.

    Raises:
        UserError: `unmix` on a pipeline whose attention cannot be seen.
    """
    crops: list[tuple[float, float, float] | None] = [None]
    if settings.random_crop and stream.teaches:
        rng = np.random.default_rng(seed)
        crops = [(rng.random(), rng.random(), rng.uniform(0.8, 1.0)) for _ in range(_CROPS)]
    images = []
    prompts = []
    square = (pipeline.resolution, pipeline.resolution)
    for example, size in zip(stream.examples, sizes or itertools.repeat(square), strict=False):
        for crop in crops:
            images.append(example.cut(size, crop))
            prompts.append(example.prompt)
    apart = None
    if stream.unmix:
        check_attention(stream, pipeline, settings)
        shares = [_apart(pipeline, example) for example in stream.examples for _ in crops]
        apart = stream.unmix * np.stack(shares)
    return Batch(images=images, prompts=prompts, weight=stream.weight, apart=apart)


def check_attention(stream: Stream, pipeline: Pipeline, settings: TrainSettings) -> None:
    """UserError if the stream needs to see attention where it cannot be seen."""
    wrong = f"config.{stream.section}.unmix: found {stream.unmix}, expected 0"
    if not pipeline.controllable:
        raise UserError(
            f"{wrong}: the attention of {pipeline.name!r}, which is no Stable Diffusion, "
            "cannot be seen"
        )
    if pipeline.reading != PLAIN:
        raise UserError(f"{wrong} beside config.prompt_weights and config.long_prompts")
    if settings.remat:
        raise UserError(f"{wrong} beside train.remat, which hides the attention")


def _apart(pipeline: Pipeline, example: Example) -> np.ndarray:
    """float32 [t, 2]: an equal share for each token of the right's words in the left half, and the
    reverse.

    Tokens that both have, such as an article, belong nowhere.
    """

    def count(text: str) -> int:
        ids = pipeline.text_ids([text])[0]
        return int(np.argmax(ids == pipeline.tokenizer.eos_token_id)) - 1

    def tokens(start: int, words: str) -> slice:
        first = 1 + count(example.prompt[:start])
        return slice(first, first + count(words))

    assert example.right is not None
    left = " ".join(example.content.split())  # as in the prompt
    right = " ".join(example.right.content.split())
    ids = pipeline.text_ids([example.prompt])[0]
    of_left = tokens(example.prompt.index(left), left)
    of_right = tokens(example.prompt.rindex(right), right)
    apart = np.zeros((len(ids), 2), np.float32)
    apart[of_right, 0] = ~np.isin(ids[of_right], ids[of_left])
    apart[of_left, 1] = ~np.isin(ids[of_left], ids[of_right])
    return apart / max(apart.sum(), 1)


class Words(NamedTuple):
    """The prompts of all images of all streams, n, and after them the empty prompt.

    Attributes:
        text: features of each distinct prompt, or its tokens if the text tower trains.
        of: int32 [n + 1], which of these is an image's.
        apart: see `Batch`, [n + 1, t, 2]; None if no stream has it.
    """

    text: Any
    of: Any
    apart: Any = None


class Targets(NamedTuple):
    """What the images of all streams, n, are to the loss.

    Attributes:
        arrays: of the images of each size, a tree of arrays [m, …].
        size, row: int32 [n], which of these an image is in, and where.
        present: the sizes that each stream has.
    """

    arrays: Sequence[Any]
    size: Any
    row: Any
    present: Sequence[np.ndarray]


class Tuning(nnx.Module):
    """The modules that train, and everything frozen that a step reads, on the device.

    Attributes:
        parts: see `trainable.parts`.
        targets, places: see `Targets`; places are size and row.
        words: see `Words`.
    """

    def __init__(self, parts: nnx.Dict, targets: Targets, words: Words):
        self.parts = parts
        self.targets = _variables(targets.arrays)
        self.places = _variables((targets.size, targets.row))
        self.words = _variables(words)


def _variables(arrays: Any) -> nnx.List:
    return nnx.List([nnx.Variable(jnp.asarray(x)) for x in jax.tree.leaves(arrays)])


def prepare(
    model: Pipeline, what: Trainable, batches: Sequence[Batch], settings: TrainSettings
) -> tuple[Tuning, Losses]:
    """What `loop.fit` takes.

    Args:
        model: with `what` attached.
        what: trains.
        batches: at least one; each gives a step its own images, and its loss counts by its weight.
        settings: how to train.
    """
    prompts: list[str] = []
    for part in batches:
        prompts += part.prompts
    prompts.append("")
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    images = list(itertools.chain.from_iterable(part.images for part in batches))

    def encoded(size: Size, own: np.ndarray) -> Any:
        del size
        return model.encode_images(np.stack([images[i] for i in own]))

    targets = laid_out([part.sizes for part in batches], encoded)
    encode = model.text_tokens if what.trains_text else model.encode_text
    of = np.array([distinct[prompt] for prompt in prompts], np.int32)
    words = Words(encode(list(distinct)), of, _stacked(batches))
    weights = [part.weight for part in batches]
    return assembled(model, what, targets, words, weights, settings)


def laid_out(of: Sequence[Sequence[Size]], encode: Callable[[Size, np.ndarray], Any]) -> Targets:
    """The targets of images of these sizes, in streams.

    Args:
        encode: (a size, the numbers of all images that have it) → their tree of arrays.
    """
    kinds = _kinds(of)
    kind = np.concatenate(kinds)
    every = list(itertools.chain.from_iterable(of))
    row = np.empty(len(every), np.int32)
    arrays = []
    for one in range(kind.max() + 1):
        own = np.flatnonzero(kind == one)
        row[own] = np.arange(len(own))
        arrays.append(encode(every[own[0]], own))
    return Targets(arrays, kind.astype(np.int32), row, [np.unique(each) for each in kinds])


def _kinds(of: Sequence[Sequence[Size]]) -> list[np.ndarray]:
    """The sizes by number, in the order in which they first appear."""
    known = list(dict.fromkeys(itertools.chain.from_iterable(of)))
    return [np.array([known.index(size) for size in own]) for own in of]


def assembled(
    model: Pipeline,
    what: Trainable,
    targets: Targets,
    words: Words,
    weights: Sequence[float],
    settings: TrainSettings,
) -> tuple[Tuning, Losses]:
    """What `prepare` gives; `weights` are of the streams' losses.

    Images of one size train as one batch; of several, each stream's are a batch of their own.
    """
    tuning = Tuning(trainable.parts(model, what), targets, words)
    loss = _Loss(
        of_images=model.loss(settings),
        text_features=model.text_features if what.trains_text else None,
        text_dropout=settings.text_dropout,
        weights=tuple(weights),
        target=jax.tree.structure(targets.arrays[0]),
        words=jax.tree.structure(words),
        streams=(0, len(weights)),
        size=0,
    )
    if len(targets.arrays) == 1:
        return tuning, loss
    choices = []
    for stream, present in enumerate(targets.present):
        of_stream = dataclasses.replace(loss, streams=(stream, stream + 1))
        losses = tuple(dataclasses.replace(of_stream, size=int(size)) for size in present)
        choices.append(Choice(losses, _Which(stream, tuple(present.tolist()))))
    return tuning, tuple(choices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    """The loss of those examples that are in some of the streams and have one size, the prompt of
    each dropped at random. It is equal to that of another run that computes the same.

    Attributes:
        of_images: see `Pipeline.loss`.
        text_features: see `Pipeline`, of the text tower that trains; None if none does.
        text_dropout: probability that a prompt is dropped.
        weights: of the losses of all streams, s.
        target, words: the structures of `Targets.arrays` of a size, and of `Words`.
        streams: from the first to before the second.
        size: by its number.
    """

    of_images: Loss
    text_features: Callable[[Any, Any], Any] | None
    text_dropout: float
    weights: tuple[float, ...]
    target: Any
    words: Any
    streams: tuple[int, int]
    size: int

    def __call__(
        self, tuning: Any, rows: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of the examples `rows` [b, s]; see `step.Loss`."""
        every = np.array(self.weights, np.float32)
        streams = slice(*self.streams)
        own = rows[:, streams]
        flat = own.reshape(-1)
        split = jax.vmap(lambda key: jax.random.split(key, (len(every), 2)))(keys)  # [b, s, 2]
        drop_keys, loss_keys = split[:, streams].reshape(-1, 2).T
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.text_dropout))(drop_keys)
        known = jax.tree.unflatten(self.words, [x[...] for x in tuning.words])
        empty = len(known.of) - 1
        chosen = jnp.where(dropped, empty, flat)
        text = jax.tree.map(lambda x: x[known.of[chosen]], known.text)
        if self.text_features is not None:
            text = self.text_features(tuning.parts.text, text)
        if known.apart is not None:
            text = text._replace(apart=known.apart[chosen])
        target = self._target(tuning, flat)
        each, metrics = self.of_images(tuning.parts.denoiser, target, text, loss_keys)
        per_stream = each.reshape(own.shape).mean(0)
        share = own.shape[1] / rows.shape[1]
        shown = {name: share * metrics[name].mean() for name in _SHOWN if name in metrics}
        if len(every) > 1:
            values = jnp.zeros(len(every)).at[streams].set(per_stream)
            shown |= {f"loss_{s}": value for s, value in enumerate(values)}
        return per_stream @ every[streams], shown

    def _target(self, tuning: Any, examples: jax.Array) -> Any:
        leaves = self.target.num_leaves
        _, row = tuning.places
        held = tuning.targets[self.size * leaves : (self.size + 1) * leaves]
        return jax.tree.unflatten(self.target, [x[...][row[...][examples]] for x in held])


@dataclasses.dataclass(frozen=True)
class _Which:
    """Which of the sizes that a stream has, `present`, its images of a step have."""

    stream: int
    present: tuple[int, ...]

    def __call__(self, tuning: Any, rows: jax.Array) -> jax.Array:
        size, _ = tuning.places
        return jnp.argmax(np.array(self.present) == size[...][rows[0, self.stream]])


def _stacked(batches: Sequence[Batch]) -> np.ndarray | None:
    """`Batch.apart` of all streams with a row for the empty prompt; None if none has it."""
    shapes = [part.apart.shape[1:] for part in batches if part.apart is not None]
    if not shapes:
        return None
    rows = []
    for part in batches:
        none = np.zeros((len(part.prompts), *shapes[0]), np.float32)
        rows.append(none if part.apart is None else part.apart)
    return np.concatenate([*rows, np.zeros((1, *shapes[0]), np.float32)])


def rows(
    batches: Sequence[Batch], *, batch_size: int, seeds: Sequence[int]
) -> Callable[[int, int], np.ndarray]:
    """`rows(start, count)` → the rows [count, b, s] of steps [start, start + count); each stream
    has its own order, and in a step images of one size.
    """
    kinds = _kinds([part.sizes for part in batches])
    first = np.cumsum([0, *[len(own) for own in kinds[:-1]]])

    def of_step(step: int) -> np.ndarray:
        each = []
        for offset, own, seed in zip(first, kinds, seeds, strict=True):
            chosen = order.of_one_kind(step, batch_size=batch_size, kinds=own, seed=seed)
            each.append(offset + chosen)
        return np.stack(each, axis=1)

    return lambda start, count: np.stack([of_step(step) for step in range(start, start + count)])
