"""The settings of a run as one value, resolved from nested plain data once."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from styledrop_jax import settings
from styledrop_jax.errors import UserError, shown
from styledrop_jax.io import hub
from styledrop_jax.models.reading import Reading
from styledrop_jax.pipelines.base import SampleSettings, TrainSettings
from styledrop_jax.registry import ADAPTERS, METHODS, SCORERS, SELECTORS
from styledrop_jax.settings import numbered, section, setting, variant, weights
from styledrop_jax.training.mesh import MeshSettings

DTYPES = ("float32", "bfloat16")
_SHIPPED_IMAGE = "bundled:"
_LARGEST_WEIGHT = 100  # of a LoRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSample(SampleSettings):
    """How a round samples its pool of prompts."""

    images_per_prompt: int = setting(64, "images sampled for each prompt", low=1, high=10_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """What the next round trains on."""

    scorers: Mapping[str, float] = weights(
        SCORERS,
        {
            "clip_text": 1.0,
            "clip_style": 0.0,
            "clip_content": 0.0,
            "clip_sameness": 0.0,
            "clip_leakage": 0.0,
            "random": 0.0,
        },
        "weight of each scorer in the sum",
    )
    by: str = setting("prompt", "how images are chosen for the next round", choices=SELECTORS)
    k: int = setting(
        1,
        "images chosen per prompt (by prompt), or at most in all (by top_k; by top_prompts, which "
        "takes the best of each prompt alone)",
        low=1,
    )
    images_per_prompt: int = setting(
        0,
        "images of each prompt that are sampled to be chosen from, and for nothing else; 0: the "
        "round's own are",
        low=0,
    )
    lambda_a: float = setting(2.0, "guidance towards the style of these", low=0)
    threshold: float = setting(0.0, "lowest score that is chosen (by threshold)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """One round of train, sample, score, select."""

    start: str = setting(
        "fresh",
        "the adapter that it starts from: a fresh one, the last round's, or learnt, what many "
        "styles taught on this base model; where none of that ships or it does not fit, a fresh "
        "one",
        choices=("fresh", "learnt", "last"),
    )
    images: str = setting(
        "chosen",
        "what it trains on: what was chosen in the last round, or the same as the last round",
        choices=("chosen", "same"),
    )
    own_share: float = setting(
        0.0,
        "after round 1, share of the user's own images beside the chosen samples; the paper has "
        "none",
        low=0,
        high=0.95,
    )
    keep: int = setting(
        1,
        "states of its training that are kept, evenly over the steps, to take the best of; 1 is "
        "the last",
        low=1,
        high=20,
    )
    preview_every: int = setting(
        0,
        "training steps between pictures of the first prompts, for whoever watches; 0: none",
        low=0,
    )
    prompts: str = setting(
        "", "its own text file of prompts to sample; empty for those of the run", path="file"
    )
    left_out: str = setting(
        "", "why a run leaves this round out, said by one that ends before it; empty: nothing is"
    )
    adapter: Any = variant(ADAPTERS, "styledrop", "what trains")
    train: TrainSettings = section(TrainSettings)
    sample: RoundSample = section(RoundSample)
    select: SelectSettings = section(SelectSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What every run is told; the settings of its method are fields of the same value: see
    `from_config`.
    """

    base: str = setting(
        "emoji128",
        "base model: a name, OWNER/NAME of the Hugging Face hub, a local diffusers folder or a "
        "single .safetensors file",
        empty=False,
        path="model",
        basic=True,
    )
    vae: str = setting(
        "",
        "autoencoder in place of a Stable Diffusion's own: a file, a folder or a name; empty for "
        "its own",
        path="model",
    )
    base_loras: str = setting(
        "",
        "LoRAs merged into the base model, with their weights: a.safetensors:0.8,b.safetensors; "
        "empty for none",
        path="loras",
    )
    clip: str = setting(
        "emoji64/clip",
        "CLIP that scores the samples: a name or a local transformers folder",
        empty=False,
        path="model",
    )
    method: str = setting("styledrop", "which images train under which prompts", choices=METHODS)
    dtype: str = setting("float32", "precision of the computation", choices=DTYPES)
    seed: int = setting(0, "the one source of randomness", low=0, high=2**31 - 1)
    init: str = setting(
        "",
        "a LoRA or an embedding that round 1 starts from, of this or another tool; empty for none",
        path="file",
    )
    prompts: str = setting(
        "",
        "text file of prompts to sample, one a line; empty for the built-in pool",
        path="file",
    )
    truth: str = setting(
        "",
        "folder of true images, CONTENT.png, to compare with in the report; empty for none",
        path="file",
    )
    prompt_weights: bool = setting(
        False,
        "read (word:1.3), (word), [word] and BREAK in prompts as A1111's web UI does, not as words "
        "(Stable Diffusion)",
    )
    long_prompts: bool = setting(
        False,
        "read prompts longer than the text tower in chunks of its length (75 words or parts of "
        "words), not only their beginning",
    )
    rounds: int = setting(
        1,
        "rounds of train, sample, score, select; those beyond the last round_N reuse it",
        low=1,
        high=100,
        basic=True,
    )
    mesh: MeshSettings = section(MeshSettings)
    round_settings: tuple[RoundSettings, ...] = numbered(
        RoundSettings, "round_", lambda: (RoundSettings(),)
    )

    @property
    def reading(self) -> Reading:
        """How prompts are read."""
        return Reading(weights=self.prompt_weights, long=self.long_prompts)

    def round(self, number: int) -> RoundSettings:
        """The settings of round `number`, from 1: `round_<number>`, or the last one that there
        is.
        """
        return self.round_settings[min(number, len(self.round_settings)) - 1]

    def teaches(self, number: int) -> bool:
        """Whether a round learns from what is chosen of round `number`."""
        return number < self.rounds and self.round(number + 1).images == "chosen"

    def candidates(self, number: int) -> int:
        """How many images of each prompt round `number` samples to be chosen from alone."""
        return self.round(number).select.images_per_prompt if self.teaches(number) else 0

    @property
    def ends(self) -> str:
        """Why there is no further round, if one that it has settings for says so."""
        further = self.round_settings[self.rounds :]
        return further[0].left_out if further else ""

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """What `base_loras` names: files, each with its weight."""
        return tuple(merged_loras(self.base_loras))

    @property
    def weights_dtype(self) -> str:
        """What the base's weights are kept in: `dtype`, or float32 if an adapter needs them so."""
        used: list[type[Any]] = [
            type(self.round(number).adapter) for number in range(1, self.rounds + 1)
        ]
        exact = any(kind.config.exact for kind in ADAPTERS.values() if kind.settings in used)
        return "float32" if exact else self.dtype


@functools.cache
def _joined(method: str) -> type[RunSpec]:
    """A `RunSpec` that has the settings of a method too."""
    kind = dataclasses.make_dataclass(
        "RunSpec", [], bases=(RunSpec, METHODS[method].settings), frozen=True, kw_only=True
    )
    kind.__module__ = __name__
    return kind


def _kind(data: Mapping[str, Any]) -> type[RunSpec]:
    method = data.get("method", "styledrop")
    known = isinstance(method, str) and method in METHODS
    return _joined(method) if known else RunSpec  # `parse` says what is wrong with it


def from_config(data: Mapping[str, Any]) -> RunSpec:
    """Checks and resolves nested plain data, such as a config file's, once.

    Raises:
        UserError: unknown fields, wrong types, values out of range: all of them in one line.
    """
    kind = _kind(data)
    if kind is RunSpec:
        settings.parse(RunSpec, {"method": data["method"]})
    return settings.parse(kind, data)


def to_config(spec: RunSpec) -> dict[str, Any]:
    """The plain data that `from_config` reads, as `config.json` holds it."""
    return settings.to_dict(spec)


def complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every field that it leaves out at its default; what is wrong with it stays
    wrong.
    """
    return settings.complete(_kind(data), data)


def normal(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` in the form in which two configs of the same run are the same: every round in full,
    one that is left out for a reason too, and without that reason and the devices that it runs on.

    What is no config of a run stays as it is.
    """
    try:
        spec = from_config(data)
    except UserError:
        return dict(data)
    count = len(spec.round_settings) if spec.ends else spec.rounds
    rounds = [spec.round(number) for number in range(1, count + 1)]
    stages = tuple(dataclasses.replace(stage, left_out="") for stage in rounds)
    whole = to_config(dataclasses.replace(spec, round_settings=stages))
    del whole["mesh"]
    return whole


def describe(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """A line for each field of a complete config: "seed 0: the one source of randomness (…)".

    Those that most runs set come under a heading of their own. Of a round after the first only what
    differs from the one before it is shown.
    """
    first_of_all: list[str] = []
    others: list[str] = []
    before: dict[str, str] = {}
    for field in settings.describe(_kind(data), data):
        value = field.value if field.value != "" else '""'
        if isinstance(value, bool):
            value = str(value).lower()
        line = f"{value}: {field.help} ({field.expected})"
        first, _, rest = field.name.partition(".")
        if first.startswith("round_"):
            if before.get(rest) == line:
                continue
            before[rest] = line
        (first_of_all if field.basic else others).append(f"{field.name} {line}")
    return {"what most runs set": first_of_all, "all other fields": others}


def absolute(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, complete, with the paths of the user's files made absolute: so a run works from any
    folder.

    A name that is no path of an existing file stays as it is: it may be a model's, or an error to
        be said later.
    """
    for field in settings.describe(_kind(data), data):
        if field.path and isinstance(field.value, str) and field.value.strip():
            _put(data, field.name.split("."), _absolute(field.value, field.path))
    return data


def portable(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, complete, without the folders of this machine: of the user's files their names."""
    for field in settings.describe(_kind(data), data):
        if not (field.path and isinstance(field.value, str)):
            continue
        name = field.value
        if field.path == "loras":
            merged = merged_loras(field.value)
            name = ",".join(f"{Path(path).name}:{weight}" for path, weight in merged)
        elif os.path.isabs(field.value):
            name = Path(field.value).name
        _put(data, field.name.split("."), name)
    return data


def merged_loras(value: str) -> list[tuple[str, float]]:
    """The files of a `base_loras`, each with its weight: 1 where none is said.

    Raises:
        UserError: a weight is no number, or 0.
    """
    found: list[tuple[str, float]] = []
    for item in filter(None, re.split(r"\s*,\s*", value.strip())):
        match = re.fullmatch(r"(.+?)(?::([^:/\\]*))?", item)
        path, said = match.groups() if match else (item, None)
        try:
            weight = 1.0 if said is None else float(said)
        except ValueError:
            weight = math.nan
        if not 0 < abs(weight) <= _LARGEST_WEIGHT:
            raise UserError(
                f"config.base_loras: found {shown(item, 160)}, expected FILE or FILE:WEIGHT, a "
                f"number from -{_LARGEST_WEIGHT} to {_LARGEST_WEIGHT} but 0"
            )
        found.append((path, weight))
    return found


def _absolute(value: str, kind: str) -> str:
    if kind == "loras":
        items: list[str] = []
        for path, weight in merged_loras(value):
            items.append(f"{_absolute(path, 'file')}:{weight}")
        return ",".join(items)
    if value.startswith(_SHIPPED_IMAGE) or (kind == "model" and hub.is_shipped(value)):
        return value
    try:
        path = Path(value).expanduser()
        return os.path.abspath(path) if path.exists() else value
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user
        return value


def _put(data: Any, keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        data = data[key]
    data[keys[-1]] = value


def check_rounds(spec: RunSpec) -> None:
    """What can be known before anything is trained: that there is enough to choose from, and that
    batches divide.

    Raises:
        UserError: a round is to choose more images of a prompt than it samples, or to cut a batch
            into uneven parts.
    """
    for number in range(1, spec.rounds + 1):
        stage = spec.round(number)
        where = f"config.round_{number}"
        if not stage.train.steps and (number == 1 or stage.start != "last"):
            raise UserError(
                f"{where}.train.steps: found 0, expected a whole number of at least 1; "
                f"0 is for a round that starts from the last one's adapter"
            )
        if stage.train.batch_size % stage.train.accumulate:
            raise UserError(
                f"{where}.train.accumulate: found {stage.train.accumulate}, "
                f"expected a divisor of batch_size {stage.train.batch_size}"
            )
        sampled = stage.select.images_per_prompt or stage.sample.images_per_prompt
        if stage.select.by == "prompt" and stage.select.k > sampled:
            raise UserError(
                f"{where}.select.k: found {stage.select.k}, expected at most {sampled}, "
                "the images sampled for a prompt"
            )


def check_batches(spec: RunSpec, devices: int) -> None:
    """UserError if the devices of `config.mesh` cannot share the batches of a round evenly."""
    for number in range(1, spec.rounds + 1):
        train = spec.round(number).train
        if train.batch_size // train.accumulate % devices:
            raise UserError(
                f"config.round_{number}.train.batch_size: found {train.batch_size}, expected a "
                f"multiple of {devices * train.accumulate}, so that the {devices} devices of "
                "config.mesh share it evenly"
            )
