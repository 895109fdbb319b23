"""The corpus of open emoji drawings in memory: its splits, and the stream of training examples.

Base models train on split `train`. They never see held-out artists, treatments, concepts or
(concept, artist) pairs.
"""

import dataclasses
import hashlib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from styledrop_jax.emoji import compose
from styledrop_jax.emoji.builder import Emoji64
from styledrop_jax.emoji.compose import Scene, choose
from styledrop_jax.emoji.drawings import (
    ARTISTS,
    ARTISTS_BY_NAME,
    SIZES,
    TRAINED_ARTISTS,
    Artist,
)
from styledrop_jax.emoji.inks import TWO_COLOUR
from styledrop_jax.emoji.styles import random_style
from styledrop_jax.emoji.treatments import TRAINED_TREATMENTS, TREATMENTS_BY_NAME, Treatment
from styledrop_jax.emoji.words import EVERYDAY, STARTER, SYNONYMS
from styledrop_jax.errors import UserError, did_you_mean, shown

SPLITS = ("train", "held_out_pairs", "held_out_concepts")
VOCABULARIES = ("starter", "core", "full")
"""Each holds the one before it: what the shipped models know, what all sets drew, everything."""
_PLAIN = TRAINED_TREATMENTS[0]
_TREATED = TRAINED_TREATMENTS[1:]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Every drawing, decoded, with the names that index it.

    Attributes:
        drawings: RGBA with straight alpha, uint8 [n, s, s, 4].
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
        """For each concept its label and the other names that captions use."""
        official = {}
        for label, everyday in EVERYDAY.items():
            if len(label.split()) <= 2:
                official[everyday] = label
        labels = set(self.concepts)
        every = []
        for label in self.concepts:
            known = [label]
            for name in (SYNONYMS.get(label), official.get(label)):
                if name and name not in labels and name not in known:
                    known.append(name)
            every.append(tuple(known))
        return tuple(every)

    def _label(self, drawing: int) -> str:
        return self.concepts[self.concept[drawing]]

    def _artist(self, drawing: int) -> Artist:
        return ARTISTS[self.artist[drawing]]

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        """(concept, artist) → the drawing."""
        index = {}
        for drawing in range(len(self.drawings)):
            index[self._label(drawing), self._artist(drawing).name] = drawing
        return index

    @cached_property
    def _split(self) -> NDArray[np.int32]:
        """The split of each drawing as an index into SPLITS, -1 for held-out artists, int32 [n].

        One in fifteen of the concepts outside the core is held out whole, which is 5 % of all.
        Models must know what the core names. Of seven in ten of the other concepts one drawing is
        held out, so that 200 pairs of distinct core concepts are left to test retrieval on.
        """
        split = np.zeros(len(self.drawings), np.int32)
        for c, label in enumerate(self.concepts):
            mine = self.concept == c
            if not self.core[c] and _share(f"concept {label}") < 1 / 15:
                split[mine] = SPLITS.index("held_out_concepts")
            else:
                chosen = int(_share(f"pair {label}") * 10)
                split[mine & (self.artist == chosen)] = SPLITS.index("held_out_pairs")
        split[self.artist >= len(TRAINED_ARTISTS)] = -1
        return split

    def vocabulary(self, name: str) -> NDArray[np.bool_]:
        """Which concepts belong to a vocabulary, bool [c].

        Raises:
            UserError: no such vocabulary.
        """
        _check("vocabulary", name, VOCABULARIES)
        if name == "full":
            return np.ones(len(self.concepts), bool)
        if name == "core":
            return self.core
        return self.core & np.isin(self.concepts, list(STARTER))

    @cached_property
    def _pools(self) -> dict[tuple[str, str], NDArray[np.int32]]:
        """(split, vocabulary) → its drawings."""
        pools = {}
        for i, split in enumerate(SPLITS):
            for vocabulary in VOCABULARIES:
                allowed = (self._split == i) & self.vocabulary(vocabulary)[self.concept]
                pools[split, vocabulary] = np.flatnonzero(allowed).astype(np.int32)
        return pools

    def pool(self, split: str, vocabulary: str) -> NDArray[np.int32]:
        """Indices of the drawings that belong to a split and a vocabulary.

        Raises:
            UserError: no such split or vocabulary.
        """
        _check("split", split, SPLITS)
        _check("vocabulary", vocabulary, VOCABULARIES)
        return self._pools[split, vocabulary]

    def scene(self, index: int, *, split: str, vocabulary: str, seed: int) -> tuple[Scene, str]:
        """Example `index` in words: the scene and its caption; see `example`."""
        rng = np.random.default_rng((seed, index))
        pool = self.pool(split, vocabulary)
        if not len(pool):
            raise UserError(
                f"corpus: split '{split}' of vocabulary '{vocabulary}' is empty; "
                "use vocabulary 'full'"
            )
        first = int(pool[rng.integers(len(pool))])
        same_artist = pool[self.artist[pool] == self.artist[first]]
        second = int(same_artist[rng.integers(len(same_artist))])
        treatment = _random_treatment(rng)
        names = []
        for drawing in (first, second):
            known = self.names[self.concept[drawing]]
            names.append(known[0] if rng.random() < 0.85 else choose(rng, known))
        scene = compose.random_scene(
            rng,
            (first, second),
            (names[0], names[1]),
            self._artist(first),
            treatment,
            label=self._label(first),
        )
        return scene, compose.caption(rng, scene)

    def example(
        self, index: int, *, split: str = "train", vocabulary: str = "core", seed: int = 0
    ) -> tuple[NDArray[np.uint8], str, Scene]:
        """Example `index` of the endless stream that base models train on.

        The same arguments give the same bytes.

        Args:
            index: any number from 0.
            split: one of `SPLITS`; all of them use training artists and training treatments.
            vocabulary: one of `VOCABULARIES`.
            seed: another stream.

        Returns:
            Image uint8 [s, s, 3], caption, and what it shows.

        Raises:
            UserError: no such split or vocabulary, or an empty one (the core holds no concept out).
        """
        scene, caption = self.scene(index, split=split, vocabulary=vocabulary, seed=seed)
        return compose.render(scene, self.drawings), caption, scene

    def style(
        self, index: int, *, things: int, vocabulary: str = "starter", seed: int = 0
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """Example `index` of an endless stream of styles: things by one artist, treated alike.

        Half of the styles, and all that have no words, go by the name of one that does not exist.

        Args:
            index: any number from 0.
            things: n, how many.
            vocabulary: one of `VOCABULARIES`.
            seed: another stream.

        Returns:
            Images uint8 [n, s, s, 3] and their n captions.

        Raises:
            UserError: no such vocabulary.
        """
        rng = np.random.default_rng((seed, index))
        pool = self.pool("train", vocabulary)
        own = pool[self.artist[pool] == self.artist[rng.choice(pool)]]
        chosen = rng.choice(own, size=things, replace=len(own) < things)
        treatment = _random_treatment(rng)
        words = compose.descriptor(None, treatment)
        if not words or rng.random() < 0.5:
            words = compose.invented(rng)
        images = np.stack([self.centred(int(drawing), treatment) for drawing in chosen])
        return images, [f"{compose.noun_phrase(self._label(int(i)))} {words}" for i in chosen]

    def true_image(
        self, concept: str, artist: str = "noto", treatment: str = "plain"
    ) -> NDArray[np.uint8]:
        """How `artist` drew `concept`, treated, in the middle of a white square: uint8 [s, s, 3].

        Raises:
            UserError: a name the corpus does not know, or a concept this artist did not draw.
        """
        _check("concept", concept, self.concepts)
        _check("artist", artist, ARTISTS_BY_NAME)
        _check("treatment", treatment, TREATMENTS_BY_NAME)
        if (concept, artist) not in self._index:
            raise UserError(
                f"corpus: '{artist}' did not draw '{concept}'; expected a pair it holds"
            )
        return self.centred(self._index[concept, artist], TREATMENTS_BY_NAME[treatment])

    def centred(self, drawing: int, treatment: Treatment) -> NDArray[np.uint8]:
        """A drawing, treated, in the middle of a white square: uint8 [s, s, 3]."""
        scene = Scene(
            drawings=(drawing,), names=(), artist=self._artist(drawing), treatment=treatment
        )
        return compose.render(scene, self.drawings)

    def held_out_images(self, count: int) -> NDArray[np.uint8]:
        """Images [count, s, s, 3] of concepts no model saw, plain and treated in turn."""
        pool = self.pool("held_out_concepts", "full")
        order = np.argsort([_share(f"image {self._label(i)} {self.artist[i]}") for i in pool])
        images = []
        for i, drawing in enumerate(pool[np.resize(order, count)]):
            treatment = _TREATED[i // 2 % len(_TREATED)] if i % 2 else _PLAIN
            images.append(self.centred(drawing, treatment))
        return np.stack(images)

    def held_out_pairs(
        self, count: int, *, vocabulary: str = "core"
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """Plain drawings no model saw, of distinct concepts that it saw by other artists.

        Returns:
            Images uint8 [n, s, s, 3] and n captions; n is `count` or all there are, if fewer.
        """
        pool = self.pool("held_out_pairs", vocabulary)
        order = np.argsort([_share(f"test {self._label(i)}") for i in pool])
        images = []
        captions = []
        for drawing in pool[order[:count]]:
            images.append(self.centred(drawing, _PLAIN))
            style = compose.descriptor(self._artist(drawing), None)
            captions.append(f"{compose.noun_phrase(self._label(drawing))} {style}")
        return np.stack(images), captions

    def captions(self, count: int = 20_000) -> list[str]:
        """Text to learn words from: every name of every concept, and `count` training captions."""
        texts = []
        for known in self.names:
            texts += [compose.noun_phrase(name) for name in known]
        for index in range(count):
            _, caption = self.scene(index, split="train", vocabulary="full", seed=0)
            texts.append(caption)
        return texts


def _random_treatment(rng: np.random.Generator) -> Treatment:
    """Plain, as a bare prompt asks for; or composed of parts, another treatment, or two colours."""
    roll = rng.random()
    if roll < 0.3:
        return _PLAIN
    if roll < 0.7:
        return random_style(rng)
    return choose(rng, _TREATED if roll < 0.85 else TWO_COLOUR)


def _share(text: str) -> float:
    """A number in [0, 1) that depends on nothing but `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _check(kind: str, value: str, options: Collection[str]) -> None:
    if value in options:
        return
    expected = ", ".join(options) if len(options) < 10 else f"its {len(options)}"
    raise UserError(
        f"corpus: found {kind} {shown(value)}, "
        f"expected one of {expected}{did_you_mean(value, options)}"
    )


def load(corpus_dir: Path | str, *, size: int = SIZES[0]) -> Corpus:
    """Reads a built corpus, decoding every drawing (about 160 MB at 64 pixels, 640 MB at 128).

    Args:
        corpus_dir: the folder given to `builder.build`.
        size: s, the side of the drawings in pixels, one of `drawings.SIZES`.

    Raises:
        UserError: there is no built corpus.
    """
    builder = Emoji64(data_dir=corpus_dir)
    if not builder.info.splits:
        raise UserError(
            f"corpus {corpus_dir}: no built corpus found; run launch/fetch_corpus.sh first"
        )
    artist_names = list(ARTISTS_BY_NAME)
    image = f"image_{size}"
    others = [f"image_{other}" for other in SIZES if other != size]
    skipped = dict.fromkeys(others, tfds.decode.SkipDecoding())
    sources: Any = builder.as_data_source(decoders=skipped)
    records = []
    for split in ("train", "test"):
        for record in sources[split]:
            label = record["concept"].decode()
            artist = artist_names.index(record["artist"].decode())
            records.append((label, artist, record[image], record["core"]))
    records.sort(key=lambda record: record[:2])
    labels, artists, drawings, is_core = zip(*records, strict=True)
    concepts, concept = np.unique(labels, return_inverse=True)
    core = np.zeros(len(concepts), bool)
    core[concept] = is_core
    return Corpus(
        drawings=np.stack(drawings),
        concept=concept.astype(np.int32),
        artist=np.array(artists, np.int32),
        concepts=tuple(concepts.tolist()),
        core=core,
    )
