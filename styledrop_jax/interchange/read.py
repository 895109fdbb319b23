"""stub"""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.adapters.base import Trainable, load_adapter, restore
from styledrop_jax.pipelines.base import Pipeline


@dataclasses.dataclass(frozen=True)
class Initial:
    what: Trainable
    state: Any


def read_init(path, base: Pipeline) -> Initial:
    file = load_adapter(Path(path), base_hash=base.base_hash)
    what = trainable.from_dict(file.config)
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    _, state, _ = nnx.split(trainable.parts(model, what), trainable.trained(what), ...)
    return Initial(what, restore(nnx.as_pure(state), file))
