"""Guidance: which branches of a model are added with which weights, and in which chunks images are
generated.
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from styledrop_jax import hosts, log, trainable
from styledrop_jax.adapters.base import AdapterParam, Trainable, identity
from styledrop_jax.errors import shown
from styledrop_jax.io import image_files
from styledrop_jax.pipelines.base import Edit, Group, Pipeline, SampleSettings
from styledrop_jax.sampling.attention_control import replacement
from styledrop_jax.sampling.maskgit import mix, two_scale
from styledrop_jax.sampling.schedulers import sdedit_start
from styledrop_jax.training import mesh

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """A pipeline with what was trained in it, its denoiser taken apart: arrays that did not train
    are the base's own.

    Attributes:
        base: the pipeline without it. model: with it; encodes prompts. what: trained.
        graphdef: how to put the denoiser together. state: its adapter's weights, if any. frozen:
            all others.
        off: what the branch with the adapter off has in place of `state`; None if only the base
            itself will do.
    """

    base: Pipeline
    model: Pipeline
    what: Trainable
    graphdef: nnx.GraphDef
    state: Any
    frozen: Any
    off: Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One evaluation of the model in every step: of `tuned`, on or off, under `prompts` [n], and
    the weight [steps] of its output in the guided sum."""

    tuned: Tuned
    on: bool
    prompts: Sequence[str]
    weight: np.ndarray


class Follow(NamedTuple):
    """An image that samples follow: it is reconstructed beside each, and they take over its
    cross-attention.

    Attributes:
        own: what `Pipeline.encode_images` makes of it, of a batch of one.
        prompt: under which it is reconstructed, from its own latents noised by the sample's noise.
        tokens: bool [t], where the sample attends as it does.
        share: in [0, 1], of the steps that are taken.
        strength: in (0, 1], how far its latents are noised first. A schedule that ends in pure
            noise leaves nothing of them at 1.
    """

    own: Any
    prompt: str
    tokens: np.ndarray
    share: float
    strength: float


def tuned(base: Pipeline, model: Pipeline, what: Trainable) -> Tuned:
    """`model`, which is `base` with `what` trained in it, ready to sample."""
    graphdef, adapter, rest = nnx.split(model.denoiser, AdapterParam, ...)
    state = mesh.place(nnx.as_pure(adapter), base.devices)
    return Tuned(
        base=base,
        model=model,
        what=what,
        graphdef=graphdef,
        state=state,
        frozen=mesh.place(nnx.as_pure(rest), base.devices),
        off=identity(state) if trainable.switches_off(what) else None,
    )


def bare(base: Pipeline) -> Tuned:
    """The base model alone."""
    return tuned(base, base, Trainable())


def load(base: Pipeline, path: Path) -> Tuned:
    """The base model with what was trained at `path`; UserError if that was on another base."""
    return tuned(base, *trainable.load(base, path))


def classifier_free(model: Tuned, prompts: Sequence[str], settings: SampleSettings) -> list[Branch]:
    """Classifier-free guidance, of scale 1 + lambda_b."""
    _, lambda_b = settings.scales()
    negative = [settings.negative_prompt] * len(prompts)
    return [
        Branch(tuned=model, on=True, prompts=prompts, weight=1 + lambda_b),
        Branch(tuned=model, on=True, prompts=negative, weight=-lambda_b),
    ]


def style_branches(style: Tuned, prompts: Sequence[str], settings: SampleSettings) -> list[Branch]:
    """The branches of `settings.guidance`; the three of StyleDrop's Eq. 4 make one group if the
    adapter can be off. Where nothing was trained, on and off are the same.
    """
    if settings.guidance == "classifier_free" or style.what == Trainable():
        return classifier_free(style, prompts, settings)
    _check_negative(style, settings)
    weights = _two_scale_weights(*settings.scales())
    negative = [settings.negative_prompt] * len(prompts)
    if style.off is None:
        without = bare(style.base)
        on = True
    else:
        without = style
        on = False
    return [
        Branch(tuned=style, on=True, prompts=prompts, weight=weights[:, 0]),
        Branch(tuned=without, on=on, prompts=prompts, weight=weights[:, 1]),
        Branch(tuned=without, on=on, prompts=negative, weight=weights[:, 2]),
    ]


def _check_negative(style: Tuned, settings: SampleSettings) -> None:
    """Warns of learnt words in a negative prompt: two-scale guidance has the base model read
    that.
    """
    if style.what.words is None:
        return
    for token in style.what.words.tokens:
        if token.word in settings.negative_prompt:
            _LOG.warning(
                f"negative prompt {shown(settings.negative_prompt)}: it is read by the base model, "
                f"to which {token.word!r} means nothing; guidance classifier_free would know it"
            )


def _two_scale_weights(lambda_a: np.ndarray, lambda_b: np.ndarray) -> np.ndarray:
    """The weights [steps, 3] of the three branches in StyleDrop's Eq. 4."""
    one_each = np.eye(3, dtype=np.float32)
    return two_scale(*one_each, lambda_a=lambda_a[:, None], lambda_b=lambda_b[:, None])


def mixed_branches(
    style: Tuned,
    subject: Tuned,
    style_prompts: Sequence[str],
    subject_prompts: Sequence[str],
    *,
    gamma: float,
    settings: SampleSettings,
) -> list[Branch]:
    """My object in my style: (1 - gamma) of Eq. 4 with the style's adapter and gamma of it with the
    subject's.
    """
    of_style, of_subject = mix(*np.eye(2, dtype=np.float32), gamma=gamma)
    branches = []
    for branch in style_branches(style, style_prompts, settings):
        branches.append(dataclasses.replace(branch, weight=branch.weight * of_style))
    for branch in style_branches(subject, subject_prompts, settings):
        branches.append(dataclasses.replace(branch, weight=branch.weight * of_subject))
    return branches


def generate(
    branches: Sequence[Branch],
    seeds: Sequence[int],
    *,
    settings: SampleSettings,
    edit: Edit | None = None,
    follow: Follow | None = None,
    there: Sequence[bool] = (),
) -> Iterator[np.ndarray]:
    """Yields images in chunks [at most batch_size, r, r, 3], or of the edit's size, float32 in [0,
    1].

    Every chunk is padded to what is sampled `at_once` and runs the same program, so an image
    depends on its prompt and seed alone, not on what it is generated with.

    Args:
        branches: prompts of length n each, all of one base.
        seeds: n of them.
        settings: how to sample.
        edit: n images to start from.
        follow: an image whose composition the samples keep, of a pipeline that is `controllable`;
            they start from its noised latents too. Each takes twice the room, and the first branch
            is of the prompt.
        there: which images are not needed; a chunk of such alone is yielded without any pixels.
            Not beside `follow`.
    """
    room = _room(branches[0].tuned.base, settings, follow)
    if follow is None:
        yield from _chunks(branches, seeds, room, settings, edit, there=there)
        return
    prompts = branches[0].prompts
    followed = [branch.prompts == prompts for branch in branches]
    pairs = []
    for branch, is_prompt in zip(branches, followed, strict=True):
        pairs.append(_beside(branch, follow.prompt if is_prompt else None))
    control = replacement(
        tokens=follow.tokens,
        branches=followed,
        share=follow.share,
        steps=settings.steps,
        start=sdedit_start(settings.steps, follow.strength),
    )
    twice = np.repeat(np.asarray(seeds), 2).tolist()
    own = jax.tree.map(lambda x: np.repeat(x, len(twice), axis=0), follow.own)
    start = Edit(own, None, follow.strength)
    for chunk in _chunks(pairs, twice, 2 * room, settings, start, control=control):
        yield chunk[1::2]


def maker(
    branches: Sequence[Branch],
    seeds: Sequence[int],
    *,
    settings: SampleSettings,
    edit: Edit | None = None,
) -> Callable[[Sequence[bool]], Iterator[np.ndarray]]:
    """`generate` as a function of which images are there, that yields them one after the other."""

    def make(there: Sequence[bool]) -> Iterator[np.ndarray]:
        chunks = generate(branches, seeds, settings=settings, edit=edit, there=there)
        return itertools.chain.from_iterable(chunks)

    return make


def at_once(settings: SampleSettings, devices: Mesh | AbstractMesh, *, cpu: bool) -> int:
    """The images that devices, which share them evenly, sample at once.

    Of one CPU, `cpu`, no more than there are pairs of cores: more keep two cores no busier than one
    image does, and one that is alone would wait for the padding beside it. Several devices made of
    a CPU are busier with more.
    """
    most = settings.batch_size
    if cpu and devices.size == 1:
        most = min(most, max(1, (os.cpu_count() or 1) // 2))
    return mesh.rounded(most, devices)


def _room(base: Pipeline, settings: SampleSettings, follow: Follow | None) -> int:
    """The images of a chunk; one that follows takes twice the room."""
    count = at_once(settings, base.devices, cpu=base.devices.devices.flat[0].platform == "cpu")
    return count if follow is None else mesh.rounded(max(1, count // 2), base.devices)


def _beside(branch: Branch, prompt: str | None) -> Branch:
    """The branch with `prompt` before each of its own prompts, or each of its own twice."""
    prompts = []
    for own in branch.prompts:
        prompts += [own if prompt is None else prompt, own]
    return dataclasses.replace(branch, prompts=prompts)


def _chunks(
    branches: Sequence[Branch],
    seeds: Sequence[int],
    batch_size: int,
    settings: SampleSettings,
    edit: Edit | None,
    control: Any = None,
    there: Sequence[bool] = (),
) -> Iterator[np.ndarray]:
    """What `generate` yields; `control` is the pipeline's."""
    count = len(seeds)
    base = branches[0].tuned.base
    texts, needed = _texts(branches)
    more = {} if control is None else {"control": control}
    for start in range(0, count, batch_size):
        if there and all(there[start : start + batch_size]):
            yield np.empty((min(batch_size, count - start), 0, 0, 3), np.float32)
            continue
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        part = None
        if edit is not None:
            around = None if edit.around is None else _rows(edit.around, rows)
            part = edit._replace(own=_rows(edit.own, rows), around=around)
        chunk: Any = None
        for tokens in np.unique(needed[rows]):
            made = base.generate(
                groups(branches, _cut(texts, tokens), rows),
                [seeds[row] for row in rows],
                settings=settings,
                edit=part,
                **more,
            )
            own = (needed[rows] == tokens)[:, None, None, None]
            chunk = made if chunk is None else np.where(own, made, chunk)
        yield chunk[: count - start]


def _texts(branches: Sequence[Branch]) -> tuple[list[Any], np.ndarray]:
    """The features of the prompts of each branch, and how many tokens each image needs of them: as
    many as the longest of its own prompts, whatever it is sampled with.
    """
    encoders = []
    counts = []
    for branch in branches:
        encoder = branch.tuned.model if branch.on else branch.tuned.base
        encoders.append(encoder)
        counts.append(encoder.text_chunks(branch.prompts))
    needed = np.max(counts, axis=0)
    texts = []
    for encoder, branch in zip(encoders, branches, strict=True):
        texts.append(encoder.encode_text(branch.prompts, int(needed.max())))
    return texts, needed * encoders[0].prompt_length


def _cut(texts: Sequence[Any], tokens: int) -> list[Any]:
    """The features of the first `tokens` tokens."""
    return [text._replace(states=text.states[:, :tokens]) for text in texts]


def _rows(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def generate_files(
    description: str,
    paths: Sequence[Path],
    texts: Sequence[str],
    seeds: Sequence[int],
    branches: Callable[[Sequence[str]], Sequence[Branch]],
    *,
    base: Pipeline,
    settings: SampleSettings,
    follow: Follow | None = None,
) -> None:
    """Generates those of the images `paths` that are not there yet, under a progress bar.

    Their chunks are those of all images, so that an image is the same to the last bit whenever it
    is generated: its place in a chunk decides how sums in it are rounded.

    Raises `hosts.Stopped` after a chunk, if the processes were told to end.

    Args:
        description: of the bar.
        paths, texts, seeds: of each image.
        branches: prompts → their branches.
        base: of the branches.
        settings, follow: see `generate`.
    """
    room = _room(base, settings, follow)
    there = hosts.shared(lambda: [path.is_file() for path in paths])
    todo: list[int] = []
    for start in range(0, len(paths), room):
        chunk = range(start, min(start + room, len(paths)))
        if not all(there[i] for i in chunk):
            todo += chunk
    with log.progress(description, len(paths), start=sum(there)) as advance:
        if not todo:
            return
        chosen = branches([texts[i] for i in todo])
        own_seeds = [seeds[i] for i in todo]
        images = generate(chosen, own_seeds, settings=settings, follow=follow)
        flat = itertools.chain.from_iterable(images)
        for place, (i, image) in enumerate(zip(todo, flat, strict=True), 1):
            if not there[i]:
                image_files.write_png(paths[i], image)
                advance(1)
            if place % room == 0 and hosts.told_to_stop():
                raise hosts.Stopped


def groups(branches: Sequence[Branch], texts: Sequence[Any], rows: np.ndarray) -> list[Group]:
    """Branches of one adapter, stacked; `texts` are the features of each branch's prompts, of which
    `rows` are taken.
    """
    by_owner: dict[int, list[int]] = {}
    for i, branch in enumerate(branches):
        by_owner.setdefault(id(branch.tuned), []).append(i)
    return [_group(branches, texts, rows, members) for members in by_owner.values()]


def _group(
    branches: Sequence[Branch], texts: Sequence[Any], rows: np.ndarray, members: list[int]
) -> Group:
    owner = branches[members[0]].tuned
    states = []
    features = []
    weights = []
    for i in members:
        states.append(owner.state if branches[i].on else owner.off)
        features.append(_rows(texts[i], rows))
        weights.append(branches[i].weight)
    shared = len({branches[i].on for i in members}) == 1
    return Group(
        graphdef=owner.graphdef,
        states=states[0] if shared else _stack(states),
        frozen=owner.frozen,
        text=mesh.shard(_stack(features), owner.base.devices),
        weights=np.stack(weights, axis=1),
        shared=shared,
    )


@jax.jit
def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
