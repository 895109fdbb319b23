"""One image or mask: read robustly from a file, cut or padded to a size, and written as a PNG."""

import contextlib
import io
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_bytes
from styledrop_jax.io.paths import check_file, expanded, shown_path

# 300 MB decoded: more than any camera's usual image, less than a laptop's memory.
MAX_PIXELS = 100_000_000
EXPECTED = "PNG, JPEG, WebP, TIFF, AVIF, …"

_LOG = logging.getLogger(__name__)
_PILLOW_LIMIT = threading.Lock()
# Pillow may try these decoders and no others: some of the others start programs, as EPS does.
_FORMATS = "PNG JPEG MPO WEBP GIF BMP DIB TIFF PPM PSD AVIF JPEG2000".split()
# Several frames in such a file are previews and layers, not an animation.
_STILL_FORMATS = ("MPO", "PSD")

_PNG = b"\x89PNG\r\n\x1a\n"
# What decides the pixels of a PNG and how it is turned; all else in it is left out unread.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_ROTATING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_LONGEST_TEXT = 2**16  # bytes
_LONGEST_PROFILE = 2**25  # bytes

_LANCZOS = Image.Resampling.LANCZOS

_VARIES = 64  # a layer's opacities differ by as much
_BLACK = 64  # a layer's pixel is black if no channel reaches this
_FEW_COLOURS = 8  # a layer of strokes has no more, counted at 4 bits a channel


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads one still image: PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, PSD, AVIF or JPEG 2000.

    The EXIF rotation is applied, colours with a profile are converted to sRGB, transparency is laid
    over white, and 16-bit pixels are scaled to 8. Texts and broken profiles are ignored.

    Returns:
        uint8 [h, w, 3].

    Raises:
        UserError: the file is missing, empty, no image, damaged or cut short, animated, or larger
            than `MAX_PIXELS` (which is read from its header, before anything is decoded).
    """
    return over_white(read_layer(path))


def read_layer(path: str | os.PathLike[str]) -> Image.Image:
    """The same before it is laid over white: RGB, or RGBA if it may be transparent somewhere."""
    return _decoded(expanded(path))


def from_pillow(image: Image.Image) -> np.ndarray:
    """As `read_image`, for an image in memory: uint8 [h, w, 3].

    Raises:
        UserError: its pixels are of a kind that has no known scale.
    """
    return over_white(in_srgb(image))


def in_srgb(image: Image.Image) -> Image.Image:
    """The same as RGB, or as RGBA if it may be transparent somewhere."""
    _check_format("the image", image)
    return _in_srgb("the image", _upright("the image", image))


def as_pillow(array: np.ndarray, name: str = "the image") -> Image.Image:
    """An array [h, w], [h, w, 3] or [h, w, 4], uint8, bool, or float in [0, 1], as an image.

    Raises:
        UserError: it is of another shape or type, or out of that range; the message calls it
            `name`.
    """
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    known = array.dtype in (np.uint8, np.bool_) or array.dtype.kind == "f"
    if not (is_image and known and array.size):
        raise UserError(
            f"{name}: found an array {list(array.shape)} of {array.dtype}, expected [h, w, 3] of "
            "uint8, or of floats from 0 to 1"
        )
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise UserError(
            f"{name}: found floats from {array.min():.3g} to {array.max():.3g}, expected 0 to 1"
        )
    return Image.fromarray(to_uint8(array))


def over_white(image: Image.Image) -> np.ndarray:
    """RGB or RGBA → uint8 [h, w, 3]."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return np.array(image)


def readable_suffixes() -> set[str]:
    """The endings of the names of files that `read_image` reads: ".png", ".jpg", …"""
    suffixes = set()
    for suffix, kind in Image.registered_extensions().items():
        if kind in _FORMATS:
            suffixes.add(suffix)
    return suffixes


def read_mask(path: str | os.PathLike[str], image_shape: tuple[int, int]) -> np.ndarray:
    """Reads a mask for editing: white is generated anew, black is kept.

    A mask with a transparent part is a layer: what is painted on it in any colour but black is
    generated anew, or, if the layer is all black or an image of many colours, its transparent part.

    Args:
        path: an image file of any mode.
        image_shape: (h, w) of the image that it belongs to, pixels.

    Returns:
        bool [h, w], True where the image is generated anew.

    Raises:
        UserError: it cannot be read, has another size, or marks nothing or everything.
    """
    path = expanded(path)
    return as_mask(_decoded(path), image_shape, name=shown_path(path))


def as_mask(
    image: Image.Image, image_shape: tuple[int, int], *, name: str = "the mask"
) -> np.ndarray:
    """The same for a mask in memory; errors call it `name`."""
    _check_format(name, image)
    pixels = np.asarray(_in_srgb(name, image))  # [h, w, 3 or 4]
    h, w = pixels.shape[:2]
    height, width = image_shape
    if (h, w) != (height, width):
        raise UserError(
            f"{name}: the mask is {w} x {h} pixels; expected the image's {width} x {height}"
        )
    is_layer = pixels.shape[-1] == 4 and np.ptp(pixels[..., 3]) >= _VARIES
    if is_layer:
        mask = _layer_mask(name, pixels)
    else:
        mask = pixels[..., :3].mean(axis=-1) >= 128
    if pixels.shape[-1] == 4 and not pixels[..., 3].any():
        raise UserError(f"{name}: the mask is all transparent; expected white or a painted part")
    if not mask.any():
        raise UserError(
            f"{name}: the mask is all black; expected white where the image is to be generated anew"
        )
    if mask.all():
        raise UserError(
            f"{name}: the mask marks the whole image; expected black where it is kept, or no mask"
        )
    return mask


def to_square(
    image: np.ndarray,
    size: int,
    *,
    ground: str = "",
    crop: tuple[float, float, float] | None = None,
) -> np.ndarray:
    """Cuts a square window out of an image, padded to a square or not, and resizes it by Lanczos.

    Args:
        image: uint8 [h, w, 3].
        size: the side of the result, pixels.
        ground: "#rrggbb", which pads the image; empty if nothing does.
        crop: (x, y, side): `side` of the window as a share of the shorter side of the image, padded
            or not, in (0, 1], and its place in the room that is left, 0 (left, top) to 1. None is
            (0.5, 0.5, 1), the largest square from the middle.

    Returns:
        uint8 [size, size, 3].
    """
    if ground:
        return _padded(image, size, ground, crop or (0.5, 0.5, 1.0))
    return cut(image, (size, size), crop)


def cut(
    image: np.ndarray, size: tuple[int, int], crop: tuple[float, float, float] | None = None
) -> np.ndarray:
    """Cuts a window of the shape of `size` out of an image uint8 [h, w, 3], and resizes it to that
    height and width by Lanczos; `crop` is as in `to_square`, of the largest such window.
    """
    h, w = image.shape[:2]
    height, width = size
    x, y, share = crop or (0.5, 0.5, 1.0)
    if w * height >= h * width:
        tall, wide = share * h, share * h * (width / height)
    else:
        tall, wide = share * w * (height / width), share * w
    left = x * (w - wide)
    top = y * (h - tall)
    box = (left, top, left + wide, top + tall)
    return np.asarray(Image.fromarray(image).resize((width, height), _LANCZOS, box=box))


def _padded(
    image: np.ndarray, size: int, ground: str, crop: tuple[float, float, float]
) -> np.ndarray:
    """The same of an image that `ground` makes a square."""
    h, w = image.shape[:2]
    x, y, share = crop
    whole = round(size / share)  # the side of the padded square, of which the window has `size`
    height = max(1, round(h * whole / max(h, w)))
    width = max(1, round(w * whole / max(h, w)))
    left = (whole - width) // 2 - round(x * (whole - size))
    top = (whole - height) // 2 - round(y * (whole - size))
    square = Image.new("RGB", (size, size), ground)
    square.paste(Image.fromarray(image).resize((width, height), _LANCZOS), (left, top))
    return np.asarray(square)


def resized(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The whole of an image uint8 [h, w, 3] at `size` = (height, width), pixels, by Lanczos."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), _LANCZOS))


def within(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 [h, w, 3] reduced at its aspect, to at most `side` pixels a side."""
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side), _LANCZOS)
    return np.asarray(reduced)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float [0, 1] → uint8, rounded and clipped, any shape; uint8 stays as it is."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes float [0, 1] or uint8 [h, w, 3 or 4] as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _decoded(path: Path) -> Image.Image:
    """The image in a file, upright and in sRGB: RGB, or RGBA if it may be transparent somewhere."""
    name = shown_path(path)
    check_file(path)
    if not path.stat().st_size:
        raise UserError(f"{name}: the file is empty")
    try:
        with _own_limit(), path.open("rb") as file:
            pixels, profile = _bare_png(file)
            image = Image.open(pixels, formats=_decoders())
            kind = image.format
            _check_header(name, image)
            image.load()
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{name}: not an image of a format that is read; expected {EXPECTED}"
        ) from None
    except Exception as error:  # Pillow's readers raise errors of every kind on damaged files
        reason = " ".join(str(error).split())[:50] or type(error).__name__
        raise UserError(f"{name}: the image is damaged or cut short: {reason}") from error
    if profile:
        image.info["icc_profile"] = profile
    image = _upright(name, image)
    # Pillow gives 16-bit PGM as 32-bit integers; elsewhere those have no known scale.
    if image.mode == "I" and kind == "PPM":
        image = image.convert("I;16")
    return _in_srgb(name, image)


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Silences Pillow's own limit, whose message has no size: ours is checked after the header."""
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decoders() -> list[str]:
    """Those of `_FORMATS` that this Pillow has."""
    Image.init()
    return [kind for kind in _FORMATS if kind in Image.OPEN]


def _bare_png(file: IO[bytes]) -> tuple[IO[bytes], bytes | None]:
    """A PNG without what does not decide its pixels, and its colour profile; any other file as it
    is.

    Pillow refuses a whole PNG for a text or a profile in it that is damaged or longer than a
    megabyte.
    """
    if file.read(len(_PNG)) != _PNG:
        file.seek(0)
        return file, None
    bare = io.BytesIO()
    bare.write(_PNG)
    profile = None
    kind = b""
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in _PNG_CHUNKS or kind == b"IEND":
            bare.write(head + file.read(length + 4))
        elif kind == b"iCCP":
            profile = _unpacked_profile(file.read(length + 4)[:length])
        elif kind in _PNG_TEXTS and length <= _LONGEST_TEXT:
            text = file.read(length + 4)
            if text.startswith(_ROTATING_TEXTS):
                bare.write(head + text)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    bare.seek(0)
    return bare, profile


def _unpacked_profile(chunk: bytes) -> bytes | None:
    """The profile in a PNG's iCCP chunk: its name, a zero byte, the method, zlib data."""
    packed = chunk.partition(b"\0")[2]
    try:
        return zlib.decompressobj().decompress(packed[1:], _LONGEST_PROFILE)
    except zlib.error:
        return None


def _check_format(name: str, image: Image.Image) -> None:
    """Refuses what Pillow opened and would decode when its pixels are asked for, by a program."""
    if image.format is not None and image.format not in _FORMATS:
        raise UserError(f"{name}: an image of the kind {image.format}; expected {EXPECTED}")


def _check_header(name: str, image: Image.Image) -> None:
    w, h = image.size
    if w * h > MAX_PIXELS:
        found = f"{w:,} x {h:,} pixels ({w * h / 1e6:,.0f} million)"
        raise UserError(f"{name}: {found}; expected at most {MAX_PIXELS / 1e6:,.0f} million")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILL_FORMATS:
        raise UserError(
            f"{name}: animated, with {frames} frames; expected a still image: save one frame"
        )


def _upright(name: str, image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader of EXIF raises errors of every kind on damaged entries
        _LOG.warning("%s: its EXIF data cannot be read: it is taken as it lies in the file", name)
        return image


def _in_srgb(name: str, image: Image.Image) -> Image.Image:
    """A decoded image of any mode → RGB, or RGBA if it may be transparent somewhere."""
    if image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise UserError(
            f"{name}: pixels of the kind {image.mode!r}; expected 8 or 16 bits of gray, RGB or CMYK"
        )
    # Both are read before the conversions, which drop them from a palette image.
    profile = image.info.get("icc_profile")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != "CMYK":
        image = image.convert(mode)
    if profile:
        image = _by_profile(image, profile, mode)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of gray → RGB, or RGBA if one value of gray stands for transparency."""
    values = np.asarray(image).astype(np.int64)  # [h, w]
    gray = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if "transparency" not in image.info:
        return gray.convert("RGB")
    solid = values != image.info["transparency"]
    alpha = Image.fromarray(solid.astype(np.uint8) * 255)
    return Image.merge("RGBA", (gray, gray, gray, alpha))


def _by_profile(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, TypeError):
        return image  # the profile is broken, or for other colours: the image is still good
    return converted or image


def _layer_mask(name: str, pixels: np.ndarray) -> np.ndarray:
    """What a layer uint8 [h, w, 4] with a transparent part marks, bool [h, w]: see `read_mask`."""
    alpha = pixels[..., 3]
    solid = alpha >= (int(alpha.min()) + int(alpha.max())) / 2
    painted = solid & (pixels[..., :3].max(axis=-1) >= _BLACK)
    share = painted.sum() / solid.sum()
    if share < 0.01:
        _LOG.warning(
            "%s: all that is painted is black, which is kept: the transparent part is generated "
            "anew; for the reverse, paint in another colour",
            name,
        )
        return ~solid
    if _is_colourful(pixels[solid]):
        _LOG.warning(
            "%s: an image of many colours with a transparent part: that part is generated anew; "
            "for the reverse, paint in one colour",
            name,
        )
        return ~solid
    if share < 0.99:
        _LOG.warning(
            "%s: painted in black too: what is black or transparent is kept, the rest is generated "
            "anew",
            name,
        )
    return painted


def _is_colourful(pixels: np.ndarray) -> bool:
    """Whether more than a few colours are needed for 95 of 100 pixels, uint8 [n, 4]."""
    coarse = pixels[:, :3].astype(int) >> 4
    counts = np.bincount(coarse @ [256, 16, 1])
    few = np.sort(counts)[-_FEW_COLOURS:]
    return few.sum() < 0.95 * len(pixels)
