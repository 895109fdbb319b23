"""What text-to-image pipelines share: their base class, how they are told to sample and to train,
guidance groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from styledrop_jax.models import clip
from styledrop_jax.models.reading import PLAIN, Reader, Reading, Tokens, read
from styledrop_jax.sampling.maskgit import linear_ramp
from styledrop_jax.sampling.schedulers import SAMPLERS
from styledrop_jax.settings import setting
from styledrop_jax.training import mesh

GUIDANCE = ("two_scale", "classifier_free")
_DIFFUSION = "diffusion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How to sample.

    "two_scale" is StyleDrop's Eq. 4 (2306.00983): it moves from the base model by `lambda_a` and
    from its negative prompt by `lambda_b`. "classifier_free" moves the tuned model from its own
    negative prompt by `lambda_b`, which is the guidance scale less one.
    """

    batch_size: int = setting(
        8,
        "images sampled at once: more is faster and takes more memory; "
        "one CPU takes at most one for two cores",
        low=1,
        high=4096,
    )
    steps: int = setting(36, "decoding or denoising steps", low=1, high=1000)
    guidance: str = setting(
        "two_scale",
        "StyleDrop's Eq. 4, or the tuned model's by lambda_b alone",
        choices=GUIDANCE,
    )
    temperature: float = setting(4.5, "choice temperature, annealed to 0 (Muse)", low=0)
    sampler: str = setting(
        "ddim",
        "how noise is removed; lcm is for latent consistency models (diffusion)",
        choices=SAMPLERS,
    )
    guidance_rescale: float = setting(
        0.0,
        "share by which the guided output's deviation is pulled back (diffusion)",
        low=0,
        high=1,
    )
    lambda_a: float = setting(2.0, "guidance towards the style", low=0)
    lambda_b: float = setting(5.0, "guidance towards the text", low=0)
    lambda_ramp: bool = setting(False, "let the guidance rise linearly over the steps")
    negative_prompt: str = setting("", "what to move away from; empty for nothing")

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """lambda_a and lambda_b at every step, [steps] each."""
        share = np.ones(self.steps, np.float32)
        if self.lambda_ramp:
            step = np.arange(self.steps, dtype=np.float32)
            share = linear_ramp(0.0, 1.0, step=step, steps=self.steps)
        return self.lambda_a * share, self.lambda_b * share


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train."""

    steps: int = setting(1000, "training steps", low=0)
    learning_rate: float = setting(3e-5, "Adam's learning rate", low=0, high=1, above=True)
    batch_size: int = setting(8, "images a step", low=1, high=4096)
    random_crop: bool = setting(False, "crop the references at random instead of from the middle")
    text_dropout: float = setting(0.1, "probability that a step's prompt is dropped", low=0, high=1)
    checkpoint_every: int = setting(
        100, "steps between checkpoints, at most these are lost by a kill", low=1
    )
    min_snr_gamma: float = setting(
        0.0,
        "bound of the signal-to-noise weights, usually 5; 0 for none (diffusion)",
        low=0,
    )
    noise_offset: float = setting(
        0.0,
        "deviation of a constant added to the noise of a channel (diffusion)",
        low=0,
        high=1,
    )
    ema_decay: float = setting(
        0.0,
        "decay of the average over the steps that is kept, such as 0.99; 0: the last step's",
        low=0,
        high=0.99999,
    )
    accumulate: int = setting(
        1, "parts that a step's images are computed in: less memory, the same result", low=1
    )
    remat: bool = setting(
        False, "compute activations anew in the backward pass: less memory, more time"
    )


Loss = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`loss(denoiser, targets, text, keys) → (of each example [b], metrics [b])`.

`targets` and `text` are what `encode_images` and `text_features` give. `keys` [b] are of the
examples: the randomness of one is the same in any batch.
"""


class Edit(NamedTuple):
    """Images to start from.

    Attributes:
        own: what `Pipeline.encode_images` makes of them, one for each sample.
        region: bool [h, w] of their size, what is generated anew of each; None is all.
        strength: in (0, 1], how much of the region is generated anew.
        around: for a pipeline that `inpaints`, `own` of the images with the region in grey.
    """

    own: Any
    region: np.ndarray | None
    strength: float
    around: Any = None


class Group(NamedTuple):
    """Branches of guidance that run through one graph, batched as one forward.

    Attributes:
        graphdef: of the denoiser, with whatever adapter it carries.
        states: trainable state of each branch, stacked on a leading axis [k, …]; with `shared`, the
            one of all.
        frozen: the rest of the denoiser's state.
        text: the pipeline's features of each branch's prompts, every array [k, b, …].
        weights: [steps, k]; the guided output is the weighted sum over all branches of all groups.
        shared: whether all branches have one state.
    """

    graphdef: nnx.GraphDef
    states: Any
    frozen: Any
    text: Any
    weights: np.ndarray
    shared: bool = False

    @property
    def static(self) -> tuple[nnx.GraphDef, bool]:
        """What a program is compiled for."""
        return self.graphdef, self.shared

    @property
    def arrays(self) -> tuple[Any, Any, Any, np.ndarray]:
        """What it is called with."""
        return self.states, self.frozen, self.text, self.weights


IN_ARRAYS = (None, None, 1, None)
"""Where the images are in `Group.arrays`."""


class Compilable(NamedTuple):
    """A jitted function, and what it is called with: shapes in place of arrays."""

    function: Any
    arguments: tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A text-to-image model that can be taught: see `muse.Muse` and
    `stable_diffusion.StableDiffusion`.

    Attributes:
        controllable: whether `generate` also takes a `control` of its cross-attention.
        name: as the user gave it.
        base_hash: identifies everything that decides what it computes; adapters carry it.
        denoiser: what most methods train: the transformer or the U-Net.
        autoencoder: images ↔ tokens or latents.
        text: the text tower, or two of them.
        tokenizer: the text tower's.
        expand: what is done to a prompt before the tokenizer, for new words of several tokens.
        reading: how prompts are read.
        revision: the commit of a model of the Hugging Face hub; empty for any other.
    """

    controllable: ClassVar[bool] = False

    name: str
    base_hash: str
    denoiser: Any
    autoencoder: Any
    text: Any
    tokenizer: PreTrainedTokenizerBase
    expand: Callable[[str], str] = str
    reading: Reading = PLAIN
    revision: str = ""

    @functools.cached_property
    def devices(self) -> Mesh:
        """Those that its weights lie on: they share its work."""
        return mesh.of(nnx.state(self.denoiser, nnx.Param))

    @property
    def weights_dtype(self) -> jnp.dtype:
        """What the denoiser's weights are kept in."""
        return jax.tree.leaves(nnx.state(self.denoiser, nnx.Param))[0].dtype

    @property
    def resolution(self) -> int:
        """Pixels along one side of the images it was trained on, and generates unless told
        otherwise.
        """
        raise NotImplementedError

    @property
    def inpaints(self) -> bool:
        """Whether its denoiser is also told what to generate, and sees what is around it."""
        return False

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, with those that begin, end and pad it."""
        first = next(iter(clip.towers(self.text).values()))
        return first.config.max_position_embeddings

    def reads(self, reading: Reading) -> Self:
        """The pipeline that reads prompts so; UserError if it cannot."""
        return self if reading == self.reading else dataclasses.replace(self, reading=reading)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, pixels, at which an image of that shape is generated anew."""
        raise NotImplementedError

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """Height and width, pixels, of the images that it can learn from: a square of `resolution`
        first.
        """
        return [(self.resolution, self.resolution)]

    def text_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts, read as plain words → token ids [b, t] int32."""
        return read(self._reader(PLAIN), prompts).ids[:, 0]

    def text_tokens(self, prompts: Sequence[str], chunks: int = 1) -> Tokens:
        """Prompts, read by `reading` → tokens, in at least that many chunks."""
        return read(self._reader(self.reading), prompts, chunks)

    def text_chunks(self, prompts: Sequence[str]) -> np.ndarray:
        """How many chunks each prompt is read in, int [b]."""
        if self.reading == PLAIN:
            return np.ones(len(prompts), int)
        reader = self._reader(self.reading)
        counts = {prompt: len(reader.chunks(prompt)) for prompt in dict.fromkeys(prompts)}
        return np.array([counts[prompt] for prompt in prompts], int)

    @staticmethod
    def text_features(tower: Any, tokens: Tokens) -> Any:
        """Tokens → what the denoiser sees of them, a tree of arrays [b, …] of which `states` is [b,
        n·t, c]; pure, to be differentiated.
        """
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str], chunks: int = 1) -> Any:
        """Prompts, in at least that many chunks → the same features; each distinct prompt is
        computed once.
        """
        raise NotImplementedError

    def _reader(self, how: Reading) -> Reader:
        first = next(iter(clip.towers(self.text).values()))
        return Reader(
            tokenizer=self.tokenizer,
            length=self.prompt_length,
            known=first.config.vocab_size,
            how=how,
            expand=self.expand,
        )

    def encode_images(self, images: np.ndarray) -> Any:
        """Images [b, h, w, 3], uint8 or float in [0, 1], squares or of a size that `canvas` or
        `canvases` gives → what `loss` learns to generate, a tree of arrays [b, …]."""
        raise NotImplementedError

    def loss(self, settings: TrainSettings) -> Loss:
        """The training loss; of pipelines and settings that compute the same it is equal."""
        raise NotImplementedError

    def generate(
        self,
        groups: Sequence[Group],
        seeds: Sequence[int],
        *,
        settings: SampleSettings,
        edit: Edit | None = None,
        control: Any = None,
    ) -> np.ndarray:
        """One batch of images [b, r, r, 3], or of the edit's size, float32 in [0, 1].

        Each depends on its own seed, prompts and image alone.
        """
        raise NotImplementedError

    def programs(
        self, groups: Sequence[Group], count: int, settings: SampleSettings
    ) -> dict[str, Compilable]:
        """What `generate` runs of `count` images without an edit, to be compiled: "sampling" and
        "decoding". The arrays of the pipeline and the groups may be shapes.
        """
        raise NotImplementedError


def distinct_rows(prompts: Sequence[str], encode: Callable[[list[str]], Any]) -> Any:
    """What `encode` makes of `prompts`, a tree of arrays [b, …], each distinct prompt computed
    once.
    """
    distinct = list(dict.fromkeys(prompts))
    found = encode(distinct)
    rows = np.array([distinct.index(prompt) for prompt in prompts])
    return jax.tree.map(lambda x: x[rows], found)


def decoding(autoencoder: Any, x: jax.ShapeDtypeStruct) -> Compilable:
    """What makes images of tokens or latents `x` [b, …]."""
    graphdef, state = nnx.split(autoencoder)

    def decode(state: Any, x: jax.Array) -> jax.Array:
        return on_own(type(autoencoder).decode, nnx.merge(graphdef, state), x)

    return Compilable(jax.jit(decode), (nnx.as_pure(state), x))


def on_own(compute: Callable[[Any, Any], Any], module: nnx.Module, x: jax.Array) -> Any:
    """`compute` of a module and arrays x [b, …] in a program, each device of its own of them."""
    graphdef, state = nnx.split(module)

    def run(state: Any, x: jax.Array) -> Any:
        return compute(nnx.merge(graphdef, state), x)

    return mesh.apart(run, (None, 0))(state, x)


def shape_of_keys(count: int) -> jax.ShapeDtypeStruct:
    """Of random keys [count]."""
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def to_floats(images: np.ndarray) -> np.ndarray:
    """Images in uint8, or in [0, 1] already, as float32 in [0, 1]."""
    return np.asarray(images, np.float32) / (255 if images.dtype == np.uint8 else 1)
