"""What training may start from: our adapters, LoRA files and embeddings of other tools."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from styledrop_jax import trainable, tree
from styledrop_jax.adapters import textual_inversion
from styledrop_jax.adapters.base import (
    METADATA,
    Trainable,
    filled,
    load_adapter,
    read_safetensors,
    restore,
)
from styledrop_jax.errors import UserError, naming, shown
from styledrop_jax.interchange import embeddings, lora_read, lora_write, merged
from styledrop_jax.io.files import read_json
from styledrop_jax.models import clip
from styledrop_jax.models.rules import Rules
from styledrop_jax.pipelines.base import Pipeline

_PEFT_CONFIG = "adapter_config.json"
_PEFT_WEIGHTS = "adapter_model.safetensors"
_DIFFUSERS = "pytorch_lora_weights.safetensors"
_MOST_WORDS = 64
_START = "a"  # a token of every tokenizer; the rows that a word starts as are replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initial:
    """What training starts from.

    Attributes:
        what: what trains, as the file has it.
        state: of `nnx.split(trainable.parts(model, what), trainable.trained(what), ...)`, pure.
    """

    what: Trainable
    state: Any


def read_init(path: Path, base: Pipeline) -> Initial:
    """Reads what was trained before, here or by another tool.

    It may be an adapter file of this package; a LoRA of diffusers, of peft (the folder or the file
    in it) or of kohya's scripts; or an embedding of Textual Inversion, of diffusers, A1111 or
    kohya's scripts. Only safetensors are read: nothing in a file is ever executed.

    Args:
        path: the file, or the folder of a peft adapter.
        base: the pipeline that it is for.

    Raises:
        UserError: no such file, a pickle, a damaged file, one of another kind, or one of another
            model. One line that names the file.
    """
    path = Path(path)
    with naming(path):
        if path.is_dir():
            return _lora(base, *_read_folder(path))
        tensors, metadata = read_safetensors(path)
        if METADATA in metadata:
            return _adapter(base, path)
        if lora_read.is_lora(tensors):
            return _lora(base, tensors, _peft_of_file(path, tensors, metadata))
        widths = {}
        for name, tower in clip.towers(base.text).items():
            widths[name] = tower.config.hidden_size
        return _words(base, embeddings.read(path, tensors, metadata, widths=widths))


def _split(base: Pipeline, what: Trainable) -> tuple[Pipeline, Any]:
    """The base with `what` attached, and the state of what trains in it."""
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    return model, _state(model, what)


def _state(model: Pipeline, what: Trainable) -> Any:
    _, state, _ = nnx.split(trainable.parts(model, what), trainable.trained(what), ...)
    return nnx.as_pure(state)


def _adapter(base: Pipeline, path: Path) -> Initial:
    file = load_adapter(path, base_hash=base.base_hash)
    what = trainable.from_dict(file.config)
    _, state = _split(base, what)
    return Initial(what=what, state=restore(state, file))


def _lora(base: Pipeline, tensors: Mapping[str, np.ndarray], peft: Mapping[str, Any]) -> Initial:
    """Where the file leaves out layers or has a smaller rank, the rest starts as a fresh LoRA does.

    There B is zero, so that it changes nothing, and A is not, so that it trains.
    """
    found = lora_read.read(tensors, peft, modules(base))
    denoiser = found.get("denoiser")
    text = found.get("text")
    what = Trainable(denoiser=denoiser and denoiser.config, text=text and text.config)
    _, state = _split(base, what)
    whole = {}
    for name, leaf in tree.flatten(state).items():
        part, _, rest = name.partition(".")
        layer, _, half = rest.rpartition(".adapter.")
        array = np.array(leaf)
        weights = found[part].layers.get(layer)
        if weights is not None:
            rank = len(weights.up)
            if half == "down":
                array[..., :rank] = weights.down
            else:
                array[:rank] = weights.up
        whole[name] = array
    return Initial(what=what, state=filled(state, whole))


def modules(base: Pipeline) -> dict[str, tuple[nnx.Module, Rules]]:
    """{part: (module, its naming)} of the denoiser and the text towers; see `lora_read.read`."""
    names = merged.layout(base)
    found: dict[str, tuple[nnx.Module, Rules]] = {"denoiser": (base.denoiser, names.denoiser.rules)}
    for name, tower in clip.towers(base.text).items():
        found[f"text.{name}" if name else "text"] = (tower, names.towers[name].rules)
    return found


def lora_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a LoRA's file or folder, and the peft config that goes with them, if any.

    Raises:
        UserError: no such file, a pickle, or a damaged one.
    """
    if path.is_dir():
        return _read_folder(path)
    tensors, metadata = read_safetensors(path)
    return tensors, _peft_of_file(path, tensors, metadata)


def _words(base: Pipeline, rows: Mapping[str, Mapping[str, np.ndarray]]) -> Initial:
    """`rows` are those of each word, by the path of each text tower."""
    tokens = []
    longest = base.prompt_length
    if len(rows) > _MOST_WORDS:
        raise UserError(f"found {len(rows):,} words, expected at most {_MOST_WORDS:,}")
    for word, parts in rows.items():
        vectors = len(next(iter(parts.values())))
        if vectors > longest:
            raise UserError(
                f"found {vectors:,} vectors for {shown(word)}, expected at most the {longest} "
                "tokens of a prompt"
            )
        tokens.append(textual_inversion.Token(word=word, initializer=_START, vectors=vectors))
    words = textual_inversion.Config(tokens=tuple(tokens))
    what = Trainable(words=words)
    model, _ = _split(base, what)
    for name, tower in clip.towers(model.text).items():
        own = {word: parts[name] for word, parts in rows.items()}
        textual_inversion.set_rows(tower, words, own)
    return Initial(what=what, state=_state(model, what))


def _read_folder(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the peft config of a folder: of one component, or one in each subfolder."""
    if (folder / _DIFFUSERS).is_file():
        tensors, metadata = read_safetensors(folder / _DIFFUSERS)
        return tensors, _peft_of_file(folder / _DIFFUSERS, tensors, metadata)
    if (folder / _PEFT_CONFIG).is_file():
        return _read_peft(folder)
    tensors = {}
    fields = {}
    for name in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        if (folder / name / _PEFT_CONFIG).is_file():
            found, config = _read_peft(folder / name)
            for key, tensor in found.items():
                tensors[f"{name}.{key}"] = tensor
            for key, value in config.items():
                fields[f"{name}.{key}"] = value
    if not tensors:
        raise UserError(f"{folder}: expected a file, or a folder with {_PEFT_CONFIG}")
    return tensors, fields


def _read_peft(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    weights = folder / _PEFT_WEIGHTS
    if not weights.is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"{folder}: adapter_model.bin is a pickle, which is never opened; "
            f"expected {_PEFT_WEIGHTS}"
        )
    tensors, _ = read_safetensors(weights)
    return tensors, _peft_config(folder / _PEFT_CONFIG)


def _peft_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else config
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {shown(kind)}, expected 'LORA'")
    return config


def _peft_of_file(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """The peft config that goes with a file: in its metadata, or beside it as peft leaves it."""
    if lora_write.METADATA in metadata:
        text = metadata[lora_write.METADATA]
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise UserError(
                f"{path}: its {lora_write.METADATA} is {shown(text)}, expected a peft config"
            )
        return fields
    if any(name.startswith("base_model.model.") for name in tensors):
        if not (path.parent / _PEFT_CONFIG).is_file():
            raise UserError(
                f"{path}: a file of peft, expected {_PEFT_CONFIG} beside it, which has its strength"
            )
        return _peft_config(path.parent / _PEFT_CONFIG)
    return {}
