"""Hard prompts (arXiv 2302.03668): a round finds words of the vocabulary; no weight trains."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, Trainable
from styledrop_jax.settings import setting

WAYS = ("search", "phrases")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """Records nothing: what was found is words."""

    kind: ClassVar[str] = "hard_prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    by: str = setting(
        "search",
        "how words are found: a search by gradient descent, of train.steps and "
        "train.learning_rate, or the likeliest of the phrases of `styledrop describe`",
        choices=WAYS,
    )
    words: int = setting(6, "words of one token each that are searched for", low=1, high=32)


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    return Trainable()


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
