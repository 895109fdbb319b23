"""Uses a finished run: sample, mix, edit. Each writes PNGs, a grid and `images.jsonl`."""

import argparse
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from styledrop_jax import __version__, draw, log
from styledrop_jax.backbones.base import Backbone, Edit, Settings
from styledrop_jax.backbones.load import load as load_backbone
from styledrop_jax.data import folders
from styledrop_jax.errors import UserError
from styledrop_jax.methods.base import Method
from styledrop_jax.methods.table import METHODS
from styledrop_jax.run import JsonLines, Run


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Style:
    """A run's adapter, or the base model for round 0, and how the run drew with it."""

    model: Backbone
    method: Method
    config: dict[str, Any]
    adapted: draw.Adapted | None
    descriptor: str
    settings: Settings
    batch_size: int
    origin: dict[str, Any]


def sample(flags: argparse.Namespace) -> Path:
    """`styledrop sample`: returns the folder of the images."""
    jobs = _jobs(flags)
    style = _style(flags.run, flags)
    texts = _texts(flags, style, jobs)
    return _write(flags, style, jobs, texts, _branches(style, texts), {}, folder="drawn")


def mix(flags: argparse.Namespace) -> Path:
    """`styledrop mix`: returns the folder of the images."""
    if not 0 <= flags.gamma <= 1:
        raise UserError(f"--gamma: found {flags.gamma}, expected a number from 0 to 1")
    jobs = _jobs(flags)
    style = _style(flags.run, flags)
    subject = _style(flags.subject, flags, model=style.model)
    if style.adapted is None or subject.adapted is None:
        raise UserError("--round: 0 is the base model; mix needs an adapter of each run")
    texts = _texts(flags, style, jobs)
    contents = [subject.method.prompt(subject.config, content) for content, _ in jobs]
    branches = draw.mixed_branches(
        style.adapted, subject.adapted, texts, contents, gamma=flags.gamma, settings=style.settings
    )
    record = {"gamma": flags.gamma, "subject": subject.origin}
    return _write(flags, style, jobs, texts, branches, record, folder="mixed")


def edit(flags: argparse.Namespace) -> Path:
    """`styledrop edit`: returns the folder of the images."""
    strength = flags.strength if flags.strength is not None else (1.0 if flags.mask else 0.6)
    if not 0 < strength <= 1:
        raise UserError(f"--strength: found {strength}, expected a number above 0 and at most 1")
    jobs = _jobs(flags)
    picture = folders.read_image(flags.image)
    whole = folders.read_mask(flags.mask, picture.shape[:2]) if flags.mask else np.ones(picture.shape[:2], bool)
    style = _style(flags.run, flags)
    side = style.model.resolution
    image = folders.to_square(picture, side).astype(np.float32) / 255
    region = folders.to_square(np.repeat(np.uint8(whole)[..., None] * 255, 3, axis=-1), side)[..., 0] > 127
    if not region.any():
        raise UserError(f"{flags.mask}: nothing is white in the middle square, which is all that is drawn")
    texts = _texts(flags, style, jobs)
    record = {"image": str(flags.image), "mask": str(flags.mask or ""), "strength": strength}
    start = Edit(style.model.encode_images(image[None]), region, strength)
    keep = None if flags.mask is None else (image, region[..., None])
    branches = _branches(style, texts)
    return _write(flags, style, jobs, texts, branches, record, folder="edited", start=start, keep=keep)


def _style(workdir: Path, flags: argparse.Namespace, model: Backbone | None = None) -> _Style:
    run = Run.load(workdir)
    references = run.manifest.get("references")
    if not references:
        raise UserError(f"{workdir}: holds no run of `styledrop personalize`, or one that has not begun")
    rounds = [n for n in range(1, run.config["rounds"] + 1) if run.done(f"round_{n}/adapter.safetensors")]
    number = flags.round if flags.round is not None else max(rounds, default=None)
    if number is None or (number and number not in rounds):
        found = ", ".join(map(str, rounds)) or "none yet: let `styledrop personalize` finish a round"
        raise UserError(f"--round: found {number}, rounds of {workdir} with an adapter: {found}")
    model = model or load_backbone(run.config["base"], jnp.dtype(run.config["dtype"]))
    last = max(int(key.removeprefix("round_")) for key in run.config if re.fullmatch(r"round_\d+", key))
    sampling = dict(run.config[f"round_{min(number or 1, last)}"]["sample"])
    fields = {field.name for field in dataclasses.fields(Settings)}
    given = {name: getattr(flags, name) for name in sampling if getattr(flags, name, None) is not None}
    sampling |= given
    _check_sampling(sampling)
    origin: dict[str, Any] = {"run": str(workdir), "round": number, "base": model.name, "base_hash": model.base_hash}
    style = None
    if number:
        path = run.path(f"round_{number}", "adapter.safetensors")
        style, origin["adapter"] = draw.load(model, path), str(path)
    return _Style(
        model=model,
        method=METHODS[run.config["method"]],
        config=run.config,
        adapted=style,
        descriptor=references[0]["descriptor"],
        settings=Settings(**{name: value for name, value in sampling.items() if name in fields}),
        batch_size=sampling["batch_size"],
        origin=origin,
    )


def _check_sampling(sampling: dict[str, Any]) -> None:
    for name, low in (("steps", 1), ("batch_size", 1), ("temperature", 0), ("lambda_a", 0), ("lambda_b", 0)):
        if not low <= sampling[name] < math.inf:
            raise UserError(f"--{name.replace('_', '-')}: found {sampling[name]}, expected a number of at least {low}")


def _branches(style: _Style, texts: Sequence[str]) -> list[draw.Branch]:
    if style.adapted is None:
        return draw.base_branches(style.model, texts, style.settings)
    return draw.style_branches(style.adapted, texts, style.settings)


def _jobs(flags: argparse.Namespace) -> list[tuple[str, int]]:
    """(content, seed) of every image."""
    contents = list(flags.prompt) + (folders.read_prompts(flags.prompt_file) if flags.prompt_file else [])
    if not contents:
        raise UserError("--prompt: missing; say what to draw, or give a --prompt-file")
    if any(not content.strip() for content in contents):
        raise UserError('--prompt: empty; expected words like "a cat"')
    if flags.num < 1:
        raise UserError(f"--num: found {flags.num}, expected at least 1")
    if not 0 <= flags.seed <= 2**32 - flags.num:
        raise UserError(f"--seed: found {flags.seed}, expected a whole number from 0 to {2**32 - flags.num}")
    return [(content, flags.seed + i) for content in contents for i in range(flags.num)]


def _texts(flags: argparse.Namespace, style: _Style, jobs: Sequence[tuple[str, int]]) -> list[str]:
    """Every prompt as the run's method draws it, with the words of the style."""
    descriptor = style.descriptor if flags.descriptor is None else flags.descriptor
    return [style.method.prompt(style.config, content, descriptor) for content, _ in jobs]


def _write(
    flags: argparse.Namespace,
    style: _Style,
    jobs: Sequence[tuple[str, int]],
    texts: Sequence[str],
    branches: Sequence[draw.Branch],
    record: dict[str, Any],
    *,
    folder: str,
    start: Edit | None = None,
    keep: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Draws every job into `folder` of the run, unless the user names another.

    `keep` = (image [r, r, 3], region [r, r, 1]): pixels outside the region stay the image's own.
    """
    out = (flags.out or flags.run / folder).expanduser()
    chunks = draw.draw(
        branches,
        [seed for _, seed in jobs],
        settings=style.settings,
        batch_size=style.batch_size,
        edit=start,
    )
    images: list[np.ndarray] = []
    with log.progress("drawing", len(jobs)) as advance, JsonLines(out / "images.jsonl") as lines:
        earlier = len(lines.rows)
        for chunk in chunks:
            for image in chunk:
                (content, seed), text = jobs[len(images)], texts[len(images)]
                if keep is not None:
                    image = np.where(keep[1], image, keep[0])
                name = f"{earlier + len(images):04d}_{_slug(content)}_{seed}.png"
                folders.write_png(out / name, image)
                lines.append(
                    {
                        "file": name,
                        "prompt": content,
                        "text": text,
                        "seed": seed,
                        **dataclasses.asdict(style.settings),
                        "batch_size": style.batch_size,
                        **style.origin,
                        **record,
                        "version": __version__,
                        "jax": jax.__version__,
                        "device": jax.devices()[0].device_kind,
                    }
                )
                images.append(image)
            advance(len(chunk))
    columns = max(flags.num, 4) if flags.num > 1 else None
    captions = [content for content, _ in jobs]
    sheet = folders.grid(images, columns=columns, scale=_scale(images), captions=captions)
    folders.write_png(out / "grid.png", sheet)
    return out


def _scale(images: Sequence[np.ndarray]) -> int:
    """Small images are shown enlarged."""
    return max(1, 128 // images[0].shape[0])


def _slug(text: str) -> str:
    """A file name: letters and digits of any script, at most 40 characters, which are 160 bytes."""
    return re.sub(r"\W+", "-", text).strip("-")[:40] or "image"
