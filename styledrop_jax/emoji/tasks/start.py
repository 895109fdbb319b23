"""Where StyleDrop's adapter starts: weights learnt over many styles, on a frozen base model.

First-order MAML (1703.03400 §5.2). An example is a style: an adapter learns it from one drawing, as
in a run, and what counts is how well it then draws *other* things in that style. The gradient
there, taken for one at the weights that the adapter started from, moves those: from them a few
steps teach a style, and less of what its drawing shows.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from styledrop_jax import guidance, trainable
from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterParam, Trainable, save_adapter
from styledrop_jax.emoji.corpus import Corpus
from styledrop_jax.emoji.settings import StartSettings
from styledrop_jax.emoji.tasks import base
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.pipelines.base import Loss, SampleSettings, TrainSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.training import optim

SHEET = (6, 3)  # styles, and things of each
SHEET_SEED = 2**31  # above any of a setting: no step learns from these styles
SAMPLE = SampleSettings(steps=20, batch_size=8, lambda_a=1.5, lambda_b=2.0)


class Style(NamedTuple):
    """n drawings in a style: the first is learnt from, the others are asked for.

    Attributes:
        targets: what the base model's loss takes of them, a tree of arrays [n, …].
        text: the features of their prompts and, last, of the empty one, arrays [n + 1, …].
    """

    targets: Any
    text: Any


def task(settings: StartSettings, data: Corpus, workdir: Path) -> base.Task[nnx.Dict]:
    """Trains what StyleDrop's adapter starts from on `settings.base`, all of which is frozen."""
    del workdir
    pipeline = load(settings.base)
    adapter = styledrop.Config(bottleneck=settings.rank, shared=False, blocks=settings.blocks)
    what = Trainable(denoiser=adapter)
    model = trainable.attach(pipeline, what, rngs=nnx.Rngs(params=settings.seed))
    inner = Inner(
        of_images=model.loss(TrainSettings()),
        steps=settings.inner_steps,
        batch_size=settings.inner_batch_size,
        learning_rate=settings.inner_learning_rate,
    )
    drawn = functools.partial(
        data.style, things=1 + settings.things, vocabulary=settings.vocabulary
    )

    def style(images: np.ndarray, prompts: list[str]) -> Style:
        return Style(pipeline.encode_images(images), pipeline.encode_text([*prompts, ""]))

    def batches(start: int, count: int) -> Style:
        size = settings.batch_size
        styles = []
        for index in range(start * size, (start + count) * size):
            styles.append(style(*drawn(index, seed=settings.seed)))

        def stacked(*leaves: jax.Array) -> jax.Array:
            return jnp.stack(leaves).reshape(count, size, *leaves[0].shape)

        return jax.tree.map(stacked, *styles)

    def sheet(trained: nnx.Dict) -> np.ndarray:
        rows, count = SHEET
        images: list[np.ndarray] = []
        for index in range(rows):
            given, prompts = drawn(index, seed=SHEET_SEED)
            learnt = _learnt(trained, style(given, prompts), jax.random.key(index), inner=inner)
            tuned = guidance.tuned(
                pipeline, dataclasses.replace(model, denoiser=learnt["denoiser"]), what
            )
            branches = guidance.style_branches(tuned, prompts[1 : 1 + count], SAMPLE)
            images.append(given[0])
            made = np.concatenate(list(guidance.generate(branches, range(count), settings=SAMPLE)))
            for own, true in zip(made, given[1:], strict=False):
                images += [image_files.to_uint8(own), true]
        captions = ["reference", *["drawn", "true"] * count] * rows
        return sheets.grid(images, columns=1 + 2 * count, captions=captions)

    def export(trained: nnx.Dict, out: Path) -> None:
        state = nnx.as_pure(nnx.state(trained, AdapterParam))
        save_adapter(
            out / hub.START,
            jax.device_get(state),
            base_name=pipeline.name,
            base_hash=pipeline.base_hash,
            config=what.to_dict(),
            round=1,
        )

    return base.Task(
        model=trainable.parts(model, what),
        trainable=AdapterParam,
        loss=functools.partial(_loss, inner=inner),
        batches=batches,
        sheet=sheet,
        export=export,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """How a style is learnt from its first drawing.

    Attributes:
        of_images: the base model's loss.
        steps, batch_size, learning_rate: of Adam, each of a batch under other noise.
    """

    of_images: Loss
    steps: int
    batch_size: int
    learning_rate: float

    def states(self, parts: nnx.Dict, style: Style, key: jax.Array) -> tuple[Any, Any]:
        """The adapter's state, pure, after half of the steps and after all of them."""
        graphdef, start, frozen = nnx.split(parts, AdapterParam, ...)
        optimizer = optim.make(self.learning_rate)
        targets = jax.tree.map(lambda x: jnp.repeat(x[:1], self.batch_size, axis=0), style.targets)

        def loss(params: Any, key: jax.Array) -> jax.Array:
            drop_key, loss_key = jax.random.split(key)
            shape = (self.batch_size,)
            dropped = jax.random.bernoulli(drop_key, TrainSettings().text_dropout, shape)
            text = jax.tree.map(lambda x: x[jnp.where(dropped, -1, 0)], style.text)
            keys = jax.random.split(loss_key, self.batch_size)
            model = nnx.merge(graphdef, params, frozen)
            return self.of_images(model.denoiser, targets, text, keys)[0].mean()

        def step(state: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, opt = state
            updates, opt = optimizer.update(jax.grad(loss)(params, key), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        start = nnx.as_pure(start)
        keys = jax.random.split(key, self.steps)
        half = jax.lax.scan(step, (start, optimizer.init(start)), keys[: self.steps // 2])[0]
        whole = jax.lax.scan(step, half, keys[self.steps // 2 :])[0]
        return half[0], whole[0]


def _loss(
    parts: nnx.Dict, styles: Style, keys: jax.Array, *, inner: Inner
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What other things lose once a style is learnt, by half and by all of the inner steps; see
    `step.Loss`. Its gradient is the first-order one.

    Args:
        parts: carry the adapter.
        styles: b of them, a leading axis of all arrays.
        keys: [b].
        inner: see there.
    """
    graphdef, params, frozen = nnx.split(parts, AdapterParam, ...)
    start = nnx.as_pure(params)

    def of_others(learnt: Any, style: Style, key: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda s, x: s + jax.lax.stop_gradient(x - s), start, learnt)
        model = nnx.merge(graphdef, moved, frozen)
        targets = jax.tree.map(lambda x: x[1:], style.targets)
        text = jax.tree.map(lambda x: x[1:-1], style.text)
        keys = jax.random.split(key, len(jax.tree.leaves(targets)[0]))
        return inner.of_images(model.denoiser, targets, text, keys)[0].mean()

    def of_style(given: tuple[Style, jax.Array]) -> tuple[jax.Array, jax.Array]:
        style, key = given
        inner_key, outer_key = jax.random.split(key)
        frozen_parts = nnx.merge(graphdef, jax.lax.stop_gradient(start), frozen)
        half, whole = inner.states(frozen_parts, style, inner_key)
        return of_others(half, style, outer_key), of_others(whole, style, outer_key)

    half, whole = jax.lax.map(of_style, (styles, keys))  # faster on a CPU than all at once
    return (half.mean() + whole.mean()) / 2, {"half": half.mean(), "whole": whole.mean()}


@functools.partial(nnx.jit, static_argnames="inner")
def _learnt(parts: nnx.Dict, style: Style, key: jax.Array, *, inner: Inner) -> nnx.Dict:
    """The parts once they have learnt a style."""
    graphdef, _, frozen = nnx.split(parts, AdapterParam, ...)
    return nnx.merge(graphdef, inner.states(parts, style, key)[1], frozen)
