"""A model's name → a local folder: shipped, a path, or the Hugging Face cache or hub.

What is fetched from the hub, and what makes a cache whole, is what the loader opens: the files that
a `Layout` chooses among those that a folder has. A name on the hub may end in @ and a revision, a
branch, a tag or a commit.
"""

import contextlib
import dataclasses
import glob
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import (
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from styledrop_jax.errors import UserError, did_you_mean, shown
from styledrop_jax.io import pretrained
from styledrop_jax.io.files import guard, read_object, write_json
from styledrop_jax.io.paths import shown_path
from styledrop_jax.models.tokenizer import choose_tokenizer

SHIPPED = Path(__file__).parents[1] / "assets"
START = "start.safetensors"
"""In the folder of a shipped base model: what StyleDrop's adapter starts from on it."""
_OF_PATHS = (".", "/", "~")  # what the name of a folder on disk may start with
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a loader opens of a model's folder.

    Attributes:
        weights: {folder of a component: stem of its weight files}; "" is the model's own folder.
        tokenizers: the folders of its tokenizers.
        others: the paths of further files.
    """

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
PIPELINE_TOKENIZER = Layout(tokenizers=("tokenizer",))
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


def resolve(
    name: str,
    layouts: Sequence[Layout] = (CLIP,),
    *,
    field: str = "config.base",
    revision: str = "",
) -> Path:
    """The folder of the model `name`.

    Args:
        name: a model that ships with the package ("emoji128"), a folder on disk, or "owner/name" on
            the Hugging Face hub. That is taken from the local cache if all that is opened is there,
            else downloaded.
        layouts: what may be there. A model of the hub is of the layout whose folders it has most.
        field: the setting that named the model, for errors.
        revision: of the model on the hub, in place of that in its name.

    Raises:
        UserError: it is nowhere to be found, or a file of it; says how to get it.
    """
    folder = _here(name)
    if folder is not None:
        return folder
    on_hub = _on_hub(name, revision, f"model {shown(name, 160)} (--{field})")
    cached = on_hub.cached(layouts)
    if isinstance(cached, Path):
        return cached
    found = on_hub.fetched(layouts)
    if isinstance(found, Path):
        return found
    raise UserError(
        f"{on_hub.model}: {cached} and {found}; with a network run `styledrop fetch {name}`, "
        f"or pass a local folder{_meant(name)}"
    )


def fetch(name: str, layouts: Sequence[Layout], *, revision: str = "") -> Path:
    """The folder of the model `name`, downloaded as far as it is not in the cache: of the hub's
    newest commit of the revision, or if the hub cannot be asked of that in the cache.

    Args and what is raised: see `resolve`.
    """
    folder = _here(name)
    if folder is not None:
        return folder
    on_hub = _on_hub(name, revision, f"model {shown(name, 160)}")
    found = on_hub.fetched(layouts)
    if isinstance(found, Path):
        return found
    cached = on_hub.cached(layouts)
    if isinstance(cached, str):
        raise UserError(f"{on_hub.model}: {cached} and {found}{_meant(name)}")
    print(f"{found}; the cache has all that is opened", flush=True)
    return cached


def commit(folder: Path) -> str:
    """The commit of a model in the Hugging Face cache; empty for any other folder."""
    is_cached = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_cached else ""


def is_of_hub(name: str) -> bool:
    """Whether this is the name of a model on the hub, and not of one that is a folder or a file or
    ships with the package.
    """
    is_local = is_shipped(name) or name.startswith(_OF_PATHS) or os.path.exists(name)
    return not is_local and name.partition("@")[0].count("/") == 1


def card(name: str, *, revision: str = "") -> Mapping[str, Any]:
    """What the model card of a model on the hub says of it in its YAML; empty if that is not to be
    had.
    """
    repo, _, own = name.partition("@")
    with contextlib.suppress(Exception):  # as in `_OnHub.cached`
        path = hf_hub_download(repo, "README.md", revision=revision or own or None)
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    return {}


def without_revision(name: str) -> str:
    """A model's name on the hub as the hub knows it; any other name as it is."""
    is_path = name.startswith(_OF_PATHS) or is_shipped(name)
    return name if is_path else name.partition("@")[0]


def _here(name: str) -> Path | None:
    """The folder of a model that ships with the package or is a folder; None for any other."""
    if is_shipped(name):
        return SHIPPED / name
    folder = os.path.expanduser(name)  # which leaves an unknown user's home as it is
    return Path(folder) if name and os.path.isdir(folder) else None


def _on_hub(name: str, revision: str, model: str) -> "_OnHub":
    """UserError, which begins with `model`, if this is no name of a model on the hub."""
    repo, _, own = name.partition("@")
    if name.startswith(_OF_PATHS) or repo.count("/") != 1:
        raise UserError(
            f"{model}: no such folder, not a shipped model, and no OWNER/NAME of "
            f"the hub's{_meant(name)}"
        )
    return _OnHub(repo, revision or own or None, model)


def on_this_machine(name: str, layouts: Sequence[Layout]) -> Path | None:
    """The folder of the model `name`, whole or not: shipped, on disk, or in the cache; see
    `resolve`. None if there is none.
    """
    if is_shipped(name) or os.path.isdir(os.path.expanduser(name)):
        return resolve(name, layouts)
    repo, _, revision = name.partition("@")
    with contextlib.suppress(Exception):  # as in `_OnHub.cached`
        return _snapshot(repo, revision or None)
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
    for index in SHIPPED.glob("*/*/config.json" if "/" in name else "*/model_index.json"):
        names.add(index.parent.relative_to(SHIPPED).as_posix())
    return did_you_mean(name, names)


class _OnHub(NamedTuple):
    """A model on the hub: its name there, its revision if one was asked for, and what errors call
    it.
    """

    repo: str
    revision: str | None
    model: str

    def cached(self, layouts: Sequence[Layout]) -> Path | str:
        """The model's folder in the cache, or what that lacks of what the loader opens."""
        # Every failure is caught, here and in `fetched`: the hub's client also raises the types of
        # its HTTP library, and ValueErrors for names.
        try:
            folder = _snapshot(self.repo, self.revision)
        except Exception:
            return "not in the Hugging Face cache"
        paths = []
        for path in folder.rglob("*"):
            if path.is_file():  # and not a link to a blob that was deleted
                paths.append(path.relative_to(folder).as_posix())
        try:
            _best(paths, layouts).choose(paths, lambda index: folder / index, source=self.repo)
        except UserError as error:
            return f"the Hugging Face cache lacks a file ({error})"
        return folder

    def fetched(self, layouts: Sequence[Layout]) -> Path | str:
        """The folder, after all that the loader opens is downloaded; or why the hub does not give
        it.

        Raises:
            UserError: the hub's model lacks a file, or the disk refuses it.
        """
        broken = "the hub cannot be reached"
        try:
            with guard(f"the Hugging Face cache, for {self.repo}"):
                chosen = self._ask(layouts)
                broken = "the download broke off (the same command goes on with it)"
                patterns = [glob.escape(path) for path in chosen]
                snapshot_download(self.repo, revision=self.revision, allow_patterns=patterns)
                return self.cached(layouts)
        except UserError as error:
            raise UserError(f"{self.model}: {error}") from None
        except RevisionNotFoundError:
            return f"the hub has no revision {shown(self.revision)} of it"
        except RepositoryNotFoundError:
            return "the hub has no such model, or asks you to log in (`hf auth login`)"
        except HFValidationError:
            return "the hub has no such names"
        except OfflineModeIsEnabled:
            return "HF_HUB_OFFLINE is set"
        except Exception:
            return broken

    def _ask(self, layouts: Sequence[Layout]) -> list[str]:
        """What the loader opens of the model, of which the sizes are said."""
        info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        chosen = _best(sizes, layouts).choose(
            sizes,
            lambda index: Path(hf_hub_download(self.repo, index, revision=info.sha)),
            source=f"{self.repo} on the hub",
        )
        missing = 0
        for path in chosen:
            if not isinstance(try_to_load_from_cache(self.repo, path, revision=info.sha), str):
                missing += sizes[path]
        whole = sum(sizes[path] for path in chosen)
        print(
            f"{self.repo} at {str(info.sha)[:12]}: {len(chosen)} files, {whole / 1e6:,.1f} MB, "
            f"of which {missing / 1e6:,.1f} MB are to be downloaded",
            flush=True,
        )
        return chosen


def _snapshot(repo: str, revision: str | None) -> Path:
    """Its folder in the cache, whole or not."""
    return Path(
        snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
    )


def is_shipped(name: str) -> bool:
    """Whether a model of this name comes with the package."""
    files = (SHIPPED / name / file for file in ("model_index.json", "config.json"))
    return bool(name) and not name.startswith(_OF_PATHS) and any(map(os.path.isfile, files))


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
