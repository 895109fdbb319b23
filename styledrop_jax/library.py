"""The library's door: see the package's own docstring for an example."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from styledrop_jax import config_files
from styledrop_jax.errors import UserError
from styledrop_jax.io import image_files
from styledrop_jax.io.files import write_jsonl
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.load import load as load_pipeline
from styledrop_jax.rounds import personalize as carry_out
from styledrop_jax.style import Picture, Style, array


def config_names() -> list[str]:
    """The configs that `personalize` knows by name: one a method."""
    return config_files.names()


def load(base: str = "emoji64/sd", *, dtype: str = "float32") -> Pipeline:
    """Loads a base model.

    Args:
        base: a name that ships or is on the Hugging Face hub, a folder, or a single `.safetensors`
            file.
        dtype: precision of the computation, "float32" or "bfloat16".

    Raises:
        UserError: the model is nowhere, or a file of it is missing, damaged or does not fit.
    """
    return load_pipeline(base, jnp.dtype(dtype))


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
    folder = Path(workdir).expanduser()
    given = {"reference.image": _kept(images, content, folder), "reference.descriptor": descriptor}
    if isinstance(content, str):
        given["reference.content"] = content
    spec = config_files.read(config, {**given, **(overrides or {})})
    carry_out(spec, folder, command="styledrop_jax.personalize(...)")
    return Style.load(folder)


def _kept(images: Picture | Sequence[Picture], content: str | Sequence[str], folder: Path) -> str:
    """The file or folder of the images; those that are in memory are written into the run
    folder.
    """
    if isinstance(images, str | Path):
        return str(images)
    several = [images] if isinstance(images, Image.Image | np.ndarray) else list(images)
    contents = [content] * len(several) if isinstance(content, str) else list(content)
    if len(contents) != len(several):
        raise UserError(
            f"content: found {len(contents)} for {len(several)} images, "
            "expected one each, or one for all"
        )
    lines: list[dict[str, str]] = []
    for number, (image, words) in enumerate(zip(several, contents, strict=True)):
        if isinstance(image, str | Path):
            file = Path(image).expanduser().absolute()
        else:
            file = (folder / "given" / f"{number:03d}.png").absolute()
            image_files.write_png(file, array(image))
        lines.append({"image": str(file), "content": words})
    listed = folder / "given" / "images.jsonl"
    write_jsonl(listed, lines)
    return str(listed)
