"""How a shipped model is trained, as a value: one frozen dataclass a task."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from styledrop_jax import settings
from styledrop_jax.adapters.styledrop import BLOCKS
from styledrop_jax.errors import UserError, did_you_mean, shown
from styledrop_jax.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every task is told. `task` is its name."""

    task: ClassVar[str]

    corpus: str = setting(
        "corpus", "folder that launch/fetch_corpus.sh made", empty=False, path="file"
    )
    vocabulary: str = setting(
        "starter", "which concepts are learnt", choices=("starter", "core", "full")
    )
    size: int = setting(64, "side of the images in pixels", choices=(64, 128))
    seed: int = setting(0, "the one source of randomness", low=0, high=2**31 - 1)
    width: int = setting(
        32,
        "channels: of transformers, in 32s; at full resolution of vq, vae in 4s, of unet in 16s",
        low=4,
        high=4096,
    )
    batch_size: int = setting(64, "examples a step", low=1, high=65536)
    steps: int = setting(6000, "training steps", low=1)
    optimizer: str = setting(
        "adam",
        "muon: Muon for matrices and convolutions, Adam for the rest",
        choices=("adam", "muon"),
    )
    learning_rate: float = setting(2e-3, "peak of the cosine schedule", low=0, high=1, above=True)
    warmup: int = setting(100, "steps of linear warm-up", low=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled decay of matrices", low=0)
    b2: float = setting(0.99, "Adam's second-moment decay", low=0, high=1)
    steps_per_call: int = setting(1, "steps per dispatch: more on a GPU", low=1)
    precision: str = setting(
        "float32",
        "of products; bfloat16 sums in float32 and is faster on matrix units",
        choices=("float32", "bfloat16"),
    )
    checkpoint_every: int = setting(250, "steps between checkpoints and images", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqSettings(CommonSettings):
    """The tokenizer."""

    task: ClassVar[str] = "vq"

    revive_every: int = setting(50, "steps between moves of unused codes", low=1)
    init: str = setting(
        "",
        "an exported vqvae folder whose decoder to train on, its tokens kept; empty starts anew",
        path="file",
    )
    like: str = setting(
        "",
        "an exported vqvae folder: begin as it, and share its tokens, of images of half the size",
        path="file",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSettings(CommonSettings):
    """The CLIP."""

    task: ClassVar[str] = "clip"

    vocab_size: int = setting(2048, "tokens of the text vocabulary", low=514)
    max_length: int = setting(32, "tokens of a caption", low=8, high=512)
    text_layers: int = setting(2, "of the text tower", low=1, high=100)
    vision_layers: int = setting(6, "of the vision tower", low=1, high=100)
    seen: float = setting(
        1.0, "share of an image's patches that a step looks at: less is faster", low=0.05, high=1
    )
    init: str = setting(
        "",
        "an exported clip folder whose vision to train on, its text tower kept; empty starts anew",
        path="file",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeSettings(CommonSettings):
    """The autoencoder."""

    task: ClassVar[str] = "vae"

    kl_weight: float = setting(
        1e-3, "of the divergence from a unit Gaussian, or from that of `like`", low=0
    )
    init: str = setting(
        "",
        "an exported vqvae or vae folder whose weights to start from; empty starts anew",
        path="file",
    )
    like: str = setting(
        "",
        "an exported vae folder: learn to share its latents, of images of half the size",
        path="file",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserSettings(CommonSettings):
    """What both denoisers are told. They train on examples that the frozen models see once."""

    clip: str = setting(
        "pretrain/clip/export/clip",
        "the exported CLIP, or a pipeline whose text tower to use: a folder",
        empty=False,
        path="file",
    )
    pack: int = setting(48000, "distinct examples to encode and train on", low=1)
    text_dropout: float = setting(0.1, "probability that a caption is dropped", low=0, high=1)
    trained: str = setting(
        "", "regular expression: the parameters that train, by their names; empty is all"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuseSettings(DenoiserSettings):
    """Muse's transformer."""

    task: ClassVar[str] = "muse"

    codec: str = setting(
        "pretrain/vq/export/vqvae",
        "the exported tokenizer, a vqvae folder",
        empty=False,
        path="file",
    )
    layers: int = setting(6, "of the transformer", low=1, high=100)
    init: str = setting("", "an exported muse folder to go on from; empty starts anew", path="file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnetSettings(DenoiserSettings):
    """Stable Diffusion's U-Net."""

    task: ClassVar[str] = "unet"

    codec: str = setting(
        "pretrain/vae/export/vae",
        "the exported autoencoder, a vae folder",
        empty=False,
        path="file",
    )
    min_snr_gamma: float = setting(
        5.0, "gamma of the Min-SNR weighting; 0 weights all timesteps the same", low=0
    )
    init: str = setting("", "an exported unet folder to go on from; empty starts anew", path="file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartSettings(CommonSettings):
    """What StyleDrop's adapter starts from."""

    task: ClassVar[str] = "start"

    base: str = setting("emoji128", "the base model: its name, or its folder", empty=False)
    rank: int = setting(16, "width inside an adapter", low=1, high=4096)
    blocks: str = setting("all", "which transformer layers have one", choices=BLOCKS)
    things: int = setting(24, "drawings of a style that its adapter is judged by", low=1, high=1000)
    inner_steps: int = setting(50, "in which the adapter learns a style from one drawing", low=2)
    inner_batch_size: int = setting(8, "of these: the drawing under as many noises", low=1)
    inner_learning_rate: float = setting(1e-3, "of these, by Adam", low=0, high=1, above=True)


SETTINGS: dict[str, type[CommonSettings]] = {
    "vq": VqSettings,
    "clip": ClipSettings,
    "muse": MuseSettings,
    "vae": VaeSettings,
    "unet": UnetSettings,
    "start": StartSettings,
}


def kind_of(config: Mapping[str, Any]) -> type[CommonSettings]:
    """The settings of the task that `config` names.

    Raises:
        UserError: it names none that there is.
    """
    task = config.get("task", "")
    if isinstance(task, str) and task in SETTINGS:
        return SETTINGS[task]
    raise UserError(
        f"config.task: found {shown(task)}, "
        f"expected one of {', '.join(SETTINGS)}{did_you_mean(str(task), SETTINGS)}"
    )


def from_config(config: Mapping[str, Any]) -> CommonSettings:
    """Checks and resolves plain data, `task` and the fields of that task, once.

    Raises:
        UserError: unknown fields, wrong types, values out of range: all of them in one line.
    """
    return settings.parse(kind_of(config), _without_task(config))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the default of every field that it leaves out.

    Raises:
        UserError: it names no task that there is.
    """
    kind = kind_of(config)
    return {"task": kind.task, **settings.complete(kind, _without_task(config))}


def to_config(value: CommonSettings) -> dict[str, Any]:
    """The plain data that `from_config` reads."""
    return {"task": value.task, **settings.to_dict(value)}


def _without_task(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(config)
    fields.pop("task")
    return fields
