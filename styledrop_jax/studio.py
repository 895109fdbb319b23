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
from styledrop_jax.adapters.base import load_adapter
from styledrop_jax.backbones import muse
from styledrop_jax.data import folders
from styledrop_jax.errors import UserError
from styledrop_jax.run import JsonLines, Run
from styledrop_jax.samplers.maskgit import mask_for_edit


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Style:
    """A run's adapter, or the base model for round 0, and how the run drew with it."""

    model: muse.Muse
    adapted: draw.Adapted | None
    descriptor: str
    settings: draw.Settings
    batch_size: int
    origin: dict[str, Any]


def sample(flags: argparse.Namespace) -> Path:
    """`styledrop sample`: returns the folder of the images."""
    jobs = _jobs(flags)
    style = _style(flags.run, flags)
    texts = [_caption(content, _descriptor(flags, style)) for content, _ in jobs]
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
    texts = [_caption(content, _descriptor(flags, style)) for content, _ in jobs]
    contents = [content for content, _ in jobs]
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
    model = style.model
    image = folders.to_square(picture, model.resolution)
    region = folders.to_square(np.repeat(np.uint8(whole)[..., None] * 255, 3, axis=-1), model.resolution)[..., 0] > 127
    if not region.any():
        raise UserError(f"{flags.mask}: nothing is white in the middle square, which is all that is drawn")
    texts = [_caption(content, _descriptor(flags, style)) for content, _ in jobs]
    tokens = _edited_tokens(model, image, region, strength, [seed for _, seed in jobs])
    record = {"image": str(flags.image), "mask": str(flags.mask or ""), "strength": strength}
    keep = None if flags.mask is None else (image.astype(np.float32) / 255, region[..., None])
    branches = _branches(style, texts)
    return _write(flags, style, jobs, texts, branches, record, folder="edited", tokens=tokens, keep=keep)


def _edited_tokens(
    model: muse.Muse, image: np.ndarray, region: np.ndarray, strength: float, seeds: Sequence[int]
) -> np.ndarray:
    """The image's own tokens [n, h, w], masked for each seed; a token is redrawn if any of its pixels is."""
    grid, pixels = model.grid, model.codec.config.downsampling
    own = np.repeat(model.encode_images(image[None]), len(seeds), axis=0).reshape(len(seeds), -1)
    patches = region.reshape(grid, pixels, grid, pixels).any(axis=(1, 3)).ravel()
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(seeds, jnp.uint32))
    masked = mask_for_edit(
        jnp.asarray(own), keys, mask_id=model.mask_id, region=jnp.tile(patches, (len(seeds), 1)), strength=strength
    )
    return np.asarray(masked).reshape(-1, grid, grid)


def _style(workdir: Path, flags: argparse.Namespace, model: muse.Muse | None = None) -> _Style:
    run = Run.load(workdir)
    references = run.manifest.get("references")
    if not references:
        raise UserError(f"{workdir}: holds no run of `styledrop personalize`, or one that has not begun")
    rounds = [n for n in range(1, run.config["rounds"] + 1) if run.done(f"round_{n}/adapter.safetensors")]
    number = flags.round if flags.round is not None else max(rounds, default=None)
    if number is None or (number and number not in rounds):
        found = ", ".join(map(str, rounds)) or "none yet: let `styledrop personalize` finish a round"
        raise UserError(f"--round: found {number}, rounds of {workdir} with an adapter: {found}")
    model = model or muse.load(run.config["base"], jnp.dtype(run.config["dtype"]))
    last = max(int(key.removeprefix("round_")) for key in run.config if re.fullmatch(r"round_\d+", key))
    sampling = dict(run.config[f"round_{min(number or 1, last)}"]["sample"])
    fields = {field.name for field in dataclasses.fields(draw.Settings)}
    given = {name: getattr(flags, name) for name in sampling if getattr(flags, name, None) is not None}
    sampling |= given
    _check_sampling(sampling)
    origin: dict[str, Any] = {"run": str(workdir), "round": number, "base": model.name, "base_hash": model.base_hash}
    style = None
    if number:
        file = load_adapter(run.path(f"round_{number}", "adapter.safetensors"), base_hash=model.base_hash)
        style, origin["adapter"] = draw.adapted(model, file), str(file.path)
    return _Style(
        model=model,
        adapted=style,
        descriptor=references[0]["descriptor"],
        settings=draw.Settings(**{name: value for name, value in sampling.items() if name in fields}),
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


def _descriptor(flags: argparse.Namespace, style: _Style) -> str:
    return style.descriptor if flags.descriptor is None else flags.descriptor


def _caption(content: str, descriptor: str) -> str:
    """The prompt with the style's words, once."""
    return content if descriptor in content else f"{content} {descriptor}"


def _write(
    flags: argparse.Namespace,
    style: _Style,
    jobs: Sequence[tuple[str, int]],
    texts: Sequence[str],
    branches: Sequence[draw.Branch],
    record: dict[str, Any],
    *,
    folder: str,
    tokens: np.ndarray | None = None,
    keep: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Draws every job into `folder` of the run, unless the user names another.

    `keep` = (image [r, r, 3], region [r, r, 1]): pixels outside the region stay the image's own.
    """
    out = (flags.out or flags.run / folder).expanduser()
    chunks = draw.draw(
        style.model,
        branches,
        [seed for _, seed in jobs],
        settings=style.settings,
        batch_size=style.batch_size,
        tokens=tokens,
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
