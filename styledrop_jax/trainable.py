"""A pipeline with what trains in it: attached to a copy, taken apart for the optimiser, read back
from a file.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from styledrop_jax.adapters import full, textual_inversion
from styledrop_jax.adapters.base import (
    AdapterConfig,
    AdapterParam,
    Trainable,
    load_adapter,
    restore,
)
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.pretrained import TO_FILL
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.registry import ADAPTERS

_PARTS = ("denoiser", "text", "words")


def from_dict(parts: Mapping[str, Any]) -> Trainable:
    """What an adapter file says that it trained; UserError if it says something else."""
    for name in _PARTS:
        if set(parts) != set(_PARTS) or not isinstance(parts[name], Mapping | None):
            found = ", ".join(map(str, parts))
            raise UserError(
                f"adapter: its config does not fit (found {found}, expected {', '.join(_PARTS)})"
            )
    words = parts["words"]
    return Trainable(
        denoiser=_adapter(parts["denoiser"]),
        text=_adapter(parts["text"]),
        words=None if words is None else textual_inversion.Config.from_dict(words),
    )


def _adapter(fields: Mapping[str, Any] | None) -> AdapterConfig | None:
    if fields is None:
        return None
    kind = fields.get("adapter")
    if not isinstance(kind, str) or kind not in ADAPTERS:
        raise UserError(f"adapter: {shown(kind)}, expected one of {', '.join(ADAPTERS)}")
    return ADAPTERS[kind].config.from_dict(fields)


def switches_off(what: Trainable) -> bool:
    """Whether the denoiser with all that trains set to zero is the base's: not if its own weights
    train.
    """
    return not isinstance(what.denoiser, full.Config)


def trained(what: Trainable) -> nnx.filterlib.Filter:
    """What trains of a module that has `denoiser`, and `text` if it trains."""
    whole = []
    for name, config in (("denoiser", what.denoiser), ("text", what.text)):
        if isinstance(config, full.Config):
            whole.append(nnx.All(nnx.Param, nnx.PathContains(name)))
    return nnx.Any(AdapterParam, *whole)


def copy(module: nnx.Module) -> nnx.Module:
    """The same arrays in a new module, to attach adapters to."""
    return nnx.merge(*nnx.split(module))


def attach(base: Pipeline, what: Trainable, *, rngs: nnx.Rngs) -> Pipeline:
    """A pipeline on the same arrays as `base` that carries what trains; the base stays as it is.

    Raises:
        UserError: it does not fit the pipeline, or a new word is known already.
    """
    modules = {"denoiser": copy(base.denoiser)}
    if what.trains_text:
        modules["text"] = copy(base.text)
    return put(dataclasses.replace(base, **modules), what, rngs=rngs)


def put(model: Pipeline, what: Trainable, *, rngs: nnx.Rngs) -> Pipeline:
    """`model` with what trains in its own modules; see `attach`."""
    changed: dict[str, Any] = {}
    if what.denoiser is not None:
        what.denoiser.attach(model.denoiser, rngs=rngs)
    if what.text is not None:
        what.text.attach(model.text, rngs=rngs)
    if what.words is not None:
        textual_inversion.attach(model.text, what.words, rngs=rngs, tokenizer=model.tokenizer)
        changed["tokenizer"] = textual_inversion.extend(model.tokenizer, what.words)
        changed["expand"] = functools.partial(textual_inversion.expand, config=what.words)
    return dataclasses.replace(model, **changed)


def parts(model: Pipeline, what: Trainable) -> nnx.Dict:
    """The modules of `attach`'s result in which something trains or could: `denoiser`, and `text`
    if it trains.
    """
    modules = {"denoiser": model.denoiser}
    if what.trains_text:
        modules["text"] = model.text
    return nnx.Dict(modules)


def load(base: Pipeline, path: Path) -> tuple[Pipeline, Trainable]:
    """The base with what a file holds in it; UserError if that was trained on another base, or does
    not fit.
    """
    file = load_adapter(path, base_hash=base.base_hash)
    what = from_dict(file.config)
    model = attach(base, what, rngs=TO_FILL)
    graphdef, state, rest = nnx.split(parts(model, what), trained(what), ...)
    whole = nnx.merge(graphdef, restore(nnx.as_pure(state), file), nnx.as_pure(rest))
    changed = {name: whole[name] for name in ("denoiser", "text") if name in whole}
    return dataclasses.replace(model, **changed), what
