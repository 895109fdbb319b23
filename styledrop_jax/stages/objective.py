"""What a round trains on: streams of images under their prompts, everything frozen computed once,
and the loss.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.methods.base import Example, Stream
from styledrop_jax.models.reading import PLAIN
from styledrop_jax.pipelines.base import Pipeline, TrainSettings
from styledrop_jax.training import order
from styledrop_jax.training.loop import Loss

_CROPS = 8  # cached variants of each image when crops are random
_SHOWN = ("accuracy", "error", "unmix")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The images of a stream as they train.

    Attributes:
        images: uint8 [n, r, r, 3]. prompts: n, one an image. weight: of its loss.
        apart: [n, t, 2], see `losses.unmix_loss`; None is all zeros.
    """

    images: np.ndarray
    prompts: Sequence[str]
    weight: float = 1.0
    apart: np.ndarray | None = None


def batch(stream: Stream, pipeline: Pipeline, settings: TrainSettings, *, seed: int) -> Batch:
    """The images of a stream at the pipeline's resolution, each once, or in several crops.

    Raises:
        UserError: `unmix` on a pipeline whose attention cannot be seen.
    """
    crops: list[tuple[float, float, float] | None] = [None]
    if settings.random_crop and stream.teaches:
        rng = np.random.default_rng(seed)
        crops = [(rng.random(), rng.random(), rng.uniform(0.8, 1.0)) for _ in range(_CROPS)]
    images = []
    prompts = []
    for example in stream.examples:
        for crop in crops:
            images.append(example.at(pipeline.resolution, crop))
            prompts.append(example.prompt)
    apart = None
    if stream.unmix:
        check_attention(stream, pipeline, settings)
        shares = [_apart(pipeline, example) for example in stream.examples for _ in crops]
        apart = stream.unmix * np.stack(shares)
    return Batch(images=np.stack(images), prompts=prompts, weight=stream.weight, apart=apart)


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


class Tuning(nnx.Module):
    """The modules that train, and everything frozen that a step reads, on the device.

    Attributes:
        parts: see `trainable.parts`.
        targets: what the images of all streams are to the loss.
        words: see `Words`.
    """

    def __init__(self, parts: nnx.Dict, targets: Any, words: Any):
        self.parts = parts
        self.targets = nnx.List([nnx.Variable(jnp.asarray(x)) for x in jax.tree.leaves(targets)])
        self.words = nnx.List([nnx.Variable(jnp.asarray(x)) for x in jax.tree.leaves(words)])


def prepare(
    model: Pipeline, what: Trainable, batches: Sequence[Batch], settings: TrainSettings
) -> tuple[Tuning, Loss]:
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
    targets = model.encode_images(np.concatenate([part.images for part in batches]))
    encode = model.text_tokens if what.trains_text else model.encode_text
    of = np.array([distinct[prompt] for prompt in prompts], np.int32)
    words = Words(encode(list(distinct)), of, _stacked(batches))
    weights = [part.weight for part in batches]
    return assembled(model, what, targets, words, weights, settings)


def assembled(
    model: Pipeline,
    what: Trainable,
    targets: Any,
    words: Words,
    weights: Sequence[float],
    settings: TrainSettings,
) -> tuple[Tuning, Loss]:
    """What `prepare` gives, of the images as `Pipeline.encode_images` makes them; `weights` are of
    the streams' losses.
    """
    shape_of_targets = jax.tree.structure(targets)
    shape_of_words = jax.tree.structure(words)
    streams = np.array(weights, np.float32)
    empty = len(words.of) - 1

    def loss(
        tuning: Any, rows: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of examples `rows` [b, s] of s streams, the prompt of each dropped with probability
        `text_dropout`.
        """
        flat = rows.reshape(-1)
        split = jax.vmap(lambda key: jax.random.split(key, (len(streams), 2)))(keys)  # [b, s, 2]
        drop_keys, loss_keys = split.reshape(-1, 2).T
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, settings.text_dropout))(drop_keys)
        chosen = jnp.where(dropped, empty, flat)
        target = jax.tree.unflatten(shape_of_targets, [x[...][flat] for x in tuning.targets])
        known = jax.tree.unflatten(shape_of_words, [x[...] for x in tuning.words])
        text = jax.tree.map(lambda x: x[known.of[chosen]], known.text)
        if what.trains_text:
            text = model.text_features(tuning.parts.text, text)
        if known.apart is not None:
            text = text._replace(apart=known.apart[chosen])
        each, metrics = model.loss(tuning.parts.denoiser, target, text, loss_keys, settings)
        per_stream = each.reshape(rows.shape).mean(0)
        shown = {name: metrics[name].mean() for name in _SHOWN if name in metrics}
        if len(streams) > 1:
            shown |= {f"loss_{s}": value for s, value in enumerate(per_stream)}
        return per_stream @ streams, shown

    return Tuning(trainable.parts(model, what), targets, words), loss


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
    has its own order.
    """
    counts = [len(part.prompts) for part in batches]
    first = np.cumsum([0, *counts[:-1]])

    def of_step(step: int) -> np.ndarray:
        each = []
        for offset, count, seed in zip(first, counts, seeds, strict=True):
            own = order.indices(step, batch_size=batch_size, count=count, seed=seed)
            each.append(offset + own)
        return np.stack(each, axis=1)

    return lambda start, count: np.stack([of_step(step) for step in range(start, start + count)])
