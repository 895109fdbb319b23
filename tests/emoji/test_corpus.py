"""The corpus built from tiny npm packages: matching, rendering, splits, captions and the stream of examples."""

import json

import emoji_packages
import numpy as np
import pytest
from PIL import Image

from styledrop_jax.emoji import compose, corpus
from styledrop_jax.emoji.drawings import ARTISTS
from styledrop_jax.emoji.treatments import TREATMENTS
from styledrop_jax.errors import UserError
from styledrop_jax.io.captions import BUNDLED


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load(emoji_packages.built())


def test_concepts_are_matched_between_sets_and_named_in_everyday_words(data):
    assert {"cat", "house", "sheep", "apple", "scissors"} <= set(data.concepts)
    cat = data.concepts.index("cat")
    assert sorted(data.artist[data.concept == cat]) == list(range(len(ARTISTS)))
    assert data.names[data.concepts.index("sheep")] == ("sheep", "lamb", "ewe")


def test_lettering_near_copies_and_rare_drawings_are_left_out(data):
    assert not {"keycap 1", "twelve-thirty", "man surfing", "thing 2"} & set(data.concepts)


def test_core_needs_every_set(data):
    core = {label for label, is_core in zip(data.concepts, data.core, strict=True) if is_core}
    assert {"cat", "house", "thing 3"} <= core
    assert not {"thing 0", "thing 1"} & core and {"thing 0", "thing 1"} <= set(data.concepts)


def test_drawings_are_centred_and_fill_all_but_the_margin(data):
    assert data.drawings.shape[1:] == (64, 64, 4) and data.drawings.dtype == np.uint8
    alpha = data.true_image("house", "noto")[..., 2] < 128
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    assert (rows[0], rows[-1]) == (4, 59) and (columns[0], columns[-1]) == (18, 45)


def test_each_artist_draws_its_own(data):
    colours = {tuple(data.true_image("cat", artist.name)[32, 32]) for artist in ARTISTS}
    assert len(colours) == len(ARTISTS)


def test_splits_share_nothing(data):
    pools = {split: set(data.pool(split, "full")) for split in corpus.SPLITS}
    trained = pools["train"]
    held_artists = {i for i, a in enumerate(data.artist) if ARTISTS[a].held_out}
    assert trained and pools["held_out_pairs"] and not trained & held_artists
    assert not trained & pools["held_out_pairs"] and not trained & pools["held_out_concepts"]
    concepts = {split: set(data.concept[list(pool)]) for split, pool in pools.items()}
    assert not concepts["train"] & concepts["held_out_concepts"]
    assert concepts["held_out_pairs"] <= concepts["train"], (
        "a held-out pair needs others' drawings to learn from"
    )
    assert set(np.flatnonzero(data.core)) <= concepts["train"]


def test_examples_repeat_exactly_and_use_training_styles_only(data):
    again = corpus.load(emoji_packages.built())
    for index in range(200):
        image, caption, scene = data.example(index, vocabulary="full", seed=3)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert not scene.artist.held_out and not scene.treatment.held_out
        assert set(scene.drawings) <= set(data.pool("train", "full"))
        assert all(name in caption for name in scene.names)
        if index < 20:
            other, same, _ = again.example(index, vocabulary="full", seed=3)
            assert np.array_equal(image, other) and caption == same
    assert data.example(0, seed=1)[1:] != data.example(0, seed=2)[1:]


def test_captions_say_what_the_picture_shows(data):
    seen = set()
    for index in range(600):
        image, caption, scene = data.example(index)
        seen.add(scene.layout)
        assert caption == " ".join(caption.split()) == caption.lower()
        if scene.treatment.words:
            assert f"{scene.treatment.words} style" in caption
        if scene.background != "white":
            assert f" {scene.background} background" in caption
            if (
                scene.treatment.name == "plain"
                and scene.layout == "small"
                and scene.position != "at the top left"
            ):
                assert tuple(image[0, 0]) == compose.BACKGROUNDS[scene.background]
        if scene.layout == "small":
            assert scene.position in caption and "small" in caption
        if scene.layout == "paired":
            assert len(scene.drawings) == len(scene.names) == 2
        if scene.layout == "several":
            number = {2: "two ", 3: "three ", 4: "four "}[len(scene.drawings)]
            assert number in caption and compose.plural(scene.names[0]) in caption
        if scene.colour:
            assert f" {scene.colour} " in f" {caption} " and scene.treatment.keeps_colour
    assert seen == {"centred", "small", "large", "paired", "several"}


def test_some_colours_and_counts_of_a_concept_are_kept_from_training(data):
    def scenes(label):
        artist, plain = ARTISTS[0], TREATMENTS[0]
        rng = np.random.default_rng(0)
        return [
            compose.draw_scene(rng, (0, 1), ("car", "cat"), artist, plain, label=label)
            for _ in range(600)
        ]

    def shown(label):
        return {s.colour for s in scenes(label)}, {
            len(s.drawings) for s in scenes(label) if s.layout == "several"
        }

    assert "red" in shown("bus")[0] and "red" not in shown("car")[0] and "blue" in shown("car")[0]
    assert shown("bus")[1] == {2, 3, 4} and shown("car")[1] == {3, 4}


def test_several_things_are_that_many_in_the_colour_that_the_caption_says(data):
    one = {"names": ("x",), "artist": ARTISTS[0], "treatment": TREATMENTS[0]}
    for drawings in ((0, 0), (0, 0, 0), (0, 0, 0, 0)):
        scene = compose.Scene(drawings=drawings, layout="several", colour="red", **one)
        image = compose.picture(scene, data.drawings).astype(int)
        ink = image.min(-1) < 200
        quarters = [ink[top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32)]
        assert sum(quarter.any() for quarter in quarters) == 4
        lone = compose.Scene(drawings=drawings[:1], layout="small", position="on the left", **one)
        ratio = ink.sum() / (compose.picture(lone, data.drawings).min(-1) < 200).sum()
        assert 0.6 * len(drawings) < ratio < 1.6 * len(drawings)
        red = (image[..., 0] >= image[..., 1]) & (image[..., 0] >= image[..., 2])
        assert red[ink].all()


def test_plurals():
    said = [
        compose.plural(name)
        for name in ("cat", "fish", "bus", "strawberry", "key", "scissors", "bread")
    ]
    assert said == ["cats", "fish", "buses", "strawberries", "keys", None, None]


def test_a_small_thing_lies_where_the_caption_says(data):
    scene = compose.Scene(
        drawings=(0,),
        names=("x",),
        artist=ARTISTS[0],
        treatment=TREATMENTS[0],
        layout="small",
        position="at the bottom right",
    )
    ink = compose.picture(scene, data.drawings).min(-1) < 200
    assert not ink[:32].any() and not ink[:, :32].any() and ink[32:, 32:].mean() > 0.5


def test_noun_phrases():
    said = {
        name: compose.noun_phrase(name)
        for name in ("cat", "apple", "scissors", "hourglass", "unicorn", "bread", "bus")
    }
    assert list(said.values()) == [
        "a cat",
        "an apple",
        "scissors",
        "an hourglass",
        "a unicorn",
        "bread",
        "a bus",
    ]
    assert compose.noun_phrase("apple", adjective="small") == "a small apple"


def test_styles_and_their_words():
    trained, held_out = corpus.styles(held_out=False), corpus.styles(held_out=True)
    every = trained + held_out
    assert len(every) == len(ARTISTS) * len(TREATMENTS) and not set(trained) & set(held_out)
    assert len({style.descriptor for style in every}) == len(every)
    assert {a.name for a in ARTISTS if a.held_out} == {"openmoji", "fluent high contrast"}
    glossy = next(
        s for s in trained if (s.artist.name, s.treatment.name) == ("fluent 3d", "pencil")
    )
    assert glossy.descriptor == "in glossy 3d pencil sketch style"


def test_held_out_pairs_are_of_distinct_concepts_and_not_trained_on(data):
    images, captions = data.held_out_pairs(10)
    assert images.shape == (len(captions), 64, 64, 3) and len(set(captions)) == len(captions) > 3
    trained = {
        data._centred(i, TREATMENTS[0]).tobytes() + data.concepts[data.concept[i]].encode()
        for i in data.pool("train", "core")
    }
    pool = data.pool("held_out_pairs", "core")
    assert not any(
        data._centred(i, TREATMENTS[0]).tobytes() + data.concepts[data.concept[i]].encode()
        in trained
        for i in pool
    )


def test_text_for_the_tokenizer_names_every_concept(data):
    text = data.captions(50)
    assert all(any(name in line for line in text) for known in data.names for name in known)


def test_batches_are_indexed_by_the_global_step(data):
    stream = corpus.as_map_dataset(data, batch_size=3, seed=5)
    batch = stream[1000]
    assert batch["image"].shape == (3, 64, 64, 3) and len(batch["caption"]) == 3
    image, caption, _ = data.example(3001, seed=5)
    assert np.array_equal(batch["image"][1], image) and batch["caption"][1] == caption


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.true_image("hose"), "did you mean 'house'"),
        (lambda c: c.true_image("house", "nota"), "did you mean 'noto'"),
        (lambda c: c.true_image("thing 0", "noto"), "'noto' did not draw 'thing 0'"),
        (lambda c: c.example(0, vocabulary="cores"), "did you mean 'core'"),
        (lambda c: c.example(0, split="held_out_concepts"), "use vocabulary 'full'"),
    ],
)
def test_wrong_names_say_what_was_meant(data, call, words):
    with pytest.raises(UserError, match=words):
        call(data)


def test_a_folder_without_corpus_or_packages_is_refused(tmp_path):
    with pytest.raises(UserError, match="fetch_corpus.sh"):
        corpus.load(tmp_path)
    with pytest.raises(UserError, match="data.json: not found"):
        corpus.build(tmp_path, tmp_path / "out")


def test_bundled_references_are_styles_no_model_saw_by_artists_it_did_see():
    rows = [json.loads(line) for line in BUNDLED.read_text().splitlines()]
    held_out = {
        style.treatment.name for style in corpus.styles(held_out=True) if not style.artist.held_out
    }
    artists = {artist.name for artist in ARTISTS if not artist.held_out}
    assert len(rows) >= 3
    for row in rows:
        assert row["artist"] in artists and row["treatment"] in held_out
        assert row["descriptor"].endswith("style") and row["content"]
        assert Image.open(BUNDLED.parent / row["image"]).size == (256, 256)
