"""The TFDS builder of the corpus: one record is one drawing of one concept by one artist.

`launch/fetch_corpus.sh` fetches the npm packages and builds it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from styledrop_jax.emoji.drawings import (
    ARTISTS,
    HELD_OUT_ARTISTS,
    SIZES,
    TRAINED_ARTISTS,
    Artist,
    Concept,
    match_drawings,
    read_concepts,
    read_icons,
    render,
)
from styledrop_jax.emoji.words import CORE_EXCLUDED, CORE_INCLUDED, CORE_SUBGROUPS
from styledrop_jax.errors import UserError

MIN_SETS = 5
"""A concept is kept when at least this many sets drew it."""


class Emoji64(tfds.core.GeneratorBasedBuilder):
    """The corpus.

    A record holds `image_64` [64, 64, 4] and `image_128` [128, 128, 4], uint8 RGBA, `concept`,
    `artist`, `tags` (comma separated), `group`, `subgroup`, and `core`, whether the concept belongs
    to the core vocabulary. Split `train` holds the artists that base models learn from, `test`
    those held out. Read it without TensorFlow through `as_data_source`, or with `corpus.load`.

    Args:
        npm: the `node_modules` folder to build from; not needed to read a built corpus.
        **kwargs: `tfds.core.DatasetBuilder`'s, such as `data_dir`.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, npm: Path | str | None = None, **kwargs: Any):
        self._npm = None if npm is None else Path(npm)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"core": np.bool_}
        for size in SIZES:
            features[f"image_{size}"] = tfds.features.Image(
                shape=(size, size, 4), dtype=np.uint8, encoding_format="png"
            )
        for name in ("concept", "artist", "tags", "group", "subgroup"):
            features[name] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Everyday concepts drawn by nine open emoji sets; "
                "64 x 64 and 128 x 128 pixels, transparent background."
            ),
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {
            "train": self._generate_examples(TRAINED_ARTISTS),
            "test": self._generate_examples(HELD_OUT_ARTISTS),
        }

    def _generate_examples(self, artists: Sequence[Artist]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._npm is None:
            raise UserError(
                "corpus: no node_modules folder given to build from; see launch/fetch_corpus.sh"
            )
        concepts = read_concepts(self._npm)
        matched = match_drawings(self._npm)
        sets: Counter[str] = Counter()
        for found in matched.values():
            sets.update(found.keys())
        for artist in artists:
            icons = read_icons(self._npm, artist)
            for code, name in sorted(matched[artist.name].items()):
                if sets[code] < MIN_SETS:
                    continue
                images = {f"image_{size}": render(icons, name, size=size) for size in SIZES}
                if None in images.values():
                    continue
                concept = concepts[code]
                record = {
                    **images,
                    "concept": concept.label,
                    "artist": artist.name,
                    "tags": ",".join(concept.tags),
                    "group": concept.group,
                    "subgroup": concept.subgroup,
                    "core": sets[code] == len(ARTISTS) and _is_core(concept),
                }
                yield f"{artist.name}/{code}", record


def _is_core(concept: Concept) -> bool:
    """Whether a concept belongs to the core vocabulary, if every set drew it."""
    if concept.label in CORE_INCLUDED:
        return True
    return concept.subgroup in CORE_SUBGROUPS and concept.label not in CORE_EXCLUDED


def build(npm: Path | str, data_dir: Path | str) -> None:
    """Renders the corpus from the npm packages in `npm` and writes it below `data_dir`."""
    Emoji64(npm, data_dir=data_dir).download_and_prepare()
