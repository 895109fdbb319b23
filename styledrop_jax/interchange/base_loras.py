"""Adapters made elsewhere, merged into a base model: what `config.base_loras` names."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from styledrop_jax.errors import UserError, few, naming
from styledrop_jax.interchange import deltas, lora_read, read
from styledrop_jax.interchange.lora_read import Place
from styledrop_jax.io import identity
from styledrop_jax.io.pretrained import check_finite, open_safetensors
from styledrop_jax.models.layers import Conv
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.training import mesh

_NAME = re.compile(
    lora_read.LAYER + r"(?:(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)"
    r"(?P<half>A|B|down|up|mid)(?:\.default)?(?:\.weight)?"
    r"|\.(?P<key>alpha|(?:hada|lokr)_\w+|dora_scale"
    r"|lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
_UNFIT = (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError, StopIteration)
_HALVES = {"A": "down", "B": "up"}
_KEYS = {"dora_scale": "magnitude", "lora_magnitude_vector": "magnitude"}


def check(loras: Sequence[tuple[str, float]]) -> None:
    """UserError, before a model is loaded, if a file of `merged` is nowhere or damaged."""
    for path, _ in loras:
        file = Path(path).expanduser()
        if not file.is_dir():
            with naming("config.base_loras"), open_safetensors(file):
                pass


def merged(base: Pipeline, loras: Sequence[tuple[str, float]]) -> Pipeline:
    """The base model with adapters merged into its weights, one after the other.

    They are LoRAs of kohya's scripts, diffusers or peft, or LyCORIS' LoCon, LoHa and LoKr, DoRA or
    not, of the denoiser and the text.

    Args:
        base: its layers' kernels are replaced.
        loras: (a file, or a folder of diffusers or peft; the weight: 1 is full strength).

    Returns:
        a pipeline that has another `base_hash`, by the numbers of the adapters and their weights.

    Raises:
        UserError: a file is missing, damaged, or of another kind or model. Names it and the tensor.
    """
    facts = []
    for path, weight in loras:
        file = Path(path).expanduser()
        with naming("config.base_loras"), naming(file):
            tensors, peft = read.lora_tensors(file)
            _merge(base, tensors, peft, weight)
        facts.append([identity.of_arrays(tensors), dict(peft), weight])
    return dataclasses.replace(base, base_hash=identity.of_merged(base.base_hash, facts))


def _merge(
    base: Pipeline, tensors: Mapping[str, np.ndarray], peft: Mapping[str, Any], weight: float
) -> None:
    """Replaces the kernels that the adapter changes, one at a time."""
    for place, names in _layers(base, tensors).items():
        old = place.layer.kernel[...]
        after = np.asarray(_changed(tensors, names, peft, place, weight), old.dtype)
        check_finite("its sum with the base", place.name, after)
        place.layer.kernel = nnx.Param(jax.device_put(after, old.sharding))


def _layers(base: Pipeline, tensors: Mapping[str, np.ndarray]) -> dict[Place, dict[str, str]]:
    """{layer: {a name in `deltas.KEYS`, "alpha" or "magnitude": the tensor's}}"""
    spellings = lora_read.spellings(read.modules(base))
    layers: dict[Place, dict[str, str]] = {}
    problems = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        place = match and lora_read.place_of(match["prefix"], match["layer"], spellings)
        key = _key(match) if match else ""
        if place is None or key in layers.get(place, {}):
            problems.append(f"unexpected {name} {np.shape(tensor)}")
        else:
            layers.setdefault(place, {})[key] = name
    if problems:
        raise UserError(f"does not fit the model, {len(problems)} differ: {few(problems)}")
    if not layers:
        raise UserError("has no LoRA tensors")
    return layers


def _key(match: re.Match[str]) -> str:
    """Which of a layer's tensors a name is, by the names in `deltas.KEYS`."""
    if match["half"]:
        return _HALVES.get(match["half"], match["half"])
    return _KEYS.get(match["key"], match["key"])


def _changed(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    peft: Mapping[str, Any],
    place: Place,
    weight: float,
) -> np.ndarray:
    """A layer's new kernel, in our layout; UserError if the tensors do not fit it."""
    forth = (3, 2, 0, 1) if isinstance(place.layer, Conv) else (1, 0)
    before = mesh.fetch(place.layer.kernel[...]).astype(np.float32).transpose(forth)
    found = {}
    for key, name in names.items():
        found[key] = np.asarray(tensors[name], np.float32)
        if "lora_magnitude_vector" in name:  # peft's is of the outputs, whatever its shape
            found[key] = found[key].reshape(-1)
    alpha = None
    try:
        if "alpha" in names or "down" in names:
            alpha = lora_read.alpha_of(tensors, names, peft, place.name)
        after = deltas.kernel(found, before, alpha)
    except _UNFIT:
        shapes = [f"{key} {array.shape}" for key, array in found.items()]
        raise UserError(
            f"does not fit the model: {next(iter(names.values()))} is of a layer of shape "
            f"{place.layer.kernel.shape}, found {', '.join(shapes)}"
        ) from None
    return (before + np.float32(weight) * (after - before)).transpose(np.argsort(forth))
