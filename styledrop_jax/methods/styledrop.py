"""StyleDrop (2306.00983): adapters in the masked transformer, one reference, rounds with feedback."""

from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax.adapters import styledrop
from styledrop_jax.adapters.base import AdapterParam
from styledrop_jax.methods.base import Method, Stream


def _attach(denoiser: nnx.Module, settings: ConfigDict, rngs: nnx.Rngs) -> dict[str, Any]:
    config = styledrop.Config(bottleneck=settings.rank, shared=settings.shared)
    styledrop.attach(denoiser, config, rngs=rngs)
    return config.to_dict()


STYLEDROP = Method(
    streams=(Stream(images="reference", prompt="{content} {descriptor}"),),
    attach=_attach,
    trainable=AdapterParam,
)
