"""What autoencoders keep of drawings of 128 pixels, by treatment and by fill of a composed style.

python benchmarks/autoencoders.py --corpus corpus --sheet kept.png \\
    --codec styledrop_jax/assets/emoji128/vae styledrop_jax/assets/emoji128-muse/vqvae

One of 64 pixels is given the drawings at half the size, and what it restores is doubled.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flags import of_corpus
from flax import nnx
from PIL import Image

from styledrop_jax.emoji import corpus, styles
from styledrop_jax.emoji.tasks.doubling import Autoencoder, halved, load
from styledrop_jax.emoji.treatments import (
    HELD_OUT_TREATMENTS,
    TRAINED_TREATMENTS,
    TREATMENTS_BY_NAME,
    Treatment,
)
from styledrop_jax.io import image_files, sheets
from styledrop_jax.models.vqgan import VQModel

_EACH = 16  # drawings of held-out concepts under each
_SHOWN = 2  # of these on the sheet
_PLAIN_STYLE = styles.Parts(
    line="thin", fill="flat", inks=("navy", "red"), ground="cream", texture="plain", edge="clean"
)


def main() -> None:
    parser = of_corpus(__doc__, workdir=False)
    parser.add_argument(
        "--codec", type=Path, nargs="+", required=True, help="exported vae or vqvae folders"
    )
    parser.add_argument("--sheet", type=Path, required=True, help="the picture to write")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus, size=128)
    models = [load(folder) for folder in flags.codec]
    shown = []
    print(f"| | held out | {' | '.join(map(str, flags.codec))} |")
    print(f"|---|---{'|---' * len(models)}|")
    for name, treatment, is_held_out in _rows():
        images = _drawings(data, treatment)
        found = [_restored(model, images) for model in models]
        errors = " | ".join(f"{np.abs(each - images).mean():.3f}" for each in found)
        print(f"| {name} | {'yes' if is_held_out else ''} | {errors} |")
        for row in zip(images[:_SHOWN], *(each[:_SHOWN] for each in found), strict=True):
            shown += row
    sheet = sheets.grid(shown, columns=(1 + len(models)) * _SHOWN * 4)
    image_files.write_png(flags.sheet, sheet)


def _rows() -> list[tuple[str, Treatment, bool]]:
    """Name, treatment, and whether no model trains on it."""
    rows = [(treatment.name, treatment, False) for treatment in TRAINED_TREATMENTS]
    rows += [(treatment.name, treatment, True) for treatment in HELD_OUT_TREATMENTS]
    for fill in styles.FILLS:
        parts = dataclasses.replace(_PLAIN_STYLE, fill=fill)
        drawn = dataclasses.replace(
            TREATMENTS_BY_NAME["comic"], apply=functools.partial(styles.draw, parts)
        )
        rows.append((f"style: {fill}", drawn, fill in styles.HELD_OUT["fill"]))
    return rows


def _drawings(data: corpus.Corpus, treatment: Treatment) -> np.ndarray:
    """Held-out concepts under a treatment, float32 [n, 128, 128, 3] in [0, 1]."""
    pool = data.pool("held_out_concepts", "full")
    chosen = pool[np.linspace(0, len(pool) - 1, _EACH).astype(int)]
    images = np.stack([data.centred(int(drawing), treatment) for drawing in chosen])
    return images.astype(np.float32) / 255


@nnx.jit
def _there_and_back(model: Autoencoder, images: jax.Array) -> jax.Array:
    if isinstance(model, VQModel):
        return model.decode(model.encode(images))
    return jnp.clip(model.decode(model.encode(images).mode()), 0, 1)


def _restored(model: Autoencoder, images: np.ndarray) -> np.ndarray:
    if model.config.sample_size == 64:
        return _doubled(np.asarray(_there_and_back(model, halved(jnp.asarray(images)))))
    return np.asarray(_there_and_back(model, jnp.asarray(images)))


def _doubled(images: np.ndarray) -> np.ndarray:
    """By cubic interpolation."""
    found = []
    for image in images:
        bands = []
        for band in np.moveaxis(image, -1, 0):
            large = Image.fromarray(band).resize((128, 128), Image.Resampling.BICUBIC)
            bands.append(np.asarray(large))
        found.append(np.clip(np.stack(bands, axis=-1), 0, 1))
    return np.stack(found)


if __name__ == "__main__":
    main()
