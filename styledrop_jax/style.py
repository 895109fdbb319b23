"""Uses a finished run: sample, mix, edit, stylize. Each writes PNGs, a grid and `images.jsonl`."""

import argparse
import dataclasses
import hashlib
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax import __version__, guidance, log
from styledrop_jax.errors import UserError
from styledrop_jax.io import captions, image_files, sheets
from styledrop_jax.io.files import JsonLines, Run
from styledrop_jax.io.paths import stem_words
from styledrop_jax.methods.base import Method
from styledrop_jax.methods.table import METHODS
from styledrop_jax.pipelines.base import Edit, Pipeline, SampleSettings
from styledrop_jax.pipelines.load import load as load_pipeline


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Style:
    """A run's adapter, or the base model for round 0, and how the run drew with it."""

    model: Pipeline
    method: Method
    config: dict[str, Any]
    adapted: guidance.Adapted | None
    descriptor: str
    settings: SampleSettings
    batch_size: int
    origin: dict[str, Any]


class _Job(NamedTuple):
    """One image to draw: of the user's words, from a seed, under the whole prompt; `record` is of its line alone."""

    content: str
    seed: int
    text: str
    record: dict[str, Any]


def sample(flags: argparse.Namespace) -> Path:
    """`styledrop sample`: returns the folder of the images."""
    contents = _contents(flags)
    style = _style(flags.run, flags)
    jobs = _jobs(flags, style, contents)
    return _finish(flags, style, jobs, _images(style, jobs, _branches(style, jobs)), folder="drawn")


def mix(flags: argparse.Namespace) -> Path:
    """`styledrop mix`: returns the folder of the images."""
    if not 0 <= flags.gamma <= 1:
        raise UserError(f"--gamma: found {flags.gamma}, expected a number from 0 to 1")
    contents = _contents(flags)
    style = _style(flags.run, flags)
    subject = _style(flags.subject, flags, model=style.model)
    if style.adapted is None or subject.adapted is None:
        raise UserError("--round: 0 is the base model; mix needs an adapter of each run")
    jobs = _jobs(flags, style, contents, gamma=flags.gamma, subject=subject.origin)
    branches = guidance.mixed_branches(
        style.adapted,
        subject.adapted,
        [job.text for job in jobs],
        [subject.method.prompt(subject.config, job.content) for job in jobs],
        gamma=flags.gamma,
        settings=style.settings,
    )
    return _finish(flags, style, jobs, _images(style, jobs, branches), folder="mixed")


def edit(flags: argparse.Namespace) -> Path:
    """`styledrop edit`: returns the folder of the images."""
    strength = flags.strength if flags.strength is not None else 1.0 if flags.mask else 0.5
    _check_strength(strength)
    contents = _contents(flags)
    picture = image_files.read_image(flags.image)
    mask = (
        image_files.read_mask(flags.mask, picture.shape[:2])
        if flags.mask
        else np.ones(picture.shape[:2], bool)
    )
    style = _style(flags.run, flags)
    size = style.model.canvas(*mask.shape)
    image = image_files.to_size(picture, size)
    region = (
        image_files.to_size(np.repeat(np.uint8(mask)[..., None] * 255, 3, axis=-1), size)[..., :1]
        > 127
    )
    if not region.any():
        raise UserError(
            f"{flags.mask}: nothing is white in the middle square, which is all that is drawn"
        )
    _warn_of_crops([flags.image] if image_files.is_cropped(mask.shape, size) else [])
    record = {"image": str(flags.image), "mask": str(flags.mask or ""), "strength": strength}
    jobs = _jobs(flags, style, contents, **record)
    own = _repeated(style.model.encode_images(image[None]), len(jobs))
    drawn = _images(style, jobs, _branches(style, jobs), Edit(own, region[..., 0], strength))
    kept = (np.where(region, image_files.to_uint8(after), image) for after in drawn)
    out, after = _write(flags, style, jobs, kept, folder="edited")
    cells = [(drawn, job.content) for drawn, job in zip(after, jobs, strict=True)]
    _write_rows(
        out,
        [[(image, "before"), *cells[i : i + flags.num]] for i in range(0, len(cells), flags.num)],
    )
    return out


class _Picture(NamedTuple):
    """A picture to stylize, uint8 [h, w, 3] at the size that the model draws, and what its lines say of it."""

    image: np.ndarray
    content: str
    record: dict[str, str]


def stylize(flags: argparse.Namespace) -> Path:
    """`styledrop stylize`: returns the folder of the images."""
    strengths = flags.strength or [0.5]
    for strength in strengths:
        _check_strength(strength)
    _check_seeds(flags)
    given = flags.image.expanduser()
    paths = captions.images_in(given) if given.is_dir() else [given]
    style = _style(flags.run, flags)
    pictures = _pictures(flags, style, paths)
    jobs, drawn, places = [], [], []
    for strength, size in itertools.product(
        strengths, dict.fromkeys(p.image.shape for p in pictures)
    ):
        mine = [i for i, picture in enumerate(pictures) if picture.image.shape == size]
        encoded = style.model.encode_images(np.stack([pictures[i].image for i in mine]))
        some = []
        for i in mine:
            some += _jobs(
                flags, style, [pictures[i].content], **pictures[i].record, strength=strength
            )
        start = Edit(_repeated(encoded, flags.num), None, strength)
        drawn.append(_images(style, some, _branches(style, some), start))
        jobs += some
        places += [i for i in mine for _ in range(flags.num)]
    out, after = _write(flags, style, jobs, itertools.chain.from_iterable(drawn), folder="stylized")
    rows = [[(picture.image, picture.content)] for picture in pictures]
    for j, place in enumerate(places):
        rows[place].append((after[j], f"strength {jobs[j].record['strength']:g}"))
    _write_rows(out, rows)
    return out


def _pictures(flags: argparse.Namespace, style: _Style, paths: Sequence[Path]) -> list[_Picture]:
    """Each at the size that the model draws, as soon as it is read: photos may be many and large."""
    found, cropped = [], []
    for path in paths:
        content = flags.prompt.strip() or stem_words(path)
        if not content:
            raise UserError(
                f"--prompt: missing, and the name of {path} has no words; say what the picture shows"
            )
        image = image_files.read_image(path)
        size = style.model.canvas(*image.shape[:2])
        if image_files.is_cropped(image.shape, size):
            cropped.append(path)
        record = {"image": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        found.append(_Picture(image_files.to_size(image, size), content, record))
    _warn_of_crops(cropped)
    return found


def _warn_of_crops(paths: Sequence[Path]) -> None:
    if remark := image_files.crop_remark(paths):
        warnings.warn(remark, stacklevel=2)


def _repeated(encoded: Any, count: int) -> Any:
    """Every picture `count` times, next to itself."""
    return jax.tree.map(lambda x: np.repeat(x, count, axis=0), encoded)


def _style(workdir: Path, flags: argparse.Namespace, model: Pipeline | None = None) -> _Style:
    run = Run.load(workdir)
    references = run.manifest.get("references")
    if not references:
        raise UserError(
            f"{workdir}: holds no run of `styledrop personalize`, or one that has not begun"
        )
    rounds = [
        n for n in range(1, run.config["rounds"] + 1) if run.done(f"round_{n}/adapter.safetensors")
    ]
    number = flags.round if flags.round is not None else max(rounds, default=None)
    if number is None or (number and number not in rounds):
        found = (
            ", ".join(map(str, rounds)) or "none yet: let `styledrop personalize` finish a round"
        )
        raise UserError(f"--round: found {number}, rounds of {workdir} with an adapter: {found}")
    model = model or load_pipeline(run.config["base"], jnp.dtype(run.config["dtype"]))
    last = max(
        int(key.removeprefix("round_")) for key in run.config if re.fullmatch(r"round_\d+", key)
    )
    sampling = dict(run.config[f"round_{min(number or 1, last)}"]["sample"])
    fields = {field.name for field in dataclasses.fields(SampleSettings)}
    given = {
        name: getattr(flags, name) for name in sampling if getattr(flags, name, None) is not None
    }
    sampling |= given
    _check_sampling(sampling)
    origin: dict[str, Any] = {
        "run": str(workdir),
        "round": number,
        "base": model.name,
        "base_hash": model.base_hash,
    }
    style = None
    if number:
        path = run.path(f"round_{number}", "adapter.safetensors")
        style, origin["adapter"] = guidance.load(model, path), str(path)
    return _Style(
        model=model,
        method=METHODS[run.config["method"]],
        config=run.config,
        adapted=style,
        descriptor=references[0]["descriptor"],
        settings=SampleSettings(
            **{name: value for name, value in sampling.items() if name in fields}
        ),
        batch_size=sampling["batch_size"],
        origin=origin,
    )


def _check_sampling(sampling: dict[str, Any]) -> None:
    for name, low in (
        ("steps", 1),
        ("batch_size", 1),
        ("temperature", 0),
        ("lambda_a", 0),
        ("lambda_b", 0),
    ):
        if not low <= sampling[name] < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')}: found {sampling[name]}, expected a number of at least {low}"
            )


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise UserError(f"--strength: found {strength}, expected a number above 0 and at most 1")


def _check_seeds(flags: argparse.Namespace) -> None:
    if flags.num < 1:
        raise UserError(f"--num: found {flags.num}, expected at least 1")
    if not 0 <= flags.seed <= 2**32 - flags.num:
        raise UserError(
            f"--seed: found {flags.seed}, expected a whole number from 0 to {2**32 - flags.num}"
        )


def _branches(style: _Style, jobs: Sequence[_Job]) -> list[guidance.Branch]:
    texts = [job.text for job in jobs]
    if style.adapted is None:
        return guidance.base_branches(style.model, texts, style.settings)
    return guidance.style_branches(style.adapted, texts, style.settings)


def _contents(flags: argparse.Namespace) -> list[str]:
    """The user's prompts."""
    contents = list(flags.prompt) + (
        captions.read_prompts(flags.prompt_file) if flags.prompt_file else []
    )
    if not contents:
        raise UserError("--prompt: missing; say what to draw, or give a --prompt-file")
    if any(not content.strip() for content in contents):
        raise UserError('--prompt: empty; expected words like "a cat"')
    _check_seeds(flags)
    return contents


def _jobs(
    flags: argparse.Namespace, style: _Style, contents: Sequence[str], **record: Any
) -> list[_Job]:
    """Every prompt with each of its seeds, as the run's method draws it, with the words of the style."""
    descriptor = style.descriptor if flags.descriptor is None else flags.descriptor
    jobs = []
    for content in contents:
        text = style.method.prompt(style.config, content, descriptor)
        if style.adapted and (remark := style.method.remark(style.config, content)):
            warnings.warn(remark, stacklevel=2)
        jobs += [_Job(content, flags.seed + i, text, record) for i in range(flags.num)]
    return jobs


def _images(
    style: _Style,
    jobs: Sequence[_Job],
    branches: Sequence[guidance.Branch],
    start: Edit | None = None,
) -> Iterator[np.ndarray]:
    """Images [h, w, 3], float32 in [0, 1], one after the other."""
    seeds = [job.seed for job in jobs]
    chunks = guidance.generate(
        branches, seeds, settings=style.settings, batch_size=style.batch_size, edit=start
    )
    return itertools.chain.from_iterable(chunks)


def _finish(
    flags: argparse.Namespace,
    style: _Style,
    jobs: Sequence[_Job],
    images: Iterable[np.ndarray],
    *,
    folder: str,
) -> Path:
    """Writes the images and a sheet of them; returns their folder."""
    out, written = _write(flags, style, jobs, images, folder=folder)
    columns = max(flags.num, 4) if flags.num > 1 else None
    _write_sheet(out, written, [job.content for job in jobs], columns=columns)
    return out


def _write(
    flags: argparse.Namespace,
    style: _Style,
    jobs: Sequence[_Job],
    images: Iterable[np.ndarray],
    *,
    folder: str,
) -> tuple[Path, list[np.ndarray]]:
    """Writes the image of every job into `folder` of the run, unless the user names another, and returns them."""
    out = (flags.out or flags.run / folder).expanduser()
    written: list[np.ndarray] = []
    with log.progress("drawing", len(jobs)) as advance, JsonLines(out / "images.jsonl") as lines:
        earlier = len(lines.rows)
        for job, image in zip(jobs, images, strict=True):
            name = f"{earlier + len(written):04d}_{_slug(job.content)}_{job.seed}.png"
            written.append(image_files.to_uint8(image))
            image_files.write_png(out / name, written[-1])
            lines.append(
                {
                    "file": name,
                    "prompt": job.content,
                    "text": job.text,
                    "seed": job.seed,
                    **dataclasses.asdict(style.settings),
                    "batch_size": style.batch_size,
                    **style.origin,
                    **job.record,
                    "version": __version__,
                    "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind,
                }
            )
            advance(1)
    return out, written


def _write_rows(out: Path, rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> None:
    """A sheet of pictures with their captions, as many in a row."""
    images, captions = zip(*itertools.chain.from_iterable(rows), strict=True)
    _write_sheet(out, images, captions, columns=len(rows[0]))


def _write_sheet(
    out: Path, images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int | None
) -> None:
    scale = max(1, 128 // images[0].shape[0])  # small images are shown enlarged
    image_files.write_png(
        out / "grid.png", sheets.grid(images, columns=columns, scale=scale, captions=captions)
    )


def _slug(text: str) -> str:
    """A file name: letters and digits of any script, at most 40 characters, which are 160 bytes."""
    return re.sub(r"\W+", "-", text).strip("-")[:40] or "image"
