"""Which samples train the next round: by their scores, or by a person who fills in a file."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from styledrop_jax.errors import UserError
from styledrop_jax.io.files import read_json, write_bytes, write_json

SHEET = "contact_sheet.png"
ANSWER = "selected.json"
_COLUMNS = 16  # cells a row
_MARGIN = 4  # pixels around a cell
_LINE = 16  # pixels of a line of text
_CELL = 96  # longest side of an image on the sheet, pixels


class Paused(Exception):
    """The run waits for a person; the message says for what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scored sample.

    Attributes:
        prompt: index of the prompt in the pool. image: index among that prompt's images.
        score: higher is better.
        file: the image. text: its prompt.
    """

    prompt: int
    image: int
    score: float
    file: Path = Path()
    text: str = ""


class Pool(NamedTuple):
    """What a selector chooses from, and how.

    Attributes:
        candidates: ordered by prompt and image.
        k, threshold: `config.round_N.select`'s.
        folder: of the round, for a selector that needs files.
    """

    candidates: Sequence[Candidate]
    k: int = 1
    threshold: float = 0.0
    folder: Path = Path()


Selector = Callable[[Pool], list[int]]
"""The indices of the candidates to train on, in ascending order; UserError if it cannot choose."""


def best_of_each_prompt(pool: Pool) -> list[int]:
    """The best k of each prompt (StyleDrop 2306.00983 takes one, by CLIP's score or by chance)."""
    by_prompt: dict[int, list[int]] = {}
    for index, candidate in enumerate(pool.candidates):
        by_prompt.setdefault(candidate.prompt, []).append(index)
    chosen = []
    for group in by_prompt.values():
        if len(group) < pool.k:
            raise UserError(
                f"select.k: {pool.k}, expected 1 to {len(group)}, the images there are per prompt"
            )
        chosen += _ordered(pool, group)[: pool.k]
    return sorted(chosen)


def best_of_all(pool: Pool) -> list[int]:
    """The best k of all, or all if there are fewer."""
    return sorted(_ordered(pool, range(len(pool.candidates)))[: pool.k])


def best_prompts(pool: Pool) -> list[int]:
    """The best of each prompt, and of these the best k: none shows the same as another."""
    each = best_of_each_prompt(pool._replace(k=1))
    return sorted(_ordered(pool, each)[: pool.k])


def above_threshold(pool: Pool) -> list[int]:
    """All that score at least the threshold."""
    scores = _scores(pool)
    chosen = [index for index, score in enumerate(scores) if score >= pool.threshold]
    if not chosen:
        best = max(scores, default=None)
        raise UserError(
            f"select.threshold: {pool.threshold}, but the best of {len(scores)} scores is {best}"
        )
    return chosen


def human(pool: Pool) -> list[int]:
    """Those that a person writes into a file beside a numbered sheet of all.

    StyleDrop's people chose at most 10, in about three minutes.

    Raises:
        Paused: the person has not answered yet.
    """
    folder = pool.folder / "feedback"
    answer = folder / ANSWER
    if not answer.exists():
        write_request(pool.candidates, folder)
    if _is_open(answer):
        raise Paused(
            f"{pool.folder.name}: look at {folder / SHEET}, write the numbers you choose into "
            f"{answer}, and run the same command again"
        )
    return read_answer(answer, num_images=len(pool.candidates))


def _scores(pool: Pool) -> list[float]:
    for candidate in pool.candidates:
        if candidate.score != candidate.score:
            raise UserError(
                f"select: the score of prompt {candidate.prompt}, image {candidate.image} "
                "is not a number"
            )
    return [candidate.score for candidate in pool.candidates]


def _ordered(pool: Pool, group: Iterable[int]) -> list[int]:
    """A group, the best first; of equal scores the first ones."""
    scores = _scores(pool)
    return sorted(group, key=lambda index: (-scores[index], index))


def write_request(candidates: Sequence[Candidate], folder: Path) -> Path:
    """Writes what a person needs to choose: a numbered contact sheet, and a `selected.json` to fill
    in.

    A `selected.json` that is already there is left as it is: it may hold the answer. The number of
    an image is its place, from 1.

    Returns:
        the path of `selected.json`, for `read_answer`.

    Raises:
        UserError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    _sheet(candidates).save(buffer, format="PNG")
    write_bytes(folder / SHEET, buffer.getvalue())
    answer = folder / ANSWER
    if not answer.exists():
        how = (
            f"put the numbers of the images you choose, as in {SHEET}, between the brackets; "
            "then run again"
        )
        write_json(answer, {"how": how, "selected": []})
    return answer


def _is_open(answer: Path) -> bool:
    content = read_json(answer)
    return isinstance(content, dict) and content.get("selected") == []


def read_answer(path: Path, *, num_images: int) -> list[int]:
    """The chosen images of a filled-in `selected.json`, as indices from 0 in ascending order.

    Raises:
        UserError: no such file, not JSON, no list of whole numbers, nothing chosen, a number that
            is not on the sheet or is there twice.
    """
    expected = f"expected numbers from 1 to {num_images}, as in {SHEET}"
    content = read_json(path)
    numbers = content.get("selected") if isinstance(content, dict) else None
    if not isinstance(numbers, list):
        raise UserError(f'{path}: has no list "selected"; {expected}')
    if not numbers:
        raise UserError(f'{path}: "selected" is empty; {expected}')
    seen: set[int] = set()
    for number in numbers:
        if type(number) is not int or not 1 <= number <= num_images:
            raise UserError(f"{path}: {json.dumps(number)[:40]} is not on the sheet; {expected}")
        if number in seen:
            raise UserError(f"{path}: {number} is chosen more than once; {expected}, each once")
        seen.add(number)
    return [number - 1 for number in sorted(seen)]


def _rows(candidates: Sequence[Candidate]) -> list[tuple[str, list[int]]]:
    """Rows of the sheet: a heading, empty for a row that goes on, and the indices of the images in
    it.
    """
    rows: list[tuple[str, list[int]]] = []
    for index, candidate in enumerate(candidates):
        new = index == 0 or candidate.text != candidates[index - 1].text
        if new or len(rows[-1][1]) == _COLUMNS:
            rows.append((candidate.text if new else "", []))
        rows[-1][1].append(index)
    return rows


def _sheet(candidates: Sequence[Candidate]) -> Image.Image:
    """Numbered thumbnails in rows, under a line with their prompt."""
    rows = _rows(candidates)
    step = _CELL + 2 * _MARGIN
    font = ImageFont.load_default(12)
    width = 0
    height = 0
    for heading, indices in rows:
        width = max(width, step * len(indices), 2 * _MARGIN + int(font.getlength(heading)))
        height += step + _LINE + (_LINE if heading else 0)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for heading, indices in rows:
        if heading:
            pen.text((_MARGIN, top), heading, fill="black", font=font)
            top += _LINE
        for column, index in enumerate(indices):
            left = column * step + _MARGIN
            with Image.open(candidates[index].file, formats=["PNG"]) as image:
                small = ImageOps.contain(image.convert("RGB"), (_CELL, _CELL))
            sheet.paste(small, (left, top + _MARGIN))
            pen.text((left, top + step - _MARGIN), str(index + 1), fill="black", font=font)
        top += step + _LINE
    return sheet
