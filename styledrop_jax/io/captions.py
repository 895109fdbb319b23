"""The user's images with their words, and the user's prompts: from files, folders and tables."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from styledrop_jax.errors import UserError, check_words, did_you_mean, shown
from styledrop_jax.io.fit import Fitted, read_fitted
from styledrop_jax.io.image_files import EXPECTED, readable_suffixes
from styledrop_jax.io.paths import expanded, read_text, shown_path, stem_words

BUNDLED = Path(__file__).parents[1] / "assets" / "references" / "references.jsonl"

_LOG = logging.getLogger(__name__)
_MOST_PROMPTS = 10_000
_TABLES = (".jsonl", ".csv")
# The columns of a table, each under its usual names: the first that is not empty is taken.
_COLUMNS = {
    "image": ("image", "file_name"),
    "content": ("content", "text", "caption", "prompt"),
    "descriptor": ("descriptor",),
}
_EXAMPLES = {"content": "a house", "descriptor": "in watercolor painting style"}


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """One reference image with its words.

    Attributes:
        path: as the user gave it.
        image: uint8 [h, w, 3], any size.
        content: what it shows, "a house".
        descriptor: its style, "in watercolor painting style".
        sha256: of the file's bytes.
        ground: "#rrggbb", which pads the image to a square; empty if it is cut to one.
        keeps: whether it keeps its shape in training.
    """

    path: str
    image: np.ndarray
    content: str
    descriptor: str
    sha256: str
    ground: str = ""
    keeps: bool = False


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One image that the user names, and its words; `where` is where they are, for errors."""

    path: Path
    where: str
    content: str
    descriptor: str


def read_references(
    image: str,
    content: str,
    descriptor: str,
    *,
    fit: str = "auto",
    needs: Sequence[str] = ("content", "descriptor"),
    field: str = "config.reference",
) -> list[Reference]:
    """Reads the reference images that a section of the config names.

    `image` is one of

    - an image file;
    - a folder, all of whose images are taken, sorted by name. Their words are in its
      `metadata.jsonl`, else in its `metadata.csv`, else in a text file beside each image ("cat.txt"
      for "cat.png": its content). What has no words there gets `content`, else the words of its
      file's name ("red_house-2.png" is "red house");
    - a JSON-lines file, each line an object, or a CSV file with a header, separated by commas,
      semicolons or tabs. `image` or `file_name` is a path relative to the file; `content`, `text`,
      `caption` or `prompt` the content; `descriptor` the descriptor. The metadata of a folder are
      such files too;
    - `bundled:NAME`, an image that ships with the package.

    Args:
        image: see above.
        content: what the image shows. What a table or a text file says overrides it.
        descriptor: the style of the image; a line of a table overrides it.
        fit: how an image that is no square becomes one, see `read_fitted`.
        needs: which of the two every image must have.
        field: the section, for errors.

    Raises:
        UserError: an image that cannot be read, no image at all, no content or descriptor, or words
            that are not Unicode; the message names the file, and the line of a table.
    """
    entries = _entries(image, " ".join(content.split()), " ".join(descriptor.split()), field)
    for entry in entries:
        _check_words(entry, needs)
    references = []
    first: dict[str, str] = {}
    for entry in entries:
        reference = _read(entry, fit)
        references.append(reference)
        name = shown_path(entry.path)
        if reference.sha256 in first:
            other = first[reference.sha256]
            _LOG.warning("%s: the same image as %s: it counts twice", name, other)
        else:
            first[reference.sha256] = name
    fitted = {}
    for found in references:
        fitted[Path(found.path)] = Fitted(found.image, found.ground, found.keeps)
    say_fits(f"{field}.fit", fitted)
    return references


def say_fits(field: str, images: Mapping[Path, Fitted]) -> None:
    """Names the images that are no squares and are made some, and says how, in one line.

    Args:
        field: that decides it.
        images: {file: what `read_fitted` gives}.
    """
    padded = []
    cut = []
    for path, found in images.items():
        if found.ground:
            padded.append(path)
        elif found.image.shape[0] != found.image.shape[1] and not found.keeps:
            cut.append(path)
    done = []
    if padded:
        done.append(f"padded to a square with the colour of the ground: {_some(padded)}")
    if cut:
        done.append(f"cut to the middle square: {_some(cut)}")
    if done:
        _LOG.warning("%s: %s", field, "; ".join(done))


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """Reads prompts from a UTF-8 text file, one a line; empty lines are skipped.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds no prompt.
    """
    path = expanded(path)
    prompts = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        prompt = " ".join(line.split())
        if prompt:
            check_words(prompt, f"{shown_path(path)} line {number}")
            prompts.append(prompt)
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        count = f"{len(prompts):,} prompts" if prompts else "no prompt"
        raise UserError(
            f"{shown_path(path)}: holds {count}; expected one a line, at most {_MOST_PROMPTS:,}"
        )
    return prompts


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name, with a warning that names what is left out.

    Raises:
        UserError: there is no image, or the folder cannot be read.
    """
    images, others = _listed(folder)
    if not images:
        raise _no_image(folder)
    _warn_left_out(folder, others)
    return images


def _entries(image: str, content: str, descriptor: str, field: str) -> list[_Entry]:
    if image.startswith("bundled:"):
        return [_bundled(image.removeprefix("bundled:"), content, descriptor, field)]
    if not image.strip():
        raise UserError(
            f"{field}.image: empty; expected an image file, a folder of images or a JSONL file"
        )
    with _naming(field):
        path = expanded(image)
    given = _Entry(path, field, content, descriptor)
    if os.path.isdir(path):
        return _folder_entries(given)
    if path.suffix.lower() in _TABLES:
        return _table_entries(path, content, descriptor)
    return [given]


def _bundled(name: str, content: str, descriptor: str, field: str) -> _Entry:
    names = []
    for entry in _table_entries(BUNDLED, content="", descriptor=""):
        names.append(entry.path.stem)
        if entry.path.stem == name:
            words = {
                "content": content or entry.content,
                "descriptor": descriptor or entry.descriptor,
            }
            return dataclasses.replace(entry, **words)
    raise UserError(
        f"{field}.image: no bundled image {shown(name)}{did_you_mean(name, names)} "
        f"(bundled: {', '.join(sorted(names))})"
    )


def _folder_entries(given: _Entry) -> list[_Entry]:
    """The images of the folder `given.path`, sorted by name, under their words or `given`'s."""
    folder = given.path
    images, others = _listed(folder)
    source, entries = _captions(given, images, others)
    named = {entry.path for entry in entries}
    unnamed = [image for image in images if image not in named]
    if entries:
        _LOG.warning("%s: captions from %s", shown_path(folder), source)
        if unnamed:
            _LOG.warning("%s: none there for %s", shown_path(folder), _some(unnamed))
    for image in unnamed:
        entries.append(dataclasses.replace(given, path=image))
    if not entries:
        raise _no_image(folder)
    _warn_left_out(folder, others)
    with_words = []
    for entry in sorted(entries, key=lambda entry: entry.path):
        content = entry.content or stem_words(entry.path)
        with_words.append(dataclasses.replace(entry, content=content))
    return with_words


def _captions(
    given: _Entry, images: Sequence[Path], others: list[Path]
) -> tuple[str, list[_Entry]]:
    """Where a folder's images have their words, and the images that have some.

    The files that hold the words are taken out of `others`.
    """
    for suffix in _TABLES:
        table = given.path / f"metadata{suffix}"
        if table in others:
            others.remove(table)
            return table.name, _table_entries(table, given.content, given.descriptor)
    texts = {}
    for file in others:
        if file.suffix.lower() == ".txt":
            texts[file.stem] = file
    entries = []
    for image in images:
        if text := texts.get(image.stem):
            words = " ".join(read_text(text).split())
            entries.append(dataclasses.replace(given, path=image, content=words or given.content))
            if text in others:
                others.remove(text)
    return "NAME.txt files", entries


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files of a folder and what else is in it, without hidden files, sorted by name."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{shown_path(folder)}: cannot be read: {error.strerror}") from error
    suffixes = readable_suffixes()
    images = []
    others = []
    for file in files:
        if file.name.startswith("."):
            continue
        is_image = file.suffix.lower() in suffixes and os.path.isfile(file)
        (images if is_image else others).append(file)
    return images, others


def _no_image(folder: Path) -> UserError:
    return UserError(f"{shown_path(folder)}: no image in this folder; expected {EXPECTED} files")


def _warn_left_out(folder: Path, others: Iterable[Path]) -> None:
    """Names what a folder has beside its images."""
    folders = []
    files = []
    for path in others:
        (folders if os.path.isdir(path) else files).append(path)
    if folders:
        _LOG.warning(
            "%s: images in subfolders are not read: %s", shown_path(folder), _some(folders)
        )
    if files:
        _LOG.warning(
            "%s: left out what is not an image that can be read: %s",
            shown_path(folder),
            _some(files),
        )


def _some(paths: Sequence[Path]) -> str:
    """The names of at most three files, and how many more there are."""
    names = ", ".join(shown_path(path.name, 60) for path in paths[:3])
    return f"{names} and {len(paths) - 3} more" if len(paths) > 3 else names


def _table_entries(table: Path, content: str, descriptor: str) -> list[_Entry]:
    """The images that a JSON-lines or CSV file names, under its words or else those given."""
    rows = _csv_rows if table.suffix.lower() == ".csv" else json_rows
    entries = []
    for where, row in rows(table):
        values = {"image": "", "content": content, "descriptor": descriptor}
        for name, columns in _COLUMNS.items():
            values[name] = _value(where, row, columns) or values[name]
        _check_keys(where, row, [name for name in values if not values[name]])
        with _naming(where):
            path = table.parent / expanded(values["image"])
        words = {name: " ".join(values[name].split()) for name in ("content", "descriptor")}
        entries.append(_Entry(path, where, **words))
    if not entries:
        raise UserError(
            f"{shown_path(table)}: holds no reference; expected the columns image, content and "
            "descriptor"
        )
    return entries


def json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{shown_path(path)} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: expected JSON, found something else: {error}") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: found {shown(row)}, expected {{"image": "…", "content": "…", '
                '"descriptor": "…"}'
            )
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{shown_path(path)} line {reader.line_num}"
            if None in row:
                raise UserError(f"{where}: more cells than the header has columns")
            yield where, row
    except csv.Error as error:
        where = f"{shown_path(path)} line {reader.reader.line_num}"
        raise UserError(f"{where}: expected CSV: {error}") from error


def _value(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The text of the first of `columns` that has any."""
    for column in columns:
        text = row.get(column)
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{where}: {column}: found {shown(text)}, expected text")
        if text.strip():
            return text.strip()
    return ""


def _check_keys(where: str, row: Mapping[str, Any], missing: Sequence[str]) -> None:
    """UserError if a row has no image, or a key that looks like a misspelt one of `missing`."""
    known = {name for columns in _COLUMNS.values() for name in columns}
    for key in row:
        close = did_you_mean(key, missing)
        if key not in known and close:
            raise UserError(f"{where}: unknown key {shown(key)}{close}")
    if "image" in missing:
        raise UserError(
            f"{where}: no 'image' or 'file_name'; expected a path relative to this file"
        )


def _check_words(entry: _Entry, needs: Sequence[str]) -> None:
    missing = [name for name in _EXAMPLES if name in needs and not getattr(entry, name)]
    if missing:
        fields = " and ".join(f"{entry.where}.{name}" for name in missing)
        examples = " and ".join(f'"{_EXAMPLES[name]}"' for name in missing)
        raise UserError(
            f"{fields}: empty for {shown_path(entry.path.name, 60)}; expected words like {examples}"
        )
    for name in ("path", *_EXAMPLES):
        field = "image" if name == "path" else name
        check_words(str(getattr(entry, name)), f"{entry.where}.{field}")


def _read(entry: _Entry, fit: str) -> Reference:
    with _naming(entry.where):
        image, ground, keeps = read_fitted(entry.path, fit)
    with entry.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Reference(str(entry.path), image, entry.content, entry.descriptor, digest, ground, keeps)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts in front of an error where the image is named."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}.image: {error}") from None
