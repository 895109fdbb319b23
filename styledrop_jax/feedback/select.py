"""Which samples train the next round: by their scores, or by a person who fills in a file."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

from styledrop_jax.errors import UserError

SHEET = "contact_sheet.png"
ANSWER = "selected.json"
_COLUMNS, _MARGIN, _LINE = 16, 4, 16  # cells a row, pixels around a cell, pixels of a line of text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One scored sample.

    Attributes:
        prompt: index of the prompt in the pool. image: index among that prompt's images.
        score: higher is better.
    """

    prompt: int
    image: int
    score: float


def select(
    records: Sequence[Record],
    *,
    by: Literal["prompt", "top_k", "threshold"],
    k: int = 1,
    threshold: float = 0.0,
) -> tuple[Record, ...]:
    """The records to train on, ordered by prompt and image.

    The order of `records` does not matter; of equal scores the lower prompt, then the lower image wins. Random feedback
    is the same selection on random scores (StyleDrop 2306.00983: CLIP and random feedback take one image per prompt).

    Args:
        records: the scored samples.
        by: `prompt`, the best k of each prompt; `top_k`, the best k of all; `threshold`, all that score at least that.
        k: at least 1. Used by `prompt` and `top_k`.
        threshold: used by `threshold`.

    Raises:
        UserError: an unknown `by`, a score that is not a number, fewer than k to choose from, or none selected.
    """
    if nan := [r for r in records if r.score != r.score]:
        raise UserError(
            f"feedback: the score of prompt {nan[0].prompt}, image {nan[0].image} is not a number"
        )
    if by == "threshold":
        chosen = [r for r in records if r.score >= threshold]
        best = max((r.score for r in records), default=None)
        if not chosen:
            raise UserError(
                f"feedback.threshold: {threshold}, but the best of {len(records)} scores is {best}"
            )
        return _in_order(chosen)
    if by == "top_k":
        groups = [list(records)]
    elif by == "prompt":
        groups = [
            [r for r in records if r.prompt == prompt]
            for prompt in sorted({r.prompt for r in records})
        ]
    else:
        raise UserError(f"feedback.by: {by!r}, expected 'prompt', 'top_k' or 'threshold'")
    fewest = min((len(group) for group in groups), default=0)
    if not 1 <= k <= fewest:
        raise UserError(
            f"feedback.k: {k}, expected 1 to {fewest}, the images there are{' per prompt' * (by == 'prompt')}"
        )
    return _in_order(
        [
            r
            for group in groups
            for r in sorted(group, key=lambda r: (-r.score, r.prompt, r.image))[:k]
        ]
    )


def _in_order(records: Sequence[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda r: (r.prompt, r.image)))


def write_request(
    folder: Path | str, images: Sequence[Path], *, prompts: Sequence[str], cell: int = 96
) -> Path:
    """Writes what a person needs to choose: a numbered contact sheet, and a `selected.json` to fill in.

    A `selected.json` that is already there is left as it is: it may hold the answer. StyleDrop's people chose at most
    10, in about three minutes.

    Args:
        folder: exists; gets `contact_sheet.png` and `selected.json`.
        images: image files; the number of an image is its place here, from 1. At least one.
        prompts: the prompt of each image; images of one prompt that follow each other share a heading.
        cell: the longest side that every image is scaled to, in pixels.

    Returns:
        the path of `selected.json`, for `read_answer`.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    answer = folder / ANSWER
    template = {
        "how": f"put the numbers of the images you choose, as in {SHEET}, between the brackets; then run again",
        "selected": [],
    }
    try:
        _replace(
            folder / SHEET, lambda path: _sheet(images, prompts, cell).save(path, format="PNG")
        )
        if not answer.exists():
            _replace(
                answer,
                lambda path: path.write_text(
                    json.dumps(template, indent=2) + "\n", encoding="utf-8"
                ),
            )
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the feedback request ({error.strerror or error})"
        ) from None
    return answer


def read_answer(path: Path | str, *, num_images: int) -> tuple[int, ...]:
    """The chosen images of a filled-in `selected.json`, as indices from 0 in ascending order.

    Raises:
        UserError: no such file, not JSON, no list of whole numbers, nothing chosen, a number that is not on the sheet
            or is there twice.
    """
    path = Path(path)
    expected = f"expected numbers from 1 to {num_images}, as in {SHEET}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    numbers = content.get("selected") if isinstance(content, dict) else None
    if not isinstance(numbers, list):
        raise UserError(f'{path}: has no list "selected"; {expected}')
    if not numbers:
        raise UserError(f'{path}: "selected" is empty; {expected}')
    if wrong := [
        number for number in numbers if type(number) is not int or not 1 <= number <= num_images
    ]:
        raise UserError(
            f"{path}: {', '.join(json.dumps(n) for n in wrong)} not on the sheet; {expected}"
        )
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UserError(
            f"{path}: chosen more than once: {', '.join(map(str, twice))}; {expected}, each once"
        )
    return tuple(sorted(number - 1 for number in numbers))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes under a temporary name and renames: a killed run leaves no half-written file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sheet(images: Sequence[Path], prompts: Sequence[str], cell: int) -> Image.Image:
    """Numbered thumbnails in rows, under a line with their prompt."""
    rows: list[
        tuple[str, list[int]]
    ] = []  # heading, or "" for a row that continues, and image indices
    for index, prompt in enumerate(prompts):
        new = index == 0 or prompt != prompts[index - 1]
        if new or len(rows[-1][1]) == _COLUMNS:
            rows.append((prompt if new else "", []))
        rows[-1][1].append(index)
    step = cell + 2 * _MARGIN
    font = ImageFont.load_default(12)
    width = max(
        max(step * len(indices), 2 * _MARGIN + int(font.getlength(heading)))
        for heading, indices in rows
    )
    height = sum(step + _LINE + _LINE * bool(heading) for heading, _ in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for heading, indices in rows:
        if heading:
            draw.text((_MARGIN, top), heading, fill="black", font=font)
            top += _LINE
        for column, index in enumerate(indices):
            left = column * step + _MARGIN
            with Image.open(images[index]) as image:
                sheet.paste(
                    ImageOps.contain(image.convert("RGB"), (cell, cell)), (left, top + _MARGIN)
                )
            draw.text((left, top + step - _MARGIN), str(index + 1), fill="black", font=font)
        top += step + _LINE
    return sheet
