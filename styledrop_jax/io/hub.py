"""A model name → a local folder in the diffusers layout: shipped, a path, or the Hugging Face cache or hub."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.io import pretrained
from styledrop_jax.io.files import guard, write_json

SHIPPED = Path(__file__).parents[1] / "assets"
# A model's own folders, and a lone model's weights; not the single-file checkpoints that lie beside them.
_FILES = ("*.json", "*.txt", "*.model", "*/*.safetensors", "model*.safetensors")
_OTHERS = ("safety_checker/*", "*.non_ema.safetensors")


def resolve(name: str, *, files: Sequence[str] = _FILES, field: str = "config.base") -> Path:
    """The folder of the model `name`.

    Args:
        name: a model that ships with the package ("emoji64/muse"), a folder on disk, or "owner/name" on the Hugging
            Face hub: taken from the local cache if it is there, else downloaded. Only safetensors and JSON are fetched.
        files: patterns of what is fetched.

    Raises:
        UserError: it is nowhere to be found; says how to get it.
    """
    is_path = not name or name.startswith((".", "/", "~"))
    if not is_path and (SHIPPED / name).is_dir():
        return SHIPPED / name
    if name and (folder := Path(os.path.expanduser(name))).is_dir():
        return folder
    folders = {index.parent for index in SHIPPED.glob("*/*/*.json")}
    hint = did_you_mean(
        name, {str(f.relative_to(SHIPPED)) for f in folders} | {f.parent.name for f in folders}
    )
    if is_path or name.count("/") != 1:
        raise UserError(f"model {name!r}: no such folder and not a shipped model{hint}")
    # Every failure is caught: the hub's client also raises the types of its HTTP library, and ValueErrors for names.
    wanted = {"allow_patterns": list(files), "ignore_patterns": list(_OTHERS)}
    with contextlib.suppress(Exception):
        return Path(snapshot_download(name, **wanted, local_files_only=True))
    try:
        with guard(f"the Hugging Face cache, for {name}"):
            return Path(snapshot_download(name, **wanted))
    except UserError:
        raise
    except RepositoryNotFoundError:
        why = "the hub has no such model, or asks you to log in (`hf auth login`)"
    except Exception:
        why = "the hub cannot be reached"
    raise UserError(
        f"model {name!r}: not in the Hugging Face cache and {why}; on a machine with a network run "
        f"`hf download {name}`, or pass a local diffusers folder as --{field}{hint}"
    )


def resolve_pipeline(name: str, kind: str, *, field: str = "config.base") -> Path:
    """The folder of the pipeline `name`; a shipped base model ("emoji64") holds one of each `kind`, "muse" or "sd"."""
    return resolve(f"{name}/{kind}" if (SHIPPED / name / kind).is_dir() else name, field=field)


def is_shipped(name: str) -> bool:
    """Whether a model of this name comes with the package."""
    outside = not name or name.startswith((".", "/", "~")) or "\0" in name or len(name) > 200
    return not outside and (SHIPPED / name).is_dir()


def shipped_vocabulary(name: str) -> Path:
    """The folder of the `vocabulary.json` of a shipped base model; one without such a file for other models."""
    return SHIPPED / name.partition("/")[0]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model's component.

    Raises:
        UserError: it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected a diffusers model folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: found a JSON {type(config).__name__}, expected an object")
    return config


def stem(config: Mapping[str, Any]) -> str:
    """The name of a component's weight file: diffusers' configs carry `_class_name`, transformers' do not."""
    return "diffusion_pytorch_model" if "_class_name" in config else "model"


def save_component(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes one component of a model folder: `config.json` and the weights."""
    pretrained.save(folder / f"{stem(config)}.safetensors", tensors)
    write_json(folder / "config.json", config)


def save_index(folder: Path, pipeline: str, parts: Mapping[str, tuple[str, str]]) -> None:
    """Writes `model_index.json`, by which the reference library finds a pipeline's parts (library, class)."""
    write_json(
        folder / "model_index.json",
        {"_class_name": pipeline, **{k: list(v) for k, v in parts.items()}},
    )
