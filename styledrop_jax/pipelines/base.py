"""What the backbones share: how to draw, what to start from, a group of guidance branches, and their protocol."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from styledrop_jax.sampling.maskgit import linear_ramp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to draw.

    Attributes:
        steps: decoding or denoising steps.
        guidance: "two_scale", StyleDrop's Eq. 4 (2306.00983), moves from the base model by lambda_a and from its
            negative prompt by lambda_b; "classifier_free" moves the tuned model from its own negative prompt by
            lambda_b, which is the guidance scale less one.
        lambda_a: strength of the style, and lambda_b of the text.
        lambda_ramp: whether both rise linearly over the steps, as Muse's guidance does, or are constant.
        negative_prompt: what to move away from; empty is the unconditional model.
        temperature: MaskGIT's choice temperature, of masked models.
        sampler: a name in `sampling.schedulers.SAMPLERS`, of diffusion models.
        guidance_rescale: share in [0, 1] by which the guided output's deviation is pulled back to that of the first
            branch (2305.08891 section 3.4), of diffusion models.
    """

    steps: int = 12
    guidance: str = "two_scale"
    lambda_a: float = 2.0
    lambda_b: float = 5.0
    lambda_ramp: bool = False
    negative_prompt: str = ""
    temperature: float = 4.5
    sampler: str = "ddim"
    guidance_rescale: float = 0.0

    def scales(self) -> tuple[jax.Array, jax.Array]:
        """lambda_a and lambda_b at every step, [steps] each."""
        step = jnp.arange(self.steps)
        share = (
            linear_ramp(0.0, 1.0, step=step, steps=self.steps)
            if self.lambda_ramp
            else jnp.ones(self.steps)
        )
        return self.lambda_a * share, self.lambda_b * share


class Edit(NamedTuple):
    """Pictures to start from.

    Attributes:
        own: what `Backbone.encode_images` makes of them, one for each drawing.
        region: bool [h, w] of their size, what is drawn anew of each; None is all.
        strength: in (0, 1], how much of the region is redrawn.
    """

    own: Any
    region: np.ndarray | None
    strength: float


class Group(NamedTuple):
    """Branches of guidance that run through one graph, batched as one forward.

    Attributes:
        graphdef: of the denoiser, with whatever adapter it carries.
        states: trainable state of each branch, stacked on a leading axis [k, …]; with `shared`, the one of all.
        frozen: the rest of the denoiser's state.
        text: the backbone's features of each branch's prompts, every array [k, b, …].
        weights: [steps, k]; the guided output is the weighted sum over all branches of all groups.
        shared: whether all branches have one state.
    """

    graphdef: nnx.GraphDef
    states: dict
    frozen: dict
    text: Any
    weights: jax.Array
    shared: bool = False

    @property
    def plan(self) -> tuple[nnx.GraphDef, bool]:
        """What a program is compiled for."""
        return self.graphdef, self.shared

    @property
    def arrays(self) -> tuple[dict, dict, Any, jax.Array]:
        """What it is called with."""
        return self.states, self.frozen, self.text, self.weights


class Backbone(Protocol):
    """A text-to-image model that can be taught. See `muse.Muse` and `stable_diffusion.StableDiffusion`.

    Attributes:
        name: as the user gave it.
        base_hash: SHA-256 over the denoiser's weight files; adapters carry it.
        denoiser: what most methods train. text: the text tower.
        controllable: whether `draw` also takes a `control` of its cross-attention.
    """

    controllable: ClassVar[bool]

    name: str
    base_hash: str
    denoiser: nnx.Module
    text: nnx.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def resolution(self) -> int:
        """Pixels along one side of the images it draws."""

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, pixels, at which a picture of that shape is redrawn."""

    def text_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts → token ids [b, t] int32."""

    def text_features(self, tower: nnx.Module, ids: jax.Array) -> Any:
        """Token ids [b, t] → what the denoiser sees of them, a tree of arrays [b, …]; pure, to be differentiated."""

    def encode_text(self, prompts: Sequence[str]) -> Any:
        """Prompts → the same features; each distinct prompt is computed once."""

    def encode_images(self, images: np.ndarray) -> Any:
        """Images [b, h, w, 3], uint8 or float in [0, 1], squares or of a size that `canvas` gives → what `loss` learns
        to draw, a tree of arrays [b, …]."""

    def loss(
        self,
        denoiser: nnx.Module,
        targets: Any,
        text: Any,
        keys: jax.Array,
        hyper: Mapping[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The training loss of each example [b], and metrics [b].

        `keys` [b] are of the examples: the randomness of one is the same in any batch. `hyper` is
        `config.round_N.train`.
        """

    def draw(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: Settings,
        edit: Edit | None = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], or of the edit's size, float32 in [0, 1].

        Each depends on its own seed, prompts and picture alone.
        """


def distinct_rows(prompts: Sequence[str], encode: Callable[[list[str]], Any]) -> Any:
    """What `encode` makes of `prompts`, a tree of arrays [b, …], each distinct prompt computed once."""
    distinct = list(dict.fromkeys(prompts))
    found = encode(distinct)
    rows = np.array([distinct.index(prompt) for prompt in prompts])
    return jax.tree.map(lambda x: x[rows], found)


def chunks(array: np.ndarray, size: int) -> list[np.ndarray]:
    """Pieces of one fixed length, the last padded with its own last row: one compiled program for any count."""
    pieces = [array[i : i + size] for i in range(0, len(array), size)]
    return [np.concatenate([p, np.repeat(p[-1:], size - len(p), axis=0)]) for p in pieces]


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()
