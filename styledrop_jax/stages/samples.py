"""The record of a sample, and the pool of samples of a round; records are read without JAX."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.files import read_json, read_jsonl, write_json, write_jsonl
from styledrop_jax.io.records import are_numbers

if TYPE_CHECKING:
    from styledrop_jax.methods.base import Prompt

_TEXTS = ("file", "content", "text", "judged", "source")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One image that a stage makes, and later its scores.

    Attributes:
        prompt: index of its prompt. image: index among that prompt's images.
        file: in the folder of the stage.
        content: the user's prompt. text: as the model is given it. judged: as a scorer is.
        seed: of its noise.
        source: the image that it is generated anew from, in the run folder; empty if it comes from
            its prompt alone.
        scores: by scorer. score: their weighted sum.
    """

    prompt: int
    image: int
    file: str
    content: str
    text: str
    judged: str
    seed: int
    source: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    score: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        return self.prompt, self.image


def pool(
    prompts: "Sequence[Prompt]",
    count: int,
    *,
    seed: int,
    number: int,
    sources: Mapping[str, str] | None = None,
) -> list[Sample]:
    """What a round samples: `count` images of every prompt, each with a seed of its own.

    Args:
        prompts: of the run.
        count: images of each prompt; of each prompt and source if there are sources.
        seed: of the run. number: of the round; 0 for the base model.
        sources: {file of an image that is generated anew: its name}
    """
    named = list((sources or {"": ""}).items())
    samples = []
    used: set[int] = set()
    for index, (prompt, (source, name)) in enumerate(itertools.product(prompts, named)):
        for image in range(count):
            samples.append(
                Sample(
                    prompt=index,
                    image=image,
                    file=f"samples/p{index:03d}_i{image:03d}.png",
                    content=prompt.content.replace("{subject}", name) if name else prompt.content,
                    text=prompt.text,
                    judged=prompt.judged,
                    seed=_seed(seed, number, index, image, used),
                    source=source,
                )
            )
    return samples


def _seed(seed: int, number: int, prompt: int, image: int, used: set[int]) -> int:
    """32 random bits of the sample's place in the run, which no other sample of the round has."""
    import jax

    key = jax.random.key(seed)
    for part in (number, prompt, image):
        key = jax.random.fold_in(key, part)
    found = int(jax.random.bits(key, dtype=np.uint32))
    while found in used:
        found = (found + 1) % 2**32
    used.add(found)
    return found


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes a JSON line for each sample, whole or not at all."""
    write_jsonl(path, [_to_dict(sample) for sample in samples])


def read_samples(path: Path) -> list[Sample]:
    """The samples of a `scores.jsonl`; none if there is no such file.

    Raises:
        UserError: a line is not what `write_samples` writes.
    """
    rows = read_jsonl(path)
    return [_from_dict(row, f"{path} line {number}") for number, row in enumerate(rows, 1)]


def write_chosen(path: Path, samples: Sequence[Sample]) -> None:
    """Writes `selected.json`."""
    write_json(path, {"selected": [_to_dict(sample) for sample in samples]})


def read_chosen(path: Path) -> list[Sample]:
    """The samples of a `selected.json`; UserError if it is not what `write_chosen` writes."""
    content = read_json(path)
    rows = content.get("selected") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f'{path}: expected {{"selected": […]}}, found {shown(content)}')
    return [_from_dict(row, str(path)) for row in rows]


def _to_dict(sample: Sample) -> dict[str, Any]:
    fields = dataclasses.asdict(sample)
    if not sample.source:
        del fields["source"]
    return fields


def _from_dict(row: Any, where: str) -> Sample:
    """One record; a file outside its folder is refused, since run folders may come from someone
    else.
    """
    names = get_type_hints(Sample)
    if not isinstance(row, dict) or not set(row) <= set(names):
        raise UserError(f"{where}: expected a sample with {', '.join(names)}, found {shown(row)}")
    for name in _TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise UserError(f"{where}: {name} is {shown(row[name])}, expected text")
    for name in ("file", "source"):
        path = PurePosixPath(row.get(name, ""))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise UserError(f"{where}: {name} {shown(str(path))} is not in the run folder")
    for name in ("prompt", "image", "seed"):
        if type(row.get(name)) is not int or not 0 <= row[name] < 2**32:
            raise UserError(f"{where}: {name} is {shown(row.get(name))}, expected a whole number")
    scores = row.get("scores", {})
    if not isinstance(scores, dict) or not are_numbers([*scores.values(), row.get("score", 0.0)]):
        raise UserError(f"{where}: scores are {shown(scores)}, expected numbers by name")
    try:
        return Sample(**row)
    except TypeError as error:
        raise UserError(f"{where}: not a whole record of a sample ({error})") from None
