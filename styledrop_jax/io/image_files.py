"""The user's images and prompts: read robustly from files, folders and JSON lines; pictures written back."""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.io.files import write_bytes

MAX_PIXELS = (
    100_000_000  # 300 MB decoded: more than any camera's usual picture, less than a laptop's memory
)
BUNDLED = Path(__file__).parents[1] / "assets" / "references" / "references.jsonl"

_LOG = logging.getLogger(__name__)
_PILLOW_LIMIT = threading.Lock()
_STILL_FORMATS = (
    "MPO",
    "PSD",
)  # several frames in a file, but those are previews and layers, not an animation
_KEYS = ("image", "content", "descriptor")
_MARK = (255, 106, 0)
_INK = (40, 40, 40)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """One reference image with its words.

    Attributes:
        path: as the user gave it.
        image: uint8 [h, w, 3], any size.
        content: what is drawn, "a house".
        descriptor: how, "in watercolor painting style".
        sha256: of the file's bytes.
    """

    path: str
    image: np.ndarray
    content: str
    descriptor: str
    sha256: str


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads one still image of any format and mode that Pillow reads.

    The EXIF rotation is applied, colours with a profile are converted to sRGB, transparency is laid over white, and
    16-bit pixels are scaled to 8.

    Returns:
        uint8 [h, w, 3].

    Raises:
        UserError: the file is missing, empty, no image, damaged or cut short, animated, or larger than `MAX_PIXELS`
            (which is read from its header, before anything is decoded).
    """
    path = Path(path).expanduser()
    _check_file(path)
    try:
        with _own_limit(), path.open("rb") as file:
            image = Image.open(file)
            _check_header(path, image)
            image.load()
            kind = image.format
        image = ImageOps.exif_transpose(image)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not an image that can be read; expected PNG, JPEG, WebP, …"
        ) from None
    except Exception as error:  # Pillow's readers raise errors of every kind on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: the image is damaged or cut short: {reason}") from error
    # Pillow gives 16-bit PGM as 32-bit integers; elsewhere those have no known scale.
    return _to_rgb(path, image.convert("I;16") if image.mode == "I" and kind == "PPM" else image)


def to_square(
    image: np.ndarray, size: int, *, crop: tuple[float, float, float] | None = None
) -> np.ndarray:
    """Cuts a square window out of an image of any shape and resizes it, by Lanczos, in one step.

    Args:
        image: uint8 [h, w, 3].
        size: the side of the result, pixels.
        crop: (x, y, side): `side` of the window as a share of the shorter side of the image, in (0, 1], and its place
            in the room that is left, 0 (left, top) to 1. None is (0.5, 0.5, 1): the largest square, from the middle.

    Returns:
        uint8 [size, size, 3].
    """
    return to_size(image, (size, size), crop=crop)


def is_cropped(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether `to_size` cuts more off a picture [h, w, …] than the rounding of its sides asks for."""
    aspect = shape[1] / shape[0] * size[0] / size[1]
    return min(aspect, 1 / aspect) < 0.9


def crop_remark(paths: Sequence[Path | str]) -> str:
    """What to tell the user of pictures that `is_cropped`, one line; empty if there are none."""
    if not paths:
        return ""
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{others}: not of an aspect that this model draws; the middle is taken"


def to_size(
    image: np.ndarray, size: tuple[int, int], *, crop: tuple[float, float, float] | None = None
) -> np.ndarray:
    """Cuts a window of the aspect of `size` = (height, width) out of an image and resizes it to that.

    Args and result are else those of `to_square`; a side of 1 is the largest window of that aspect.
    """
    (h, w), (height, width) = image.shape[:2], size
    x, y, share = crop or (0.5, 0.5, 1.0)
    wide = (
        w * height > h * width
    )  # in whole numbers: a window a rounding error too large is refused
    tall, broad = (h, h * width / height) if wide else (w * height / width, w)
    tall, broad = share * tall, share * broad
    left, top = x * (w - broad), y * (h - tall)
    box = (left, top, left + broad, top + tall)
    return np.asarray(
        Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box)
    )


def read_references(
    image: str,
    content: str,
    descriptor: str,
    *,
    needs: Sequence[str] = ("content", "descriptor"),
    field: str = "config.reference",
) -> list[Reference]:
    """Reads the reference images that a section of the config names.

    Args:
        image: one file; a folder, all of whose images are taken, sorted by name; a JSON-lines file of
            `{"image", "content", "descriptor"}` with paths relative to it; or `bundled:NAME`, which ships with the
            package.
        content: what is drawn. A line of a JSON-lines file overrides it. Empty: in a folder, the words of each
            file's name ("red_house-2.png" is "red house").
        descriptor: how it is drawn; a line of a JSON-lines file overrides it.
        needs: which of the two every image must have.
        field: the section, for errors.

    Raises:
        UserError: any image that cannot be read, no image at all, no content or descriptor.
    """
    entries = _entries(image, content.strip(), descriptor.strip(), field)
    references = [
        Reference(
            str(path),
            _read_named(path, where),
            *_words(path, where, content, descriptor, needs),
            _sha256(path),
        )
        for path, where, content, descriptor in entries
    ]
    first: dict[str, str] = {}
    for reference in references:
        if reference.sha256 in first:
            _LOG.warning(
                "%s: the same image as %s: it counts twice", reference.path, first[reference.sha256]
            )
        first.setdefault(reference.sha256, reference.path)
    return references


def _read_named(path: Path, where: str) -> np.ndarray:
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"{where}.image: {error}") from None


def read_mask(path: str | os.PathLike, image_shape: tuple[int, int]) -> np.ndarray:
    """Reads a mask for editing: white (or transparent) is drawn anew, black is kept.

    Args:
        path: an image file of any mode.
        image_shape: (h, w) of the image that it belongs to, pixels.

    Returns:
        bool [h, w], True where the picture is drawn anew.

    Raises:
        UserError: it cannot be read, has another size, or marks nothing.
    """
    gray = read_image(path).mean(axis=-1)  # [h, w]
    if gray.shape != tuple(image_shape):
        (h, w), (height, width) = gray.shape, image_shape
        raise UserError(
            f"{path}: the mask is {w} x {h} pixels; expected the image's {width} x {height}"
        )
    mask = gray >= 128
    if not mask.any():
        raise UserError(
            f"{path}: the mask is all black; expected white where the picture is to be drawn anew"
        )
    return mask


def read_prompts(path: str | os.PathLike) -> list[str]:
    """Reads prompts from a UTF-8 text file, one a line; empty lines are skipped.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds no prompt.
    """
    path = Path(path).expanduser()
    prompts = [" ".join(line.split()) for line in _read_text(path).splitlines()]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise UserError(f"{path}: holds no prompt; expected one a line")
    return prompts


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float [0, 1] → uint8, rounded and clipped, any shape; uint8 stays as it is."""
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes float [0, 1] or uint8 [h, w, 3] as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def grid(
    images: Sequence[np.ndarray],
    *,
    columns: int | None = None,
    pad: int = 4,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    marked: Iterable[int] = (),
) -> np.ndarray:
    """Lays images out in rows, for contact sheets.

    Args:
        images: float [0, 1] or uint8, each [h, w, 3]; smaller ones stand in the middle of a cell of the largest.
        columns: images a row; None makes the sheet about square.
        pad: the border around each image, pixels; white, or coloured for marked images.
        scale: whole number by which each pixel is repeated.
        captions: one line under each image, cut to its width.
        marked: indices of the images that get the coloured frame.

    Returns:
        uint8 [H, W, 3].
    """
    marked = set(marked)
    tallest, widest = (max(image.shape[axis] for image in images) for axis in (0, 1))
    cells = []
    for i, image in enumerate(images):
        high, wide = tallest - image.shape[0], widest - image.shape[1]
        room = ((high // 2, high - high // 2), (wide // 2, wide - wide // 2), (0, 0))
        image = (
            np.pad(to_uint8(image), room, constant_values=255)
            .repeat(scale, axis=0)
            .repeat(scale, axis=1)
        )
        frame = Image.fromarray(image)
        cell = np.asarray(
            ImageOps.expand(frame, pad, fill=_MARK if i in marked else (255, 255, 255))
        )
        cells.append(
            cell
            if captions is None
            else np.concatenate([cell, _caption(captions[i], cell.shape[1])])
        )
    h, w = cells[0].shape[:2]
    columns = columns or int(np.ceil(np.sqrt(len(cells))))
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * h, min(columns, len(cells)) * w, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        y, x = i // columns * h, i % columns * w
        sheet[y : y + h, x : x + w] = cell
    return sheet


def _caption(text: str, width: int, height: int = 14) -> np.ndarray:
    strip = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(10)
    short = text = " ".join(text.split())
    while short and draw.textlength(short if short == text else short + "…", font=font) > width - 4:
        short = short[:-1].rstrip()
    draw.text((2, 0), short if short == text else short + "…", fill=_INK, font=font)
    return np.asarray(strip)  # [height, width, 3]


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Silences Pillow's own limit, whose message has no size: ours is checked after the header."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _stem(name: str) -> str:
    return Path(name).stem


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if file.read(1):
                return
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"{path}: no such file{did_you_mean(path.name, names, part=_stem)}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a file: {error.strerror}") from error
    raise UserError(f"{path}: the file is empty")


def _check_header(path: Path, image: Image.Image) -> None:
    w, h = image.size
    if w * h > MAX_PIXELS:
        found, limit = f"{w * h / 1e6:,.0f} million", f"{MAX_PIXELS / 1e6:,.0f} million"
        raise UserError(f"{path}: {w:,} x {h:,} pixels ({found}); expected at most {limit}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILL_FORMATS:
        raise UserError(
            f"{path}: animated, with {frames} frames; expected a still image: save one frame"
        )


def _to_rgb(path: Path, image: Image.Image) -> np.ndarray:
    """A decoded image of any mode → uint8 [h, w, 3] over white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)  # [h, w], 16 bits
        gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
        gray[values == image.info.get("transparency", -1)] = 255
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode in ("I", "F", "LAB"):
        raise UserError(
            f"{path}: pixels of the kind {image.mode!r}; expected 8 or 16 bits of gray, RGB or CMYK"
        )
    # Read before the conversions, which drop it from a palette image.
    profile, transparent = image.info.get("icc_profile"), image.has_transparency_data
    if image.mode != "CMYK":
        image = image.convert("RGBA" if transparent else "RGB")
    if profile:
        image = _to_srgb(image, profile)
    if transparent:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except (ImageCms.PyCMSError, OSError, TypeError):  # a broken profile: the picture is still good
        return image


def _entries(
    image: str, content: str, descriptor: str, field: str
) -> list[tuple[Path, str, str, str]]:
    """(path, where its words are given, content, descriptor) of each reference."""
    if image.startswith("bundled:"):
        return _bundled(image.removeprefix("bundled:"), content, descriptor, field)
    if not image.strip():
        raise UserError(
            f"{field}.image: empty; expected an image file, a folder of images or a JSONL file"
        )
    path = Path(image).expanduser()
    if path.is_dir():
        named = [(file, content or stem_words(file)) for file in images_in(path)]
        return [(file, field, content, descriptor) for file, content in named]
    if path.suffix.lower() == ".jsonl":
        return _jsonl_entries(path, content, descriptor)
    return [(path, field, content, descriptor)]


def _bundled(
    name: str, content: str, descriptor: str, field: str
) -> list[tuple[Path, str, str, str]]:
    entries = {
        path.stem: (path, where, c, d) for path, where, c, d in _jsonl_entries(BUNDLED, "", "")
    }
    if name not in entries:
        raise UserError(
            f"{field}.image: no bundled image {name!r}{did_you_mean(name, entries)} "
            f"(bundled: {', '.join(sorted(entries))})"
        )
    path, where, own_content, own_descriptor = entries[name]
    return [(path, where, content or own_content, descriptor or own_descriptor)]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; UserError if there is none, a warning of what is left out."""
    Image.init()
    readable = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in readable]
    if not images:
        raise UserError(f"{folder}: no image in this folder; expected PNG, JPEG, WebP, … files")
    others = [p.name for p in files if p not in images]
    if others:
        _LOG.warning("%s: left out what is not an image: %s", folder, ", ".join(others))
    return images


def _jsonl_entries(path: Path, content: str, descriptor: str) -> list[tuple[Path, str, str, str]]:
    entries = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: expected JSON, found something else: {error}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(k, ""), str) for k in _KEYS):
            raise UserError(
                f'{where}: expected {{"image": "…", "content": "…", "descriptor": "…"}} with strings'
            )
        for key in row:
            if key not in _KEYS and did_you_mean(key, _KEYS):
                raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
        if not row.get("image"):
            raise UserError(f"{where}: no 'image'; expected a path relative to the JSONL file")
        file = path.parent / Path(row["image"]).expanduser()
        words = [
            row.get(k, "").strip() or given
            for k, given in (("content", content), ("descriptor", descriptor))
        ]
        entries.append((file, where, *words))
    if not entries:
        raise UserError(
            f'{path}: holds no reference; expected lines of {{"image", "content", "descriptor"}}'
        )
    return entries


def _words(
    path: Path, where: str, content: str, descriptor: str, needs: Sequence[str]
) -> tuple[str, str]:
    for field, text, example in (
        ("content", content, "a house"),
        ("descriptor", descriptor, "in watercolor painting style"),
    ):
        if not text and field in needs:
            raise UserError(
                f'{where}.{field}: empty for {path.name}; expected words like "{example}"'
            )
    return content, descriptor


def stem_words(path: Path) -> str:
    """The words of a file's name: "red_house-2.png" → "red house"; "0001.png" → ""."""
    return re.sub(r"[\W_]+", " ", re.sub(r"[\W_\d]+$", "", path.stem)).strip()


def _read_text(path: Path) -> str:
    _check_file(path)
    try:
        return path.read_text(
            encoding="utf-8-sig"
        )  # a byte order mark is not a part of the first prompt
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); expected a text file"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
