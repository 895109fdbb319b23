"""LoRA files of diffusers, peft and kohya's scripts, in all their spellings, for our layers."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from styledrop_jax.adapters import lora
from styledrop_jax.adapters.slots import TARGETS, slots
from styledrop_jax.errors import UserError, few, shown
from styledrop_jax.interchange import single_file
from styledrop_jax.models import unet
from styledrop_jax.models.layers import Conv, Linear
from styledrop_jax.models.rules import Rules

LAYER = (
    r"(?:(?P<prefix>unet|transformer|text_encoder(?:_2)?|lora_unet|lora_te[12]?)[._])?"
    r"(?:base_model\.model\.)?(?P<layer>.+?)"
)
"""Regular expression of how the name of a layer's tensor starts."""
_NAME = re.compile(
    LAYER + r"(?:(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)"
    r"(?P<half>A|B|down|up)(?:\.default)?\.weight|\.alpha)"
)
_PARTS = {  # prefix → the parts that it may mean: of a model with one text tower, or with two
    "unet": ("denoiser",),
    "transformer": ("denoiser",),
    "lora_unet": ("denoiser",),
    "text_encoder": ("text", "text.first"),
    "lora_te": ("text",),
    "lora_te1": ("text", "text.first"),
    "text_encoder_2": ("text.second",),
    "lora_te2": ("text.second",),
}
_LARGEST = 1e30  # of a strength
_MOST_PATTERNS = 1000
_LONGEST_PATTERN = 200  # letters
_HALVES = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}


class Weights(NamedTuple):
    """A and B of one layer as our adapters have them.

    Attributes:
        down: A, [c, r] or [k, k, c, r].
        up: B, [r, c_out].
    """

    down: np.ndarray
    up: np.ndarray


class Found(NamedTuple):
    """The LoRA of the denoiser or of the text.

    Attributes:
        config: what attaches it: the rank is the largest of the file's.
        layers: {dotted path of a layer: its weights}, of their own ranks.
    """

    config: lora.Config
    layers: dict[str, Weights]


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A layer: the part of the pipeline that it is in, its path there, and its name in files."""

    part: str
    path: str
    name: str
    layer: Linear | Conv


def is_lora(names: Mapping[str, Any]) -> bool:
    """Whether a file with tensors of these names is a LoRA's."""
    return any(re.search(r"(?:^|[._])lora[._]", name) for name in names)


def read(
    tensors: Mapping[str, np.ndarray],
    peft: Mapping[str, Any],
    modules: Mapping[str, tuple[nnx.Module, Rules]],
) -> dict[str, Found]:
    """The LoRA in a file, by the parts of the pipeline that it is for.

    Ranks and strengths may differ from layer to layer in the file, but not in our adapters. Unless
    all layers of a part agree on both, α/r goes into B, and α is the largest rank.

    Args:
        tensors: of the safetensors file.
        peft: the fields of a peft config. Those of one component begin with its prefix in the file:
            "unet.lora_alpha".
        modules: {part: (module, its naming)}, the parts being "denoiser" and "text", or of two
            towers "text.first" and "text.second"; they are only looked at.

    Returns:
        {"denoiser" or "text": its LoRA}. The paths of two towers' layers begin with "first" and
        "second".

    Raises:
        UserError: a tensor fits no layer, lacks its other half or is misshapen, or a strength is
            not a number; names the first and counts them.
    """
    halves, problems = _match(tensors, spellings(modules))
    layers: dict[str, dict[str, Weights]] = {}
    alphas: dict[str, dict[str, float]] = {}
    for place, names in halves.items():
        missing = {"down", "up"} - set(names)
        if missing:
            problems.append(f"{', '.join(names.values())} without its {' and '.join(missing)}")
            continue
        weights = _weights(tensors, names, place.layer)
        if weights is None:
            down = f"{names['down']} {np.shape(tensors[names['down']])}"
            up = f"{names['up']} {np.shape(tensors[names['up']])}"
            kernel = place.layer.kernel.shape
            problems.append(f"{down} and {up} do not fit a layer of shape {kernel}")
            continue
        layers.setdefault(place.part, {})[place.path] = weights
        alpha = alpha_of(tensors, names, peft, place.name)
        alphas.setdefault(place.part, {})[place.path] = alpha
    if problems:
        raise UserError(f"does not fit the model, {len(problems)} differ: {few(problems)}")
    if not layers:
        raise UserError("has no LoRA tensors")
    return {part: _agreed(layers[part], alphas[part]) for part in layers}


def spellings(
    modules: Mapping[str, tuple[nnx.Module, Rules]],
) -> dict[str, dict[str, Place]]:
    """{part: {a layer as files may call it: the layer}}."""
    every = {}
    for part, (module, rules) in modules.items():
        found = every[part] = {}
        role, _, tower = part.partition(".")
        for path, layer in slots(module).items():
            name = rules.name_of(f"{path}.kernel")[0].removesuffix(".weight")
            place = Place(role, f"{tower}.{path}" if tower else path, name, layer)
            # kohya's scripts call an XL's U-Net by the names of the latent-diffusion code
            older = name
            if isinstance(module, unet.UNet):
                older = single_file.unet_name(f"{name}.weight", module.config)
            older = older.removesuffix(".weight")
            short = re.sub(r"\.([qkv])_proj$", r".to_\1", name)
            short = re.sub(r"\.(to_out\.0|out_proj)$", ".to_out", short)
            # transformers 5 has no part `text_model` in a bare text tower
            for full in (name, short, older, name.removeprefix("text_model.")):
                found[full] = place
                found[full.replace(".", "_")] = place
    return every


def _match(
    tensors: Mapping[str, np.ndarray], spellings: Mapping[str, Mapping[str, Place]]
) -> tuple[dict[Place, dict[str, str]], list[str]]:
    """{layer: {"down", "up" or "alpha": tensor's name}}, and what fits nowhere or comes twice."""
    found: dict[Place, dict[str, str]] = {}
    problems = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        place = None
        half = ""
        if match:
            half = _HALVES[match["half"]]
            place = place_of(match["prefix"], match["layer"], spellings)
        if place is None or half in found.get(place, {}):
            problems.append(f"unexpected {name} {np.shape(tensor)}")
        else:
            found.setdefault(place, {})[half] = name
    return found, problems


def place_of(
    prefix: str | None, layer: str, spellings: Mapping[str, Mapping[str, Place]]
) -> Place | None:
    """The layer that a file calls `layer`, of the part that `prefix` says, if that is one alone."""
    layer = layer.replace(".processor", "")
    fitting = []
    for part in _PARTS.get(prefix or "", spellings):
        if layer in spellings.get(part, {}):
            fitting.append(spellings[part][layer])
    # Without a prefix a name may be of either text tower.
    return fitting[0] if len(fitting) == 1 else None


def _weights(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], layer: Linear | Conv
) -> Weights | None:
    """The weights of a layer in our layout, None if they are not of its shape."""
    *inner, c_out = layer.kernel.shape
    down = _half(tensors[names["down"]], len(layer.kernel.shape))
    up = _half(tensors[names["up"]], 2)
    if down.ndim != len(inner) + 1 or down.shape[:-1] != tuple(inner):
        return None
    rank = down.shape[-1]
    return Weights(down, up) if rank and up.shape == (rank, c_out) else None


def _half(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """A half as a layer of `ndim` axes has it; in files a linear one may be a 1×1 convolution."""
    array = np.asarray(tensor, np.float32)
    if array.ndim == 4 and ndim == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def alpha_of(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], peft: Mapping[str, Any], layer: str
) -> float:
    """α of one layer: its own tensor's, else the peft config's, else its rank."""
    if "alpha" in names:
        alpha = np.asarray(tensors[names["alpha"]], np.float32).reshape(-1)[:1].tolist()
        return _number(alpha[0] if alpha else None, names["alpha"])
    rank = np.shape(tensors[names["down"]])[0]
    match = _NAME.fullmatch(names["down"])
    prefix = match["prefix"] if match else None
    start = f"{prefix}." if prefix else ""
    alpha = peft.get(f"{start}lora_alpha", rank)
    patterns = peft.get(f"{start}alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or len(patterns) > _MOST_PATTERNS:
        raise UserError(
            f"its alpha_pattern is {shown(patterns)}, expected a mapping of at most "
            f"{_MOST_PATTERNS}"
        )
    for pattern, own in patterns.items():
        if _meant(pattern, layer):
            alpha = own
            break
    alpha = _number(alpha, "lora_alpha")
    # rank-stabilised LoRA divides by the root of the rank
    return alpha * math.sqrt(rank) if peft.get(f"{start}use_rslora") else alpha


def _meant(pattern: str, layer: str) -> bool:
    """Whether peft takes a pattern to mean a layer: its whole name, or its end from a dot on."""
    return _compiled(pattern).match(layer) is not None


@functools.lru_cache(_MOST_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of peft's, if its search is sure to end soon: no repeated group, few repeats."""
    repeats = len(re.findall(r"[*+{]", pattern))
    soon = len(pattern) <= _LONGEST_PATTERN and repeats <= 3 and not re.search(r"\)[*+{]", pattern)
    try:
        if soon:
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        pass
    raise UserError(
        f"its alpha_pattern has {shown(pattern)}, expected a short pattern of a layer's name"
    )


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < _LARGEST:
        raise UserError(f"its {name} is {shown(value)}, expected a positive number")
    return float(value)


def _agreed(layers: dict[str, Weights], alphas: Mapping[str, float]) -> Found:
    """One rank and one α for all layers, and the weights that go with them."""
    sizes = set()
    for path, weights in layers.items():
        sizes.add((len(weights.up), alphas[path]))
    rank, alpha = max(sizes)
    if len(sizes) > 1:
        alpha = float(rank)
        for path, weights in layers.items():
            scale = np.float32(alphas[path] / len(weights.up))
            layers[path] = Weights(weights.down, weights.up * scale)
    attention = all(re.fullmatch(TARGETS["attention"], path) for path in layers)
    targets = "attention" if attention else "all"
    return Found(lora.Config(rank=rank, alpha=alpha, targets=targets), layers)
