"""A model's name → a local folder: shipped, a path, or the Hugging Face cache or hub.

What is fetched from the hub, and what makes a cache whole, is what the loader opens: the files that
a `Layout` chooses among those that a folder has.
"""

import contextlib
import dataclasses
import glob
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from styledrop_jax.errors import UserError, did_you_mean, shown
from styledrop_jax.io import pretrained
from styledrop_jax.io.files import guard, read_object, write_json
from styledrop_jax.io.paths import shown_path
from styledrop_jax.models.tokenizer import choose_tokenizer

SHIPPED = Path(__file__).parents[1] / "assets"
_OF_PATHS = (".", "/", "~")  # what the name of a folder on disk may start with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a loader opens of a model's folder.

    Attributes:
        kind: the folder of this kind of pipeline in a shipped base model such as "emoji64", which
            holds one of each; empty for a model that is no pipeline.
        weights: {folder of a component: stem of its weight files}; "" is the model's own folder.
        tokenizers: the folders of its tokenizers.
        others: the paths of further files.
    """

    kind: str = ""
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def choose(
        self, paths: Collection[str], fetch: Callable[[str], Path], *, source: str
    ) -> list[str]:
        """The paths that the loader opens.

        Args:
            paths: of all files, relative to the model's folder.
            fetch: the path of an index of shards → that file on this machine.
            source: the model, for errors.

        Raises:
            UserError: names the first file that is missing.
        """
        chosen = list(self.others)
        for folder, stem in self.weights.items():
            chosen.append(_join(folder, "config.json"))
            names = _names(paths, folder)
            weights = pretrained.choose_weights(
                names,
                stem,
                lambda index, folder=folder: fetch(_join(folder, index)),
                source=_join(source, folder),
            )
            chosen += [_join(folder, name) for name in weights]
        for folder in self.tokenizers:
            names = choose_tokenizer(_names(paths, folder), source=_join(source, folder))
            chosen += [_join(folder, name) for name in names]
        for path in chosen:
            if path not in paths:
                raise UserError(f"{_join(source, path)}: missing")
        return chosen


CLIP = Layout(weights={"": "model"}, tokenizers=("",))
"""A model of both towers with its tokenizer, such as the one that judges."""
PIPELINE_TOKENIZER = Layout(kind="muse", tokenizers=("tokenizer",))
"""Of a pipeline of any kind, its tokenizer alone."""


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder + name


def _names(paths: Collection[str], folder: str) -> set[str]:
    """The names of the files right in `folder`."""
    names = set()
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent == folder:
            names.add(name)
    return names


def resolve(name: str, layouts: Sequence[Layout] = (CLIP,), *, field: str = "config.base") -> Path:
    """The folder of the model `name`.

    Args:
        name: a model that ships with the package ("emoji64/muse", or "emoji64" for the first of the
            layouts that it has), a folder on disk, or "owner/name" on the Hugging Face hub. That is
            taken from the local cache if all that is opened is there, else downloaded.
        layouts: what may be there. A model of the hub is of the layout whose folders it has most.
        field: the setting that named the model, for errors.

    Raises:
        UserError: it is nowhere to be found, or a file of it; says how to get it.
    """
    if is_shipped(name):
        for layout in layouts:
            if layout.kind and (SHIPPED / name / layout.kind).is_dir():
                return SHIPPED / name / layout.kind
        return SHIPPED / name
    folder = os.path.expanduser(name)  # which leaves an unknown user's home as it is
    if name and os.path.isdir(folder):
        return Path(folder)
    model = f"model {shown(name, 160)} (--{field})"
    if name.startswith(_OF_PATHS) or name.count("/") != 1:
        raise UserError(f"{model}: no such folder and not a shipped model{_meant(name)}")
    return _of_hub(name, layouts, model)


def on_this_machine(name: str, layouts: Sequence[Layout]) -> Path | None:
    """The folder of the model `name`, whole or not: shipped, on disk, or in the cache; see
    `resolve`. None if there is none.
    """
    if is_shipped(name) or os.path.isdir(os.path.expanduser(name)):
        return resolve(name, layouts)
    with contextlib.suppress(Exception):  # as in `_of_hub`
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=[]))
    return None


def best_layout(folder: Path, layouts: Sequence[Layout]) -> Layout:
    """Which of the layouts the folder has most components of; the first of those that tie."""
    return _best([f"{path.name}/" for path in folder.glob("*/")], layouts)


def _best(paths: Collection[str], layouts: Sequence[Layout]) -> Layout:
    folders = {path.partition("/")[0] for path in paths}
    return max(layouts, key=lambda layout: len(folders.intersection(layout.weights)))


def _meant(name: str) -> str:
    """A hint to a shipped model of a similar name."""
    names = set()
    for index in SHIPPED.glob("*/*/*.json"):
        names.add(index.parent.relative_to(SHIPPED).as_posix())
        names.add(index.parent.parent.name)
    return did_you_mean(name, names)


def _of_hub(name: str, layouts: Sequence[Layout], model: str) -> Path:
    # Every failure is caught: the hub's client also raises the types of its HTTP library, and
    # ValueErrors for names.
    try:
        return _cached(name, layouts)
    except UserError as error:
        lacking = f"the Hugging Face cache lacks a file ({error})"
    except Exception:
        lacking = "not in the Hugging Face cache"
    try:
        with guard(f"the Hugging Face cache, for {name}"):
            _fetch(name, layouts)
            return _cached(name, layouts)
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    except RepositoryNotFoundError:
        why = "the hub has no such model, or asks you to log in (`hf auth login`)"
    except Exception:
        why = "the hub cannot be reached"
    raise UserError(
        f"{model}: {lacking} and {why}; with a network run `hf download {name}`, "
        f"or pass a local folder{_meant(name)}"
    )


def _cached(name: str, layouts: Sequence[Layout]) -> Path:
    """The model's folder in the cache; UserError if a file that the loader opens is not there."""
    folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=[]))
    paths = []
    for path in folder.rglob("*"):
        if path.is_file():  # and not a link to a blob that was deleted
            paths.append(path.relative_to(folder).as_posix())
    _best(paths, layouts).choose(paths, lambda index: folder / index, source=name)
    return folder


def _fetch(name: str, layouts: Sequence[Layout]) -> None:
    """Downloads what the loader opens and no more."""
    paths = HfApi().list_repo_files(name)
    layout = _best(paths, layouts)
    chosen = layout.choose(
        paths, lambda index: Path(hf_hub_download(name, index)), source=f"{name} on the hub"
    )
    snapshot_download(name, allow_patterns=[glob.escape(path) for path in chosen])


def is_shipped(name: str) -> bool:
    """Whether a model of this name comes with the package."""
    return bool(name) and not name.startswith(_OF_PATHS) and os.path.isdir(SHIPPED / name)


def shipped_vocabulary(name: str) -> Path:
    """The folder of a shipped base model's `vocabulary.json`; other models have no such file."""
    return SHIPPED / name.partition("/")[0]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model's component.

    Raises:
        UserError: it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise UserError(f"{shown_path(path)}: missing; expected a diffusers model folder")
    return read_object(path)


def stem(config: Mapping[str, Any]) -> str:
    """The name of a component's weight file: diffusers' configs carry `_class_name`, transformers'
    do not."""
    return "diffusion_pytorch_model" if "_class_name" in config else "model"


def save_component(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes one component of a model folder: `config.json` and the weights."""
    pretrained.save(folder / f"{stem(config)}.safetensors", tensors)
    write_json(folder / "config.json", config)


def save_index(
    folder: Path,
    pipeline: str,
    parts: Mapping[str, tuple[str, str]],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model_index.json`, by which the reference library finds a pipeline's parts.

    Args:
        folder: the pipeline's.
        pipeline: its class.
        parts: {folder of a part: (library, class)}
        settings: of the pipeline itself.
    """
    index: dict[str, Any] = {"_class_name": pipeline, **(settings or {})}
    for name, (library, part) in parts.items():
        index[name] = [library, part]
    write_json(folder / "model_index.json", index)
