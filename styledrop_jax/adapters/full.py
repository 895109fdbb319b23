"""Full training, as DreamBooth's (2208.12242): every weight trains, and nothing is put in."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flax import nnx

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, Trainable
from styledrop_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """Every weight trains."""

    kind: ClassVar[str] = "full"
    exact: ClassVar[bool] = True

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        """Puts nothing in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    text_encoder: bool = setting(False, "the text tower trains too")


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    return Trainable(denoiser=Config(), text=Config() if settings.text_encoder else None)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
