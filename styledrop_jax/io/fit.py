"""How an image that is no square becomes one: its middle is cut out, or its sides are padded."""

import os

import numpy as np

from styledrop_jax.io.image_files import over_white, read_layer

FITS = ("auto", "crop", "pad")

_PLAIN = 16  # what a plain border differs from its median at most, of 255: paper's and JPEG's noise


def read_fitted(path: str | os.PathLike[str], fit: str) -> tuple[np.ndarray, str]:
    """Reads an image as `read_image` does, and decides how it becomes a square.

    Args:
        path: the image file.
        fit: "crop" cuts out the middle; "pad" fills the sides with the colour of the ground, which
            is white if the image is transparent somewhere, else the median of its border; "auto"
            pads where it is transparent or its border of one colour, and else cuts. It also cuts
            where only ground would be lost: so a drawing stays as large as it can be.

    Returns:
        uint8 [h, w, 3], and the colour that pads it, "#rrggbb", as `to_square` takes it; empty if
        nothing does.
    """
    layer = read_layer(path)
    image = over_white(layer)
    if fit == "crop" or layer.width == layer.height:
        return image, ""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    if layer.mode == "RGBA" and not np.asarray(layer)[..., 3].all():
        ground = np.array([255, 255, 255])
    elif fit == "auto" and np.abs(border - ground).max() > _PLAIN:
        return image, ""
    if fit == "auto" and np.abs(_outside(image) - ground).max() <= _PLAIN:
        return image, ""
    return image, "#" + ground.astype(np.uint8).tobytes().hex()


def _outside(image: np.ndarray) -> np.ndarray:
    """The pixels [n, 3] that are not in the middle square."""
    h, w = image.shape[:2]
    upright = image if h > w else image.swapaxes(0, 1)
    side = min(h, w)
    top = (max(h, w) - side) // 2
    return np.concatenate([upright[:top], upright[top + side :]]).reshape(-1, 3).astype(int)
