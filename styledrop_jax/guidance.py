"""Draws images under guidance: which branches of the model are added with which weights, and in which chunks."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import log, trainable
from styledrop_jax.adapters.base import AdapterParam, identity
from styledrop_jax.io import image_files
from styledrop_jax.pipelines.base import Edit, Group, Pipeline, SampleSettings
from styledrop_jax.sampling.attention_control import replacement
from styledrop_jax.sampling.maskgit import mix, two_scale
from styledrop_jax.sampling.schedulers import sdedit_start
from styledrop_jax.training import mesh


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """A pipeline with what was trained in it, its denoiser taken apart: arrays that did not train are the base's own.

    Attributes:
        base: the pipeline without it. model: with it; encodes prompts.
        graphdef: how to put the denoiser together. state: its adapter's weights, if any. frozen: all others.
        off: what the branch with the adapter off has in place of `state`; None if only the base itself will do.
    """

    base: Pipeline
    model: Pipeline
    graphdef: nnx.GraphDef
    state: dict
    frozen: dict
    off: dict | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the model in every step: of `adapted`, on or off, under `prompts` [n], and the weight [steps]
    of its output in the guided sum."""

    adapted: Adapted
    on: bool
    prompts: Sequence[str]
    weight: jax.Array


class Follow(NamedTuple):
    """A picture that drawings follow: it is reconstructed beside each, and they take over its cross-attention.

    Attributes:
        own: what `Pipeline.encode_images` makes of it, of a batch of one.
        prompt: under which it is reconstructed, from its own latents noised by the drawing's noise.
        tokens: bool [t], where the drawing attends as it does.
        share: in [0, 1], of the steps that are taken.
        strength: in (0, 1], how far its latents are noised first. A schedule that ends in pure noise leaves nothing of
            them at 1.
    """

    own: Any
    prompt: str
    tokens: np.ndarray
    share: float
    strength: float


def adapted(base: Pipeline, model: Pipeline, plan: trainable.Trainable) -> Adapted:
    """`model`, which is `base` with a trained `plan` in it, ready to draw."""
    graphdef, state, frozen = nnx.split(model.denoiser, AdapterParam, ...)
    state = nnx.as_pure(state)
    off = identity(state) if plan.switches_off else None
    frozen = mesh.replicate(nnx.as_pure(frozen))
    return Adapted(base=base, model=model, graphdef=graphdef, state=state, frozen=frozen, off=off)


def bare(base: Pipeline) -> Adapted:
    """The base model alone."""
    return adapted(base, base, trainable.Trainable())


def load(base: Pipeline, path: Path) -> Adapted:
    """The base model with what was trained at `path`; UserError if that was on another base."""
    return adapted(base, *trainable.load(base, path))


def base_branches(base: Pipeline, prompts: Sequence[str], settings: SampleSettings) -> list[Branch]:
    """Classifier-free guidance of the base model, of scale 1 + lambda_b."""
    return _classifier_free(bare(base), prompts, settings)


def _classifier_free(
    style: Adapted, prompts: Sequence[str], settings: SampleSettings
) -> list[Branch]:
    _, lambda_b = settings.scales()
    negative = [settings.negative_prompt] * len(prompts)
    return [
        Branch(adapted=style, on=True, prompts=prompts, weight=1 + lambda_b),
        Branch(adapted=style, on=True, prompts=negative, weight=-lambda_b),
    ]


def style_branches(
    style: Adapted, prompts: Sequence[str], settings: SampleSettings
) -> list[Branch]:
    """The branches of `settings.guidance`; the three of StyleDrop's Eq. 4 make one group if the adapter can be off."""
    if settings.guidance == "classifier_free":
        return _classifier_free(style, prompts, settings)
    lambda_a, lambda_b = settings.scales()
    weights = jax.vmap(lambda a, b: two_scale(*jnp.eye(3), lambda_a=a, lambda_b=b))(
        lambda_a, lambda_b
    )  # [steps, 3]
    negative = [settings.negative_prompt] * len(prompts)
    without = (
        {"adapted": bare(style.base), "on": True}
        if style.off is None
        else {"adapted": style, "on": False}
    )
    return [
        Branch(adapted=style, on=True, prompts=prompts, weight=weights[:, 0]),
        Branch(**without, prompts=prompts, weight=weights[:, 1]),
        Branch(**without, prompts=negative, weight=weights[:, 2]),
    ]


def mixed_branches(
    style: Adapted,
    subject: Adapted,
    style_prompts: Sequence[str],
    subject_prompts: Sequence[str],
    *,
    gamma: float,
    settings: SampleSettings,
) -> list[Branch]:
    """My object in my style: (1 - gamma) of Eq. 4 with the style's adapter and gamma of it with the subject's."""
    share = mix(*np.eye(2), gamma=gamma)
    parts = (
        style_branches(style, style_prompts, settings),
        style_branches(subject, subject_prompts, settings),
    )
    return [
        dataclasses.replace(branch, weight=branch.weight * part_share)
        for part_share, part in zip(share, parts, strict=True)
        for branch in part
    ]


def generate(
    branches: Sequence[Branch],
    seeds: Sequence[int],
    *,
    settings: SampleSettings,
    batch_size: int = 8,
    edit: Edit | None = None,
    follow: Follow | None = None,
) -> Iterator[np.ndarray]:
    """Yields images in chunks [at most batch_size, r, r, 3], or of the edit's size, float32 in [0, 1].

    Every chunk is padded to `batch_size` and runs the same program, so an image depends on its prompt and seed alone,
    not on what it is drawn with.

    Args:
        branches: prompts of length n each, all of one base.
        seeds: n of them.
        settings: how to draw.
        batch_size: images at a time.
        edit: n pictures to start from.
        follow: a picture whose composition the drawings keep, of a pipeline that is `controllable`; they start from its
            noised latents too. Each takes twice the room, and the first branch is of the prompt.
    """
    if follow is None:
        yield from _chunks(branches, seeds, settings, batch_size, edit)
        return
    prompts = branches[0].prompts
    followed = [branch.prompts == prompts for branch in branches]
    pairs = [
        dataclasses.replace(
            b, prompts=[p for own in b.prompts for p in (follow.prompt if is_prompt else own, own)]
        )
        for b, is_prompt in zip(branches, followed, strict=True)
    ]
    taken = {"steps": settings.steps, "start": sdedit_start(settings.steps, follow.strength)}
    control = replacement(tokens=follow.tokens, branches=followed, share=follow.share, **taken)
    twice = [seed for seed in seeds for _ in range(2)]
    start = Edit(
        jax.tree.map(lambda x: np.repeat(x, len(twice), axis=0), follow.own), None, follow.strength
    )
    for chunk in _chunks(
        pairs, twice, settings, 2 * max(1, batch_size // 2), start, control=control
    ):
        yield chunk[1::2]


def _chunks(
    branches: Sequence[Branch],
    seeds: Sequence[int],
    settings: SampleSettings,
    batch_size: int,
    edit: Edit | None,
    **more: Any,
) -> Iterator[np.ndarray]:
    """What `generate` yields; `more` is for the pipeline."""
    n, base = len(seeds), branches[0].adapted.base
    texts = [(b.adapted.model if b.on else b.adapted.base).encode_text(b.prompts) for b in branches]
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        groups = _groups(branches, texts, rows)
        own = edit and edit._replace(own=jax.tree.map(lambda x: x[rows], edit.own))  # noqa: B023
        yield base.generate(
            groups, [seeds[row] for row in rows], settings=settings, edit=own, **more
        )[: n - start]


def generate_files(
    description: str,
    paths: Sequence[Path],
    texts: Sequence[str],
    seeds: Sequence[int],
    branches: Callable[[Sequence[str], SampleSettings], Sequence[Branch]],
    *,
    settings: SampleSettings,
    batch_size: int,
    follow: Follow | None = None,
) -> None:
    """Draws those of the pictures `paths` that are not there yet, under a progress bar.

    Args:
        description: of the bar.
        paths, texts, seeds: of each picture.
        branches: (prompts, settings) → their branches, such as `base_branches` of a model.
        settings, batch_size, follow: see `generate`.
    """
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    with log.progress(description, len(paths), start=len(paths) - len(missing)) as advance:
        if not missing:
            return
        todo = iter(missing)
        chosen = branches([texts[i] for i in missing], settings)
        remaining = [seeds[i] for i in missing]
        for chunk in generate(
            chosen, remaining, settings=settings, batch_size=batch_size, follow=follow
        ):
            for image, i in zip(chunk, todo, strict=False):
                image_files.write_png(paths[i], image)
            advance(len(chunk))


def _groups(branches: Sequence[Branch], texts: Sequence[Any], rows: np.ndarray) -> list[Group]:
    """Branches of one adapter, stacked."""
    groups = []
    for owner in dict.fromkeys(id(branch.adapted) for branch in branches):
        mine = [i for i, branch in enumerate(branches) if id(branch.adapted) == owner]
        whole = branches[mine[0]].adapted
        shared = len({branches[i].on for i in mine}) == 1
        if shared:
            states = whole.state if branches[mine[0]].on else whole.off
        else:
            each = [whole.state if branches[i].on else whole.off for i in mine]
            states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        groups.append(
            Group(
                graphdef=whole.graphdef,
                states=states,
                frozen=whole.frozen,
                text=mesh.shard(
                    jax.tree.map(
                        lambda *leaves: jnp.stack([leaf[rows] for leaf in leaves]),
                        *(texts[i] for i in mine),
                    )
                ),
                weights=jnp.stack([branches[i].weight for i in mine], axis=1),
                shared=shared,
            )
        )
    return groups
