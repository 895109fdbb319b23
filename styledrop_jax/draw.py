"""Draws images under guidance: which branches of the model are added with which weights, and in which chunks."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterFile, AdapterParam, identity, load_adapter, restore
from styledrop_jax.backbones.base import Group
from styledrop_jax.backbones.muse import Muse, Text
from styledrop_jax.samplers.maskgit import linear_ramp, mix, two_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to decode.

    Attributes:
        steps: decoding steps. temperature: MaskGIT's choice temperature.
        lambda_a: strength of the style, and lambda_b of the text (StyleDrop 2306.00983 Eq. 4).
        lambda_ramp: whether both rise linearly over the steps, as Muse's guidance does, or are constant.
        negative_prompt: what to move away from; empty is the unconditional model.
    """

    steps: int = 12
    temperature: float = 4.5
    lambda_a: float = 2.0
    lambda_b: float = 5.0
    lambda_ramp: bool = False
    negative_prompt: str = ""

    def scales(self) -> tuple[jax.Array, jax.Array]:
        """lambda_a and lambda_b at every step, [steps] each."""
        step = jnp.arange(self.steps)
        share = linear_ramp(0.0, 1.0, step=step, steps=self.steps) if self.lambda_ramp else jnp.ones(self.steps)
        return self.lambda_a * share, self.lambda_b * share


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """A denoiser with an adapter, or with none, taken apart: the frozen part is the base's own arrays.

    Attributes:
        graphdef: how to put it together. state: the adapter's weights, empty without one.
    """

    graphdef: nnx.GraphDef
    state: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the model in every step: with `adapted`'s adapter on or off, under `prompts` [n], and the
    weight [steps] of its logits in the guided sum."""

    adapted: Adapted
    on: bool
    prompts: Sequence[str]
    weight: jax.Array


def copy(denoiser: nnx.Module) -> nnx.Module:
    """The same arrays in a new module, to attach adapters to."""
    return nnx.merge(*nnx.split(denoiser))


def bare(model: Muse) -> Adapted:
    """The base model without an adapter."""
    graphdef, _ = nnx.split(model.denoiser)
    return Adapted(graphdef=graphdef, state={})


def adapted(model: Muse, file: AdapterFile) -> Adapted:
    """The base model with the adapter of a file.

    Raises:
        UserError: the file's tensors do not fit this model.
    """
    denoiser = copy(model.denoiser)
    styledrop.attach(denoiser, styledrop.Config.from_dict(file.config), rngs=nnx.Rngs(0))
    graphdef, state, _ = nnx.split(denoiser, AdapterParam, ...)
    return Adapted(graphdef=graphdef, state=jax.tree.map(jnp.asarray, nnx.as_pure(restore(state, file))))


def load(model: Muse, path: Path) -> Adapted:
    """The base model with the adapter at `path`; UserError if it was trained on another base."""
    return adapted(model, load_adapter(path, base_hash=model.base_hash))


def base_branches(model: Muse, prompts: Sequence[str], settings: Settings) -> list[Branch]:
    """Classifier-free guidance of the base model, of scale 1 + lambda_b."""
    _, lambda_b = settings.scales()
    base, negative = bare(model), [settings.negative_prompt] * len(prompts)
    return [
        Branch(adapted=base, on=False, prompts=prompts, weight=1 + lambda_b),
        Branch(adapted=base, on=False, prompts=negative, weight=-lambda_b),
    ]


def style_branches(style: Adapted, prompts: Sequence[str], settings: Settings) -> list[Branch]:
    """The three branches of StyleDrop's Eq. 4, all in one group."""
    lambda_a, lambda_b = settings.scales()
    weights = jax.vmap(lambda a, b: two_scale(*jnp.eye(3), lambda_a=a, lambda_b=b))(lambda_a, lambda_b)  # [steps, 3]
    negative = [settings.negative_prompt] * len(prompts)
    return [
        Branch(adapted=style, on=True, prompts=prompts, weight=weights[:, 0]),
        Branch(adapted=style, on=False, prompts=prompts, weight=weights[:, 1]),
        Branch(adapted=style, on=False, prompts=negative, weight=weights[:, 2]),
    ]


def mixed_branches(
    style: Adapted,
    subject: Adapted,
    style_prompts: Sequence[str],
    subject_prompts: Sequence[str],
    *,
    gamma: float,
    settings: Settings,
) -> list[Branch]:
    """My object in my style: (1 - gamma) of Eq. 4 with the style's adapter and gamma of it with the subject's."""
    share = mix(*np.eye(2), gamma=gamma)
    parts = style_branches(style, style_prompts, settings), style_branches(subject, subject_prompts, settings)
    return [
        dataclasses.replace(branch, weight=branch.weight * part_share)
        for part_share, part in zip(share, parts, strict=True)
        for branch in part
    ]


def draw(
    model: Muse,
    branches: Sequence[Branch],
    seeds: Sequence[int],
    *,
    settings: Settings,
    batch_size: int = 8,
    tokens: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields images in chunks [at most batch_size, r, r, 3], float32 in [0, 1].

    Every chunk is padded to `batch_size` and runs the same program, so an image depends on its prompt, seed and tokens
    alone, not on what it is drawn with.

    Args:
        model: the base.
        branches: prompts of length n each.
        seeds: n of them.
        settings: steps and temperature.
        batch_size: images at a time.
        tokens: [n, h, w] to start from, with the mask where to draw; None draws everything.
    """
    n = len(seeds)
    texts = [model.encode_text(branch.prompts) for branch in branches]
    _, _, frozen = nnx.split(model.denoiser, AdapterParam, ...)
    frozen = nnx.as_pure(frozen)
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        chunk = model.sample(
            _groups(branches, texts, rows),
            frozen,
            [seeds[row] for row in rows],
            temperature=settings.temperature,
            tokens=None if tokens is None else tokens[rows],
        )
        yield model.decode_tokens(chunk, batch_size)[: n - start]


def _groups(branches: Sequence[Branch], texts: Sequence[Text], rows: np.ndarray) -> list[Group]:
    """Branches of one adapter, stacked."""
    groups = []
    for owner in dict.fromkeys(id(branch.adapted) for branch in branches):
        mine = [i for i, branch in enumerate(branches) if id(branch.adapted) == owner]
        states = [b.adapted.state if b.on else identity(b.adapted.state) for b in (branches[i] for i in mine)]
        groups.append(
            Group(
                graphdef=branches[mine[0]].adapted.graphdef,
                states=jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
                text=Text(*(jnp.stack([texts[i][part][rows] for i in mine]) for part in range(2))),
                weights=jnp.stack([branches[i].weight for i in mine], axis=1),
            )
        )
    return groups
