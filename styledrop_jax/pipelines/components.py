"""How the components of a diffusers folder, such as the U-Net in `unet`, are read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.identity import Part
from styledrop_jax.io.paths import shown_path
from styledrop_jax.models.config_json import require_layers
from styledrop_jax.models.rules import Rules
from styledrop_jax.training import mesh

_Module = TypeVar("_Module", bound=nnx.Module)
DIFFUSERS = "diffusion_pytorch_model"
TRANSFORMERS = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component(Generic[_Module]):
    """One kind of component.

    Attributes:
        folder: its own in that of a pipeline.
        config: makes a config of what config.json holds.
        module: is called with the config, `rngs` and `dtype`, in which it computes.
        rules: its naming in files.
        stem: of its weight files, `DIFFUSERS` or `TRANSFORMERS`.
        upcasts: whether its weights stay in float32, and its config may say, by `force_upcast`,
            that it computes in that too.
    """

    folder: str
    config: Callable[[dict[str, Any]], Any]
    module: Callable[..., _Module]
    rules: Rules
    stem: str
    upcasts: bool = False

    def open(self, folder: Path) -> Part:
        """Its config and its tensors, of which no data is read yet, in its own folder.

        Raises:
            UserError: a file is missing, damaged or not supported.
        """
        config = self.config_in(folder)
        files = pretrained.weight_files(folder, self.stem)
        return Part(config, pretrained.Tensors(files, self.rules))

    def config_in(self, folder: Path) -> Any:
        """Its config in its own folder; UserError if it is missing, damaged or not supported."""
        values = hub.read_config(folder)
        try:
            return self.config(values)
        except UserError as error:
            raise UserError(f"{shown_path(folder / 'config.json')}: {error}") from None

    def build(
        self, part: Part, dtype: jnp.dtype, *, source: str, weights: jnp.dtype | None = None
    ) -> _Module:
        """The module of what was opened; UserError that names `source` if the two do not fit.

        Its weights lie on the devices in use, see `mesh.used`.

        Args:
            part: what was opened.
            dtype: what it computes in.
            source: for errors.
            weights: what its weights are kept in; None is `dtype`.
        """
        require_layers(part.config, len(part.tensors), source=source)
        dtype, kept = self._dtypes(part.config, dtype, dtype if weights is None else weights)
        return pretrained.load(
            lambda: self.module(part.config, rngs=pretrained.ONE_KEY, dtype=dtype),
            part.tensors,
            self.rules,
            source=source,
            dtype=kept,
            place=mesh.placer(),
        )

    def shapes(self, config: Any, dtype: jnp.dtype, weights: jnp.dtype) -> _Module:
        """The module of a config as `build` makes it, with the shapes of its arrays in their
        place."""
        dtype, kept = self._dtypes(config, dtype, weights)

        def build() -> _Module:
            module = self.module(config, rngs=pretrained.ONE_KEY, dtype=dtype)
            graphdef, params, rest = nnx.split(module, nnx.Param, ...)
            return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(kept), params), rest)

        return nnx.eval_shape(build)

    def _dtypes(
        self, config: Any, dtype: jnp.dtype, weights: jnp.dtype
    ) -> tuple[jnp.dtype, jnp.dtype]:
        """What it computes in, and what its weights are kept in."""
        if not self.upcasts:
            return dtype, weights
        exact = jnp.dtype(jnp.float32)
        return exact if config.force_upcast else dtype, exact

    def load(self, folder: Path, dtype: jnp.dtype = jnp.float32) -> _Module:
        """The module in its own folder; UserError if it is not whole."""
        return self.build(self.open(folder), dtype, source=str(folder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a pipeline is loaded from, and how it is kept.

    Attributes:
        name: as the user gave it.
        path: its folder of the diffusers layout, or its single file.
        dtype: what it computes in; an autoencoder in float32 if its config says `force_upcast`.
        weights: what its weights are kept in; an autoencoder's are in float32.
        vae: an autoencoder that takes the place of its own, as the user gave it; empty for none.
    """

    name: str
    path: Path
    dtype: jnp.dtype
    weights: jnp.dtype
    vae: str = ""

    def open(self, component: Component) -> Part:
        """See `Component.open`."""
        return component.open(self.path / component.folder)

    def build(self, component: Component[_Module], part: Part) -> _Module:
        """See `Component.build`."""
        source = f"{component.folder} of {self.name}"
        return component.build(part, self.dtype, source=source, weights=self.weights)

    def shapes(self, component: Component[_Module], config: Any) -> _Module:
        """See `Component.shapes`."""
        return component.shapes(config, self.dtype, self.weights)
