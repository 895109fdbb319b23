"""What a method is: data over four independent choices. See `docs` and the other files of this folder."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Images that are trained on under one prompt template.

    Attributes:
        images: which: "reference", the user's in round 1, the selected samples in later rounds.
        prompt: template over `{content}` and `{descriptor}`.
        weight: of its loss.
    """

    images: str
    prompt: str
    weight: float = 1.0

    def caption(self, content: str, descriptor: str) -> str:
        """The training prompt of one image."""
        return self.prompt.format(content=content, descriptor=descriptor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One published method.

    Attributes:
        streams: which images under which prompts with which weight.
        attach: `attach(denoiser, settings, rngs) → dict`: puts the adapter in; returns what rebuilds it.
        trainable: NNX filter of what trains.
    """

    streams: tuple[Stream, ...]
    attach: Callable[[nnx.Module, ConfigDict, nnx.Rngs], dict[str, Any]]
    trainable: nnx.filterlib.Filter
