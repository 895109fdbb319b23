"""LoRA (arXiv 2106.09685): low-rank additions to linear layers and convolutions, and the files of other tools.

out = y + α/r · (x A) B for a layer that maps x to y (Eq. 3). For a convolution A is a convolution of r channels with
the layer's own kernel size and stride, and B a 1×1 convolution after it.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.adapters.base import AdapterConfig, AdapterKind, AdapterParam, Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.models.layers import Conv, Linear, convolution
from styledrop_jax.models.rules import Layout, Rules
from styledrop_jax.settings import setting

_METADATA = (
    "lora_adapter_metadata"  # where diffusers keeps the peft config of each component, as JSON
)
_KOHYA = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te"}

Targets = Literal["attention", "all"]
TARGETS: dict[Targets, str] = {
    "attention": r"(?:.+\.)?(?:to_[qkv]|to_out\.0|[qkv]_proj|out_proj)",
    "all": r".+",
}
"""Which layers: a regular expression over their dotted paths, in the image models and in CLIP's towers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """The adapter's size.

    Attributes:
        rank: r.
        alpha: α; the product is scaled by α/r, which keeps a learning rate fit for other ranks.
        targets: "attention" adapts the query, key, value and output projections of every attention, "all" every linear
            layer and convolution that has a slot. The three convolutions of the U-ViT's own that stand outside its
            layers (depthwise, down- and upsampling) have none.
    """

    kind: ClassVar[str] = "lora"
    rank: int = 4
    alpha: float = 4.0
    targets: Targets = "attention"

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank > 0):
            raise UserError(f"lora rank: found {self.rank!r}, expected a positive whole number")
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha < math.inf):
            raise UserError(f"lora alpha: found {self.alpha!r}, expected a positive number")
        if self.targets not in TARGETS:
            raise UserError(
                f"lora targets: found {self.targets!r}, expected one of {', '.join(TARGETS)}"
            )

    def attach(self, module: nnx.Module, *, rngs: nnx.Rngs) -> None:
        attach(module, self, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Its fields of `config.round_N.adapter`."""

    rank: int = setting(4, "width inside an adapter", low=1, high=4096)
    alpha: float = setting(4.0, "strength of the product is alpha / rank", low=0, above=True)
    targets: str = setting("attention", "which layers", choices=("attention", "all"))
    text_encoder: bool = setting(False, "the text tower trains too")


class Projection(nnx.Module):
    """The part of a layer that reads its input, with another kernel in place of its own."""

    def __init__(self, layer: Linear | Conv):
        self.window = ((layer.strides,) * 2, layer.padding) if isinstance(layer, Conv) else None

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x: what the layer takes. kernel: [c, r], or [k, k, c, r] of a convolution. Returns [..., r]."""
        if self.window is None:
            return x @ kernel
        return convolution(x, kernel, *self.window)


class Adapter(nnx.Module):
    """y + α/r · (x A) B; B starts at zero, A as a normal of standard deviation 1/r, as diffusers' trainers have it."""

    def __init__(self, layer: Linear | Conv, config: Config, *, rngs: nnx.Rngs):
        *inner, c_out = layer.kernel.shape
        normal = nnx.initializers.normal(1 / config.rank)
        self.down = AdapterParam(
            normal(rngs.params(), (*inner, config.rank))
        )  # [c, r] or [k, k, c, r]
        self.up = AdapterParam(jnp.zeros((config.rank, c_out)))
        self.scale = config.alpha / config.rank
        self.projection = Projection(layer)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """x: the layer's input. y: its output [..., c_out]. Returns the new output, computed in y's dtype."""
        down, up = self.down[...].astype(y.dtype), self.up[...].astype(y.dtype)
        return y + self.scale * (self.projection(x.astype(y.dtype), down) @ up)


def slots(module: nnx.Module) -> dict[str, Linear | Conv]:
    """{dotted path: layer} of every linear layer and convolution of `module` that has an adapter slot."""
    graph = list(nnx.iter_modules(module))
    return {
        tree.path_name(path): layer for path, layer in graph if isinstance(layer, Linear | Conv)
    }


def fill(module: nnx.Module, pattern: str, make: Callable[[Linear | Conv], nnx.Module]) -> None:
    """Sets `make(layer)` into the slot of every layer whose dotted path matches `pattern`, and clears all others.

    Raises:
        UserError: no layer does.
    """
    layers = slots(module)
    if not any(re.fullmatch(pattern, name) for name in layers):
        raise UserError(f"adapter: {type(module).__name__} has no layers that it could be put into")
    for name, layer in layers.items():
        layer.adapter = nnx.data(make(layer) if re.fullmatch(pattern, name) else None)


def attach(module: nnx.Module, config: Config, *, rngs: nnx.Rngs) -> None:
    """Sets fresh adapters into the layers of `config.targets`, in place of any in any layer; touches no weight.

    Args:
        module: a U-ViT, a U-Net, a CLIP tower, or anything made of `models.layers`.
        config: the adapter's size.
        rngs: the `params` stream initialises the weights.

    Raises:
        UserError: the module has no such layers.
    """
    fill(module, TARGETS[config.targets], lambda layer: Adapter(layer, config, rngs=rngs))


def export_diffusers(
    state: Any, config: Config, rules: Rules, prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A LoRA file of diffusers and peft, at the right strength whether or not its reader looks at the metadata.

    α/r is in B, and the metadata say that α is r, so both readings multiply by one.

    Args:
        state: the adapter's `nnx.State`, pure or not.
        config: what it was attached with.
        rules: of the model.
        prefix: the model's place in its pipeline: "transformer", "unet" or "text_encoder".

    Returns:
        The tensors and the metadata of the safetensors file; `join` puts those of two models into one.
    """
    tensors, targets = {}, []
    for name, (down, up) in _pairs(state, rules).items():
        tensors[f"{prefix}.{name}.lora_A.weight"] = down
        tensors[f"{prefix}.{name}.lora_B.weight"] = up * np.float32(config.alpha / config.rank)
        targets.append(
            name.removeprefix("text_model.")
        )  # transformers 5 has no such part; peft compares the ends
    fields = {"r": config.rank, "lora_alpha": config.rank, "target_modules": sorted(targets)}
    return tensors, {
        _METADATA: json.dumps({f"{prefix}.{key}": value for key, value in fields.items()})
    }


def join(
    *exports: tuple[Mapping[str, np.ndarray], Mapping[str, str]],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Several models' `export_diffusers` as one file: its tensors and its metadata."""
    tensors, fields = {}, {}
    for part, metadata in exports:
        tensors |= part
        fields |= json.loads(metadata[_METADATA])
    return tensors, {_METADATA: json.dumps(fields)}


def export_kohya(state: Any, config: Config, rules: Rules, prefix: str) -> dict[str, np.ndarray]:
    """A LoRA file in the naming of kohya's scripts, which most other tools read; see `export_diffusers`."""
    tensors = {}
    for name, (down, up) in _pairs(state, rules).items():
        layer = f"{_KOHYA[prefix]}_{name.replace('.', '_')}"
        tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"] = down, up
        tensors[f"{layer}.alpha"] = np.array(config.alpha, np.float32)
    return tensors


def _pairs(state: Any, rules: Rules) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name of a layer in files: A and B as files have them}."""
    flat, pairs = tree.flatten(state), {}
    for layer in (
        path.removesuffix(".adapter.up") for path in flat if path.endswith(".adapter.up")
    ):
        _, layout = rules.name_of(f"{layer}.kernel")
        down, up = (_to_file(flat[f"{layer}.adapter.{half}"], layout) for half in ("down", "up"))
        pairs[_file_name(layer, rules)] = down, up
    return pairs


def _to_file(weight: jax.Array, layout: Layout) -> np.ndarray:
    """[c, r] → [r, c], or [r, c, 1, 1] for what is a convolution there; [k, k, c, r] → [r, c, k, k]."""
    array = np.asarray(weight, np.float32)
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    array = array[:, :, None, None] if array.ndim == 2 and layout != "linear" else array
    return np.ascontiguousarray(array)


_NAME = re.compile(
    r"(?:(?P<prefix>unet|transformer|text_encoder)\.|lora_(?:unet|te1?)_)?(?:base_model\.model\.)?(?P<layer>.+?)"
    r"(?:(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(?P<half>A|B|down|up)(?:\.default)?\.weight|\.alpha)"
)
_HALVES = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}
_TEXT = r"(?:text_encoder\.|lora_te1?_).+"


def split(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of a LoRA file by whose they are: "denoiser" and "text_encoder", either of which may be empty."""
    parts = {"denoiser": {}, "text_encoder": {}}
    for name, tensor in tensors.items():
        parts["text_encoder" if re.fullmatch(_TEXT, name) else "denoiser"][name] = tensor
    return parts


def load_interchange(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None,
    module: nnx.Module,
    rules: Rules,
) -> tuple[Config, nnx.State]:
    """Reads the LoRA of another tool: diffusers and peft, the older spellings of diffusers, or kohya's.

    Ranks and strengths may differ from layer to layer in the file. Here they do not: the rank is the largest, smaller
    ones are filled up with zeros, and unless all agree on both, α/r goes into B. Layers of `targets` that the file
    leaves out get zeros, which change nothing.

    Args:
        tensors: of the safetensors file; all must be of `module`, see `split`.
        metadata: of the same file, or None.
        module: the model that the file is for; it is only looked at.
        rules: the model's naming.

    Returns:
        The config to attach, and the adapter's pure state then.

    Raises:
        UserError: lists every tensor that fits no layer, lacks its other half, or is misshapen.
    """
    layers = slots(module)
    found, strays = _match(tensors, layers, rules)
    problems = [f"unexpected {name} {np.shape(tensors[name])}" for name in strays]
    pairs = {}
    for path, names in found.items():
        if missing := {"down", "up"} - set(names):
            problems.append(
                f"{', '.join(names.values())} without the {' and '.join(sorted(missing))} half"
            )
            continue
        kernel = layers[path].kernel.shape
        down, up = (
            _from_file(tensors[names["down"]], len(kernel)),
            _from_file(tensors[names["up"]], 2),
        )
        if down.shape[:-1] == kernel[:-1] and up.shape == (*down.shape[-1:], kernel[-1]):
            pairs[path] = down, up
        else:
            shapes = " and ".join(
                f"{names[half]} {np.shape(tensors[names[half]])}" for half in ("down", "up")
            )
            problems.append(f"{shapes} do not fit a layer of shape {kernel}")
    if problems or not pairs:
        reason = (
            f"{len(problems)} differ: " + "; ".join(problems)
            if problems
            else "it has no LoRA tensors"
        )
        raise UserError(f"the LoRA file does not fit {type(module).__name__}, {reason}")
    peft = _peft(metadata)
    alphas = {path: _alpha(tensors, found[path], peft, _file_name(path, rules)) for path in pairs}
    return _assemble(layers, pairs, alphas)


def _match(
    names: Iterable[str], layers: Iterable[str], rules: Rules
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{layer's path: {"down", "up" or "alpha": tensor's name}}, and the names that fit nowhere or come twice."""
    spellings = {}
    for path in layers:
        name = _file_name(path, rules)
        short = re.sub(
            r"\.(to_out\.0|out_proj)$", ".to_out", re.sub(r"\.([qkv])_proj$", r".to_\1", name)
        )
        spellings |= dict.fromkeys((name, name.replace(".", "_"), short), path)
    found, strays = {}, []
    for name in names:
        match = _NAME.fullmatch(name)
        layer = match["layer"].replace(".processor", "") if match else ""
        for pattern, replacement in rules.renames:
            layer = re.sub(pattern, replacement, layer)
        half = _HALVES[match["half"]] if match else ""
        if layer not in spellings or half in found.get(spellings[layer], {}):
            strays.append(name)
        else:
            found.setdefault(spellings[layer], {})[half] = name
    return found, strays


def _file_name(path: str, rules: Rules) -> str:
    return rules.name_of(f"{path}.kernel")[0].removesuffix(".weight")


def _from_file(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """A half as a layer of `ndim` axes has it; a linear layer's may be that of a 1×1 convolution in the file."""
    array = np.asarray(tensor, np.float32)
    if array.ndim == 4 and ndim == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _peft(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_METADATA, "{}")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise UserError(
            f"the LoRA file's {_METADATA} is {text[:80]!r}, expected the JSON of a peft config"
        ) from None


def _alpha(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], peft: Mapping[str, Any], layer: str
) -> float:
    """α of one layer: its own tensor's, else the peft config's, else its rank."""
    if "alpha" in names:
        return float(np.asarray(tensors[names["alpha"]], np.float32).reshape(-1)[0])
    prefix = _NAME.fullmatch(names["down"])["prefix"]
    start = f"{prefix}." if prefix else ""
    rank = np.shape(tensors[names["down"]])[0]
    # peft's own way to match them: the whole name, or its end from a dot on
    patterns = peft.get(f"{start}alpha_pattern", {}).items()
    fitting = (alpha for pattern, alpha in patterns if re.match(rf"(.*\.)?({pattern})$", layer))
    alpha = next(fitting, peft.get(f"{start}lora_alpha", rank))
    return (
        alpha * math.sqrt(rank) if peft.get(f"{start}use_rslora") else alpha
    )  # rank-stabilised: scaled by α/√r


def _assemble(
    layers: Mapping[str, Linear | Conv],
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    alphas: Mapping[str, float],
) -> tuple[Config, nnx.State]:
    """One rank and one α for all layers, and the state that goes with them."""
    attention = all(re.fullmatch(TARGETS["attention"], path) for path in pairs)
    targets: Targets = "attention" if attention else "all"
    rank = max(len(up) for _, up in pairs.values())
    agreed = len({(len(up), alphas[path]) for path, (_, up) in pairs.items()}) == 1
    state = {}
    for path, layer in layers.items():
        if not re.fullmatch(TARGETS[targets], path):
            continue
        *inner, c_out = layer.kernel.shape
        down, up = np.zeros((*inner, rank), np.float32), np.zeros((rank, c_out), np.float32)
        if path in pairs:
            r = len(pairs[path][1])
            down[..., :r], up[:r] = pairs[path]
            up *= 1 if agreed else np.float32(alphas[path] / r)
        parts = (int(part) if part.isdigit() else part for part in path.split("."))
        parts = (*parts, "adapter")
        state |= {(*parts, "down"): jnp.asarray(down), (*parts, "up"): jnp.asarray(up)}
    alpha = next(iter(alphas.values())) if agreed else rank
    return Config(rank=rank, alpha=float(alpha), targets=targets), nnx.State(
        nnx.traversals.unflatten_mapping(state)
    )


def _trains(settings: Settings, identifiers: Sequence[str]) -> Trainable:
    config = Config(rank=settings.rank, alpha=settings.alpha, targets=settings.targets)
    return Trainable(denoiser=config, text=config if settings.text_encoder else None)


KIND = AdapterKind(settings=Settings, config=Config, trains=_trains)
