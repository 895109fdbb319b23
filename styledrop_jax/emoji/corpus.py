"""The corpus of open emoji drawings: the TFDS builder, and the whole of it in memory with its splits.

`launch/fetch_corpus.sh` fetches the npm packages and builds it. One record is one drawing of one concept by one artist.
Base models train on split `train`: never on held-out artists, treatments, concepts or (concept, artist) pairs.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from styledrop_jax.emoji import compose
from styledrop_jax.emoji.drawings import (
    ARTISTS,
    SIZE,
    Artist,
    match_drawings,
    read_concepts,
    read_icons,
    render,
)
from styledrop_jax.emoji.inks import TWO_COLOUR
from styledrop_jax.emoji.treatments import TREATMENTS, Treatment
from styledrop_jax.emoji.words import (
    CORE_EXCLUDED,
    CORE_INCLUDED,
    CORE_SUBGROUPS,
    EVERYDAY,
    STARTER,
    SYNONYMS,
)
from styledrop_jax.errors import UserError, did_you_mean

MIN_SETS = 5
"""A concept is kept when at least this many sets drew it."""


class Emoji64(tfds.core.GeneratorBasedBuilder):
    """One drawing a record: `image` [64, 64, 4] uint8 RGBA, `concept`, `artist`, `tags` (comma separated), `group`,
    `subgroup`, and `core`, whether the concept belongs to the core vocabulary.

    Split `train` holds the artists base models learn from, `test` those held out. Read it without TensorFlow through
    `as_data_source`, or with `load`.

    Args:
        npm: the `node_modules` folder to build from; not needed to read a built corpus.
        **kwargs: `tfds.core.DatasetBuilder`'s, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, npm: Path | str | None = None, **kwargs):
        self._npm = None if npm is None else Path(npm)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = {
            name: tfds.features.Text()
            for name in ("concept", "artist", "tags", "group", "subgroup")
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Everyday concepts drawn by nine open emoji sets; 64 x 64 pixels, transparent background.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIZE, SIZE, 4), dtype=np.uint8, encoding_format="png"
                    ),
                    "core": np.bool_,
                    **text,
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {
            "train": self._generate_examples(held_out=False),
            "test": self._generate_examples(held_out=True),
        }

    def _generate_examples(self, *, held_out: bool) -> Iterator[tuple[str, dict]]:
        if self._npm is None:
            raise UserError(
                "corpus: no node_modules folder given to build from; see launch/fetch_corpus.sh"
            )
        concepts = read_concepts(self._npm)
        matched = match_drawings(self._npm)
        sets = Counter(code for found in matched.values() for code in found)
        for artist in (artist for artist in ARTISTS if artist.held_out == held_out):
            icons = read_icons(self._npm, artist)
            for code, name in sorted(matched[artist.name].items()):
                concept = concepts[code]
                image = render(icons, name) if sets[code] >= MIN_SETS else None
                if image is not None:
                    yield (
                        f"{artist.name}/{code}",
                        {
                            "image": image,
                            "concept": concept.label,
                            "artist": artist.name,
                            "tags": ",".join(concept.tags),
                            "group": concept.group,
                            "subgroup": concept.subgroup,
                            "core": sets[code] == len(ARTISTS)
                            and _is_core(concept.label, concept.subgroup),
                        },
                    )


def _is_core(label: str, subgroup: str) -> bool:
    return (subgroup in CORE_SUBGROUPS and label not in CORE_EXCLUDED) or label in CORE_INCLUDED


def build(npm: Path | str, data_dir: Path | str) -> None:
    """Renders the corpus from the npm packages in `npm` and writes it below `data_dir`."""
    Emoji64(npm, data_dir=data_dir).download_and_prepare()


SPLITS = ("train", "held_out_pairs", "held_out_concepts")
VOCABULARIES = ("starter", "core", "full")
"""Each holds the one before it: what the first shipped Muse draws, what all sets drew, everything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How a picture is drawn: an artist and a treatment."""

    artist: Artist
    treatment: Treatment

    @property
    def name(self) -> str:
        return f"{self.artist.name} / {self.treatment.name}"

    @property
    def descriptor(self) -> str:
        """The style in plain words, such as "in glossy 3d pencil sketch style"."""
        return compose.descriptor(self.artist, self.treatment)

    @property
    def held_out(self) -> bool:
        return self.artist.held_out or self.treatment.held_out


def styles(*, held_out: bool) -> tuple[Style, ...]:
    """All artist x treatment pairs that base models saw, or those they did not."""
    every = (
        Style(artist=artist, treatment=treatment) for artist in ARTISTS for treatment in TREATMENTS
    )
    return tuple(style for style in every if style.held_out == held_out)


def _share(text: str) -> float:
    """A number in [0, 1) that depends on nothing but `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _check(kind: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(
            f"{kind}: found '{value}', expected one of {', '.join(options)}{did_you_mean(value, options)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Every drawing, decoded, with the names that index it.

    Attributes:
        drawings: RGBA with straight alpha, uint8 [n, 64, 64, 4].
        concept: index into `concepts` of each drawing, int32 [n].
        artist: index into `ARTISTS` of each drawing, int32 [n].
        concepts: the labels, sorted.
        core: whether each concept belongs to the core vocabulary, bool [c].
    """

    drawings: NDArray[np.uint8]
    concept: NDArray[np.int32]
    artist: NDArray[np.int32]
    concepts: tuple[str, ...]
    core: NDArray[np.bool_]

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """For each concept its label and the other names captions use."""
        labels = set(self.concepts)
        official = {
            everyday: label for label, everyday in EVERYDAY.items() if len(label.split()) <= 2
        }
        others = ((SYNONYMS.get(label), official.get(label)) for label in self.concepts)
        return tuple(
            (label, *dict.fromkeys(name for name in more if name and name not in labels))
            for label, more in zip(self.concepts, others, strict=True)
        )

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        pairs = zip(self.concept, self.artist, strict=True)
        return {
            (self.concepts[concept], ARTISTS[artist].name): i
            for i, (concept, artist) in enumerate(pairs)
        }

    @cached_property
    def _split(self) -> NDArray[np.int32]:
        """The split of each drawing as an index into SPLITS, -1 for held-out artists, int32 [n].

        One in fifteen of the concepts outside the core is held out whole (5 % of all; whatever the core names must be
        drawable), and of seven in ten others one drawing, so that 200 pairs of distinct core concepts are left to test
        retrieval on.
        """
        split = np.zeros(len(self.drawings), np.int32)
        held_out = np.array([artist.held_out for artist in ARTISTS])
        for c, label in enumerate(self.concepts):
            mine = self.concept == c
            if not self.core[c] and _share(f"concept {label}") < 1 / 15:
                split[mine] = SPLITS.index("held_out_concepts")
            else:
                split[mine & (self.artist == int(_share(f"pair {label}") * 10))] = SPLITS.index(
                    "held_out_pairs"
                )
        split[held_out[self.artist]] = -1
        return split

    def vocabulary(self, name: str) -> NDArray[np.bool_]:
        """Which concepts belong to a vocabulary, bool [c].

        Raises:
            UserError: no such vocabulary.
        """
        _check("vocabulary", name, VOCABULARIES)
        starter = np.array([label in STARTER for label in self.concepts])
        return {
            "starter": self.core & starter,
            "core": self.core,
            "full": np.ones(len(self.concepts), bool),
        }[name]

    def pool(self, split: str, vocabulary: str) -> NDArray[np.int32]:
        """Indices of the drawings that belong to a split and a vocabulary.

        Raises:
            UserError: no such split or vocabulary.
        """
        _check("split", split, SPLITS)
        _check("vocabulary", vocabulary, VOCABULARIES)
        return self._pools[split, vocabulary][0]

    @cached_property
    def _pools(self) -> dict[tuple[str, str], tuple[NDArray[np.int32], list[NDArray[np.int32]]]]:
        """Split and vocabulary → all their drawings, and those of each artist."""
        pools = {}
        for s, split in enumerate(SPLITS):
            for vocabulary in VOCABULARIES:
                allowed = (self._split == s) & self.vocabulary(vocabulary)[self.concept]
                by_artist = [
                    np.flatnonzero(allowed & (self.artist == a)).astype(np.int32)
                    for a in range(len(ARTISTS))
                ]
                pools[split, vocabulary] = np.flatnonzero(allowed).astype(np.int32), by_artist
        return pools

    def scene(
        self, index: int, *, split: str, vocabulary: str, seed: int
    ) -> tuple[compose.Scene, str]:
        """Example `index` in words: the scene and its caption; see `example`."""
        rng = np.random.default_rng((seed, index))
        pool = self.pool(split, vocabulary)
        if not len(pool):
            raise UserError(
                f"corpus: split '{split}' of vocabulary '{vocabulary}' is empty; use vocabulary 'full'"
            )
        first = pool[rng.integers(len(pool))]
        same_artist = self._pools[split, vocabulary][1][self.artist[first]]
        drawings = int(first), int(same_artist[rng.integers(len(same_artist))])
        # A plain drawing is what a bare prompt asks for; the rest spread over points and directions of style.
        roll = rng.random()
        kinds = _TRAINING[:1] if roll < 0.35 else _TRAINING[1:] if roll < 0.7 else TWO_COLOUR
        treatment = kinds[rng.integers(len(kinds))]
        names = [self.names[self.concept[drawing]] for drawing in drawings]
        left, right = (
            known[0] if rng.random() < 0.85 else known[rng.integers(len(known))] for known in names
        )
        label = self.concepts[self.concept[first]]
        scene = compose.draw_scene(
            rng, drawings, (left, right), ARTISTS[self.artist[first]], treatment, label=label
        )
        return scene, compose.caption(rng, scene)

    def example(
        self, index: int, *, split: str = "train", vocabulary: str = "core", seed: int = 0
    ) -> tuple[NDArray[np.uint8], str, compose.Scene]:
        """Returns example `index` of the endless stream that base models train on; the same arguments, the same bytes.

        Args:
            index: any number from 0.
            split: one of `SPLITS`; all of them use training artists and training treatments.
            vocabulary: one of `VOCABULARIES`.
            seed: another stream.

        Returns:
            Picture uint8 [64, 64, 3], caption, and what it shows.

        Raises:
            UserError: no such split or vocabulary, or an empty one (the core holds no concept out).
        """
        scene, caption = self.scene(index, split=split, vocabulary=vocabulary, seed=seed)
        return compose.picture(scene, self.drawings), caption, scene

    def true_image(
        self, concept: str, artist: str = "noto", treatment: str = "plain"
    ) -> NDArray[np.uint8]:
        """Returns how `artist` drew `concept`, treated, in the middle of a white square: uint8 [64, 64, 3].

        Raises:
            UserError: a name the corpus does not know, or a concept this artist did not draw.
        """
        treatments = {known.name: known for known in TREATMENTS}
        artists = {known.name: known for known in ARTISTS}
        known_names = (
            ("concept", concept, self.concepts),
            ("artist", artist, artists),
            ("treatment", treatment, treatments),
        )
        for kind, name, known in known_names:
            if name not in known:
                raise UserError(
                    f"corpus {kind}: found '{name}', expected one of its {len(known)}{did_you_mean(name, known)}"
                )
        if (concept, artist) not in self._index:
            raise UserError(
                f"corpus: '{artist}' did not draw '{concept}'; expected a pair it holds"
            )
        return self._centred(self._index[concept, artist], treatments[treatment])

    def _centred(self, drawing: int, treatment: Treatment) -> NDArray[np.uint8]:
        scene = compose.Scene(
            drawings=(int(drawing),),
            names=("",),
            artist=ARTISTS[self.artist[drawing]],
            treatment=treatment,
        )
        return compose.picture(scene, self.drawings)

    def held_out_images(self, count: int) -> NDArray[np.uint8]:
        """Pictures [count, 64, 64, 3] of concepts no model saw, spread over all: plain and treated in turn."""
        pool = self.pool("held_out_concepts", "full")
        order = np.argsort(
            [_share(f"image {self.concepts[self.concept[i]]} {self.artist[i]}") for i in pool]
        )
        chosen = pool[np.resize(order, count)]
        treated = _TRAINING[1:]
        return np.stack(
            [
                self._centred(d, treated[i // 2 % len(treated)] if i % 2 else _TRAINING[0])
                for i, d in enumerate(chosen)
            ]
        )

    def held_out_pairs(
        self, count: int, *, vocabulary: str = "core"
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """Plain drawings no model saw, of `count` distinct concepts that it saw by others, with full captions.

        Returns:
            Pictures uint8 [n, 64, 64, 3] and n captions; n is `count` or all there are, if fewer.
        """
        pool = self.pool("held_out_pairs", vocabulary)
        order = np.argsort([_share(f"test {self.concepts[self.concept[i]]}") for i in pool])[:count]
        chosen = pool[order]
        captions = [
            f"{compose.noun_phrase(self.concepts[self.concept[i]])} {compose.descriptor(ARTISTS[self.artist[i]], None)}"
            for i in chosen
        ]
        return np.stack([self._centred(i, _TRAINING[0]) for i in chosen]), captions

    def captions(self, count: int = 20_000) -> list[str]:
        """Text to learn a vocabulary of words from: every name of every concept, and `count` training captions."""
        names = [compose.noun_phrase(name) for known in self.names for name in known]
        return names + [
            self.scene(i, split="train", vocabulary="full", seed=0)[1] for i in range(count)
        ]


_TRAINING = tuple(treatment for treatment in TREATMENTS if not treatment.held_out)


def load(corpus_dir: Path | str) -> Corpus:
    """Reads a built corpus, decoding every drawing (about 160 MB).

    Args:
        corpus_dir: the folder given to `build`.

    Raises:
        UserError: there is no built corpus.
    """
    builder = Emoji64(data_dir=corpus_dir)
    if not builder.info.splits:
        raise UserError(
            f"corpus {corpus_dir}: no built corpus found; run launch/fetch_corpus.sh first"
        )
    records = [record for split in ("train", "test") for record in builder.as_data_source(split)]
    concepts = sorted({record["concept"].decode() for record in records})
    index = {label: i for i, label in enumerate(concepts)}
    artists = {artist.name: i for i, artist in enumerate(ARTISTS)}
    rows = sorted(
        (index[r["concept"].decode()], artists[r["artist"].decode()], i)
        for i, r in enumerate(records)
    )
    core = np.zeros(len(concepts), bool)
    for record in records:
        core[index[record["concept"].decode()]] = bool(record["core"])
    return Corpus(
        drawings=np.stack([records[i]["image"] for _, _, i in rows]),
        concept=np.array([c for c, _, _ in rows], np.int32),
        artist=np.array([a for _, a, _ in rows], np.int32),
        concepts=tuple(concepts),
        core=core,
    )


def as_map_dataset(
    corpus: Corpus,
    *,
    batch_size: int,
    split: str = "train",
    vocabulary: str = "core",
    seed: int = 0,
) -> grain.MapDataset:
    """The stream of examples as batches: element `step` is `image` uint8 [b, 64, 64, 3] and `caption`, b strings.

    Index it by the global step: it has no state to save, and gives the same batches to any number of workers.
    """

    def one(index: int) -> dict:
        image, caption, _ = corpus.example(
            int(index), split=split, vocabulary=vocabulary, seed=seed
        )
        return {"image": image, "caption": caption}

    def batched(rows: list[dict]) -> dict:
        return {
            "image": np.stack([row["image"] for row in rows]),
            "caption": [row["caption"] for row in rows],
        }

    return grain.MapDataset.range(2**40).map(one).batch(batch_size, batch_fn=batched)
