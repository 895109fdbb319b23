"""The library's door: see the package's own docstring for an example."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from styledrop_jax import config_files, pictures
from styledrop_jax.base_model import load as load_pipeline
from styledrop_jax.errors import UserError, shown
from styledrop_jax.feedback import hard_prompt
from styledrop_jax.feedback.describe import Description
from styledrop_jax.feedback.describe import describe as find_words
from styledrop_jax.io import hub, image_files
from styledrop_jax.io.files import read_jsonl, write_jsonl
from styledrop_jax.io.paths import expanded
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pictures import Picture
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.rounds import personalize as carry_out
from styledrop_jax.spec import DTYPES
from styledrop_jax.style import Style


def config_names() -> list[str]:
    """The configs that `personalize` knows by name: one a method."""
    return config_files.names()


def load(
    base: str = "emoji128",
    *,
    dtype: str = "float32",
    vae: str = "",
    loras: Mapping[str, float] | None = None,
) -> Pipeline:
    """Loads a base model.

    Args:
        base: a name that ships or is on the Hugging Face hub, a folder, or a single `.safetensors`
            file.
        dtype: precision of the computation, "float32" or "bfloat16".
        vae: an autoencoder in place of a Stable Diffusion's own: a file, a folder or a name.
        loras: files of LoRAs → the weights by which they are merged into it.

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: found {shown(dtype)}, expected one of {', '.join(DTYPES)}")
    merged = list((loras or {}).items())
    return load_pipeline(base, jnp.dtype(dtype), vae=vae, loras=merged, field="base")


def describe(
    image: Picture,
    *,
    content: str = "",
    clip: str = "emoji64/clip",
    number: int = 5,
    hard: bool = False,
) -> Description:
    """Finds words for a picture: what it shows, and how it is drawn.

    Args:
        image: a PIL image, an array [h, w, 3] or a file.
        content: what it shows, "a house"; empty: guessed among 30 everyday things.
        clip: the CLIP that says how well words fit: a name or a folder.
        number: of proposals.
        hard: whether to search for a hard prompt too, by gradient descent (PEZ, arXiv 2302.03668).

    Raises:
        UserError: the image cannot be read, or there is no such CLIP.
    """
    if number < 1:
        raise UserError(f"number: found {number}, expected at least 1")
    scorer = ClipScorer.load(hub.resolve(clip, field="clip"))
    contents = [content] if content.strip() else POOL
    pixels = pictures.array(image)
    found = find_words(pixels, scorer, contents=contents, number=number)
    if not hard:
        return found
    images = pixels[None].astype(np.float32) / 255
    searched = hard_prompt.find(images, [found.content], scorer)
    return dataclasses.replace(found, hard_prompt=(searched.descriptor, searched.likeness))


def personalize(
    images: Picture | Sequence[Picture],
    *,
    content: str | Sequence[str] = "",
    descriptor: str = "",
    workdir: str | Path,
    config: str = "styledrop",
    overrides: Mapping[str, Any] | None = None,
) -> Style:
    """Teaches a style or a subject, and returns what was learnt; called again it continues or finds
    the same run.

    Args:
        images: one or several: PIL images, arrays [h, w, 3], files, or a folder.
        content: what they show, "a house"; one for all, or one each.
        descriptor: how, "in watercolor painting style".
        workdir: the run folder; everything that the run makes is in it, report.html too.
        config: a method, "styledrop", with a preset, "styledrop:sd15", or a config file.
        overrides: dotted fields of the config → values, such as {"round_1.train.steps": 100}.

    Raises:
        UserError: anything in the settings, the images or the folder that is not right.
        Paused: a person has to choose between rounds.
    """
    folder = Path(os.path.abspath(expanded(workdir)))
    named = isinstance(images, str | Path) and isinstance(content, str)
    listed = folder / "given" / "images.jsonl"
    given = {"reference.image": str(images if named else listed)}
    given["reference.descriptor"] = descriptor
    if isinstance(content, str):
        given["reference.content"] = content
    spec = config_files.read(config, {**given, **(overrides or {})})
    if not named:
        _keep(images, content, listed)
    carry_out(spec, folder, command="styledrop_jax.personalize(...)")
    return Style.load(folder)


def _keep(images: Picture | Sequence[Picture], content: str | Sequence[str], listed: Path) -> None:
    """Writes the images that are in memory beside a list of all and of what they show."""
    one = isinstance(images, str | Path | Image.Image | np.ndarray)
    several = [images] if one else list(images)
    contents = [content] * len(several) if isinstance(content, str) else list(content)
    if len(contents) != len(several):
        raise UserError(
            f"content: found {len(contents)} for {len(several)} images, "
            "expected one each, or one for all"
        )
    began = (listed.parents[1] / "manifest.json").exists()
    lines: list[dict[str, str]] = []
    for number, (image, words) in enumerate(zip(several, contents, strict=True)):
        if isinstance(image, str | Path):
            file = Path(os.path.abspath(expanded(image)))
        else:
            file = listed.parent / f"{number:03d}.png"
            picture = image if isinstance(image, Image.Image) else image_files.as_pillow(image)
            if not began:
                image_files.write_png(file, np.asarray(image_files.in_srgb(picture)))
            elif not _holds(file, picture):
                raise _changed(listed)
        lines.append({"image": str(file), "content": words})
    if not began:
        write_jsonl(listed, lines)
    elif read_jsonl(listed) != lines:
        raise _changed(listed)


def _holds(file: Path, picture: Image.Image) -> bool:
    if not file.exists():
        return False
    return np.array_equal(image_files.read_image(file), image_files.from_pillow(picture))


def _changed(listed: Path) -> UserError:
    return UserError(
        f"{listed.parents[1]}: holds a run of other images; expected the same ones, or another "
        "workdir"
    )
