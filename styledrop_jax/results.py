"""What was generated for a user, and how it is kept: in memory, and in a folder if there is one."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from styledrop_jax import __version__, hosts, log, pictures
from styledrop_jax.io import image_files, sheets
from styledrop_jax.io.files import JsonLines, plain
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.records import inside
from styledrop_jax.methods.base import Prompt
from styledrop_jax.pipelines.base import SampleSettings


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One image to generate, of the user's prompt, from a seed.

    Attributes:
        record: of its line in images.jsonl alone.
        whole: from what the model generates, uint8 [h, w, 3], to the image that is given back.
    """

    prompt: Prompt
    seed: int
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    whole: Callable[[np.ndarray], np.ndarray] = np.asarray


Made = tuple[Request, np.ndarray]
"""What was asked for, and what the model generated, uint8 [h, w, 3]."""


class Results(Sequence[Image.Image]):
    """Users' pictures as they became, each put together when it is taken: many photos of a camera
    do not fit into memory.
    """

    def __init__(self, made: Sequence[Made]):
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Results(self.made[index])
        request, image = self.made[index]
        return Image.fromarray(request.whole(image))


class Output:
    """Keeps images as they come, and writes them to a folder if there is one.

    An image that the folder has, by a line that says the same, is not made again: the same command
    continues one that was stopped. Of several processes, which make the images together, the first
    alone writes.
    """

    def __init__(self, origin: Mapping[str, Any], how: SampleSettings, out: str | Path | None):
        self.common = {
            **dataclasses.asdict(how),
            **origin,
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        self.common.pop("images_per_prompt", None)
        self.folder = None if out is None else expanded(out)

    def keep(
        self,
        requests: Sequence[Request],
        generate: Callable[[Sequence[bool]], Iterator[np.ndarray]],
    ) -> list[Made]:
        """What was generated; the whole images are written one by one.

        Args:
            requests: of the images.
            generate: which of them are there → all images in their order, float32 in [0, 1], those
                that are there without pixels or not.
        """
        made: list[Made] = []
        if self.folder is None:
            with log.progress("sampling", len(requests)) as advance:
                for request, image in zip(requests, generate(()), strict=True):
                    made.append((request, image_files.to_uint8(image)))
                    advance(1)
            return made
        folder = self.folder
        with contextlib.ExitStack() as stack:
            opened: list[JsonLines] = []  # of several processes by the first

            def look() -> tuple[int, list[Path | None]]:
                path = folder / "images.jsonl"
                opened.append(stack.enter_context(JsonLines(path, alone=True)))
                rows = opened[0].rows
                return len(rows), self._found(rows, requests)

            number, files = hosts.shared(look)
            there = [file is not None for file in files]
            if there and all(there):
                log.say(f"{self.folder}: all {len(there)} are there; another seed makes others")
            with log.progress("sampling", len(requests), start=sum(there)) as advance:
                for request, file, image in zip(requests, files, generate(there), strict=True):
                    if file is not None:
                        made.append((_as_read(request, file), image))
                        continue
                    made.append((request, image_files.to_uint8(image)))
                    for lines in opened:
                        self._write(lines, number, *made[-1])
                    number += 1
                    advance(1)
                    if hosts.several() and hosts.told_to_stop():
                        raise hosts.Stopped
        return made

    def _found(self, rows: Sequence[Any], requests: Sequence[Request]) -> list[Path | None]:
        """The file of each image that is there, by a line that says what its own would say."""
        assert self.folder is not None
        known: dict[str, list[Path]] = {}
        for row in reversed(rows):
            file = inside(self.folder, row.pop("file")) if _is_line(row) else None
            if file is not None:
                known.setdefault(json.dumps(row, sort_keys=True), []).append(file)
        found = []
        for request in requests:
            files = known.get(json.dumps(plain(self._line(request)), sort_keys=True))
            found.append(files.pop() if files else None)
        return found

    def _line(self, request: Request) -> dict[str, Any]:
        """What images.jsonl says of an image beside the name of its file."""
        said = {
            "prompt": request.prompt.content,
            "text": request.prompt.text,
            "seed": request.seed,
        }
        return {**said, **self.common, **request.record}

    def _write(self, lines: JsonLines, number: int, request: Request, image: np.ndarray) -> None:
        assert self.folder is not None
        name = f"{number:04d}_{_slug(request.prompt.content)}_{request.seed}.png"
        image_files.write_png(self.folder / name, request.whole(image))
        lines.append({"file": name, **self._line(request)})


def _is_line(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("file"), str)


def _as_read(request: Request, file: Path) -> Request:
    """The request of an image that is there: it is read when it is taken."""
    return dataclasses.replace(request, whole=lambda _: image_files.read_image(file))


def given_back(made: Sequence[Made], out: str | Path | None, num: int) -> list[Image.Image]:
    """What was sampled; grid.png in `out` too, if there is one, of `num` images a prompt."""
    images = list(Results(made))
    if out is not None:
        words = [request.prompt.content for request, _ in made]
        arrays = [np.asarray(image) for image in images]
        write_sheet(Path(out), arrays, words, columns=max(num, 4) if num > 1 else None)
    return images


def write_sheet(
    out: Path, images: Sequence[np.ndarray], words: Sequence[str], *, columns: int | None
) -> None:
    """grid.png in `out`: images with their captions, in so many columns or as fits."""
    scale = max(1, 128 // images[0].shape[0])  # small images are shown enlarged
    sheet = sheets.grid(images, columns=columns, scale=scale, captions=words)
    image_files.write_png(expanded(out) / "grid.png", sheet)


def write_rows(
    out: Path,
    befores: Sequence[tuple[np.ndarray, str]],
    results: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    resolution: int,
) -> None:
    """A sheet with a row for each of `befores`, an image and its caption, and what it became.

    `results` are as many for each, and `captions` theirs; see `pictures.shown` for `resolution`.
    """
    each = len(results) // len(befores)
    images = []
    words = []
    for i, (after, caption) in enumerate(zip(results, captions, strict=True)):
        if i % each == 0:
            before, word = befores[i // each]
            images.append(before)
            words.append(word)
        images.append(pictures.shown(np.asarray(after), resolution))
        words.append(caption)
    write_sheet(out, images, words, columns=each + 1)


def _slug(text: str) -> str:
    """A file name: letters and digits of any script, at most 40 characters, which are 160 bytes."""
    return re.sub(r"\W+", "-", text).strip("-")[:40] or "image"
