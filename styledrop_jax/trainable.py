"""What is trained: which part of a backbone carries which adapter, or trains whole, and which new words it learns."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from flax import nnx

from styledrop_jax.adapters import custom_diffusion, lora, styledrop, svdiff, textual_inversion
from styledrop_jax.adapters.base import AdapterConfig, AdapterParam, load_adapter, restore
from styledrop_jax.errors import UserError
from styledrop_jax.pipelines.base import Backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(AdapterConfig):
    """Every weight trains, as in DreamBooth."""

    kind: ClassVar[str] = "full"


_MODULES = {module.Config.kind: module for module in (styledrop, lora, svdiff, custom_diffusion)}
_KINDS = {Full.kind: Full} | {kind: module.Config for kind, module in _MODULES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What trains of a backbone; whatever is None stays as it is.

    Attributes:
        denoiser: the adapter in the denoiser, or `Full`.
        text: the adapter in the text tower, or `Full`.
        words: new words of the text tower.
    """

    denoiser: AdapterConfig | None = None
    text: AdapterConfig | None = None
    words: textual_inversion.Config | None = None

    def to_dict(self) -> dict[str, Any]:
        """What an adapter file records; `from_dict` reads it."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: None if part is None else part.to_dict() for name, part in parts.items()}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Self:
        """The plan of an `AdapterFile`; UserError if it holds something else."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(parts) != names or not all(
            part is None or isinstance(part, Mapping) for part in parts.values()
        ):
            raise UserError(
                f"adapter: its config does not fit (found {', '.join(parts)}, expected {', '.join(names)})"
            )
        words = parts["words"]
        return cls(
            denoiser=_adapter(parts["denoiser"]),
            text=_adapter(parts["text"]),
            words=None if words is None else textual_inversion.Config.from_dict(words),
        )

    @property
    def trains_text(self) -> bool:
        """Whether features of prompts change while it trains."""
        return self.text is not None or self.words is not None

    @property
    def switches_off(self) -> bool:
        """Whether the denoiser with all that trains set to zero is the base's: not if its own weights train."""
        return not isinstance(self.denoiser, Full)

    def filter(self) -> nnx.filterlib.Filter:
        """What trains of a module that has `denoiser`, and `text` if it trains."""
        kinds = {"denoiser": self.denoiser, "text": self.text}
        return nnx.Any(
            AdapterParam,
            *(
                nnx.All(nnx.Param, nnx.PathContains(name))
                for name, kind in kinds.items()
                if isinstance(kind, Full)
            ),
        )


def plan(settings: Mapping[str, Any], identifiers: Sequence[str]) -> Plan:
    """The plan of `config.round_N.adapter`.

    Args:
        settings: its fields.
        identifiers: the method's, which become the new words where some are learnt.

    Raises:
        UserError: a field does not fit.
    """
    kind = settings["kind"]
    adapter: AdapterConfig | None = {
        "styledrop": lambda: styledrop.Config(
            bottleneck=settings["rank"], shared=settings["shared"]
        ),
        "lora": lambda: lora.Config(
            rank=settings["rank"], alpha=settings["alpha"], targets=settings["targets"]
        ),
        "svdiff": lambda: svdiff.Config(targets=settings["targets"]),
        "custom_diffusion": custom_diffusion.Config,
        "full": Full,
        "textual_inversion": lambda: None,
    }[kind]()
    words = None
    if kind in ("textual_inversion", "custom_diffusion"):
        if not identifiers:
            raise UserError(
                f"config.words.identifier: empty; {kind} learns a new word, such as '<style>'"
            )
        start = {"initializer": settings["initializer"], "vectors": settings["vectors"]}
        tokens = tuple(
            textual_inversion.Token(word=identifier, **start) for identifier in identifiers
        )
        words = textual_inversion.Config(tokens=tokens, norm=settings["norm"])
    text = adapter if settings["text_encoder"] and kind in ("lora", "svdiff", "full") else None
    return Plan(denoiser=adapter, text=text, words=words)


def _adapter(fields: Mapping[str, Any] | None) -> AdapterConfig | None:
    if fields is None:
        return None
    if (kind := fields.get("adapter")) not in _KINDS:
        raise UserError(f"adapter: {kind!r}, expected one of {', '.join(_KINDS)}")
    return _KINDS[kind].from_dict(fields)


def copy(module: nnx.Module) -> nnx.Module:
    """The same arrays in a new module, to attach adapters to."""
    return nnx.merge(*nnx.split(module))


def attach(base: Backbone, plan: Plan, *, rngs: nnx.Rngs) -> Backbone:
    """A backbone on the same arrays as `base` that carries what trains; the base stays as it is.

    Raises:
        UserError: the plan does not fit the backbone, or a new word is known already.
    """
    changed: dict[str, Any] = {"denoiser": copy(base.denoiser)}
    _put(changed["denoiser"], plan.denoiser, rngs)
    if plan.trains_text:
        changed["text"] = copy(base.text)
        _put(changed["text"], plan.text, rngs)
    if plan.words is not None:
        textual_inversion.attach(changed["text"], plan.words, rngs=rngs, tokenizer=base.tokenizer)
        changed["tokenizer"] = textual_inversion.extend(base.tokenizer, plan.words)
        changed["expand"] = functools.partial(textual_inversion.expand, config=plan.words)
    return dataclasses.replace(base, **changed)


def _put(module: nnx.Module, config: AdapterConfig | None, rngs: nnx.Rngs) -> None:
    if config is not None and not isinstance(config, Full):
        _MODULES[config.kind].attach(module, config, rngs=rngs)


def parts(model: Backbone, plan: Plan) -> nnx.Dict:
    """The modules of `attach`'s result in which something trains or could: `denoiser`, and `text` if it trains."""
    modules = {"denoiser": model.denoiser}
    return nnx.Dict(modules | ({"text": model.text} if plan.trains_text else {}))


def load(base: Backbone, path: Path) -> tuple[Backbone, Plan]:
    """The base with what a file holds in it; UserError if that was trained on another base, or does not fit."""
    file = load_adapter(path, base_hash=base.base_hash)
    plan = Plan.from_dict(file.config)
    model = attach(base, plan, rngs=nnx.Rngs(0))
    whole = parts(model, plan)
    graphdef, state, rest = nnx.split(whole, plan.filter(), ...)
    whole = nnx.merge(graphdef, restore(nnx.as_pure(state), file), nnx.as_pure(rest))
    changed = {name: whole[name] for name in ("denoiser", "text") if name in whole}
    return dataclasses.replace(model, **changed), plan
