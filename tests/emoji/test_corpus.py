"""The corpus built from tiny npm packages: matching, splits, captions, the stream of examples."""

import os

import emoji_packages
import numpy as np
import pytest
from PIL import Image

from styledrop_jax.emoji import builder, compose, corpus
from styledrop_jax.emoji.drawings import ARTISTS, ARTISTS_BY_NAME, TRAINED_ARTISTS
from styledrop_jax.emoji.references import write_truth
from styledrop_jax.emoji.treatments import HELD_OUT_TREATMENTS, TREATMENTS, TREATMENTS_BY_NAME
from styledrop_jax.errors import UserError
from styledrop_jax.io.captions import BUNDLED
from styledrop_jax.io.files import read_jsonl

PLAIN = TREATMENTS[0]


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
    core = set(np.array(data.concepts)[data.core])
    assert {"cat", "house", "thing 3"} <= core
    assert not {"thing 0", "thing 1"} & core and {"thing 0", "thing 1"} <= set(data.concepts)


def test_drawings_are_centred_and_fill_all_but_the_margin(data):
    assert data.drawings.shape[1:] == (64, 64, 4) and data.drawings.dtype == np.uint8
    ink = data.true_image("house", "noto")[..., 2] < 128
    rows = np.flatnonzero(ink.any(1))
    columns = np.flatnonzero(ink.any(0))
    assert (rows[0], rows[-1]) == (4, 59) and (columns[0], columns[-1]) == (18, 45)


def test_each_artist_draws_its_own(data):
    colours = {tuple(data.true_image("cat", artist.name)[32, 32]) for artist in ARTISTS}
    assert len(colours) == len(ARTISTS)


def test_splits_share_nothing(data):
    train = set(data.pool("train", "full"))
    pairs = set(data.pool("held_out_pairs", "full"))
    concepts = set(data.pool("held_out_concepts", "full"))
    assert train and pairs and not train & pairs and not train & concepts
    assert (data.artist[list(train)] < len(TRAINED_ARTISTS)).all()
    known = set(data.concept[list(train)])
    assert not known & set(data.concept[list(concepts)])
    assert set(data.concept[list(pairs)]) <= known, "others' drawings of it are to learn from"
    assert set(np.flatnonzero(data.core)) <= known


def test_examples_repeat_exactly_and_use_training_styles_only(data):
    again = corpus.load(emoji_packages.built())
    train = set(data.pool("train", "full"))
    for index in range(200):
        image, caption, scene = data.example(index, vocabulary="full", seed=3)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert scene.artist in TRAINED_ARTISTS and scene.treatment not in HELD_OUT_TREATMENTS
        assert set(scene.drawings) <= train
        for name in scene.names:
            assert name in caption
        if index < 20:
            other, same, _ = again.example(index, vocabulary="full", seed=3)
            assert np.array_equal(image, other) and caption == same
    assert data.example(0, seed=1)[1:] != data.example(0, seed=2)[1:]


def test_examples_of_128_pixels_show_the_same(data):
    large = corpus.load(emoji_packages.built(), size=128)
    assert large.concepts == data.concepts
    for index in range(40):
        image, caption, scene = data.example(index)
        other, same, _ = large.example(index)
        assert other.shape == (128, 128, 3) and caption == same
        halved = other.reshape(64, 2, 64, 2, 3).mean((1, 3))
        # Coarse blocks: strokes and dots need not fall on the same pixels.
        difference = (image - halved).reshape(4, 16, 4, 16, 3).mean((1, 3))
        assert np.abs(difference).mean() < 25, (caption, scene)


def test_captions_say_what_the_image_shows(data):
    layouts = set()
    for index in range(600):
        image, caption, scene = data.example(index)
        layouts.add(scene.layout)
        assert caption == " ".join(caption.split()) == caption.lower()
        if scene.treatment.words:
            assert f"{scene.treatment.words} style" in caption
        if scene.background != "white":
            assert f" {scene.background} background" in caption
            is_plain = scene.treatment.name == "plain"
            if is_plain and scene.layout == "small" and scene.position != "at the top left":
                assert tuple(image[0, 0]) == compose.BACKGROUNDS[scene.background]
        if scene.layout == "small":
            assert scene.position in caption and "small" in caption
        if scene.layout == "paired":
            assert len(scene.drawings) == len(scene.names) == 2
        if scene.layout == "several":
            number = {2: "two ", 3: "three ", 4: "four "}[len(scene.drawings)]
            assert number in caption and str(compose.plural(scene.names[0])) in caption
        if scene.colour:
            assert f" {scene.colour} " in f" {caption} " and scene.treatment.keeps_colour
    assert layouts == {"centred", "small", "large", "paired", "several"}


def test_some_colours_and_counts_of_a_concept_are_kept_from_training():
    colours = {}
    counts = {}
    for label in ("bus", "car"):
        colours[label] = set()
        counts[label] = set()
        rng = np.random.default_rng(0)
        for _ in range(600):
            scene = compose.random_scene(
                rng, (0, 1), ("car", "cat"), ARTISTS[0], PLAIN, label=label
            )
            colours[label].add(scene.colour)
            if scene.layout == "several":
                counts[label].add(len(scene.drawings))
    assert "red" in colours["bus"] and "red" not in colours["car"] and "blue" in colours["car"]
    assert counts == {"bus": {2, 3, 4}, "car": {3, 4}}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_things_are_that_many_in_the_colour_that_the_caption_says(data, count):
    one = compose.Scene(
        drawings=(0,),
        names=("x",),
        artist=ARTISTS[0],
        treatment=PLAIN,
        layout="small",
        position="on the left",
        colour="red",
    )
    several = compose.Scene(
        drawings=(0,) * count,
        names=("x",),
        artist=ARTISTS[0],
        treatment=PLAIN,
        layout="several",
        colour="red",
    )
    image = compose.render(several, data.drawings).astype(int)
    ink = image.min(-1) < 200
    quarters = ink.reshape(2, 32, 2, 32).any((1, 3))
    assert quarters.all()
    ratio = ink.sum() / (compose.render(one, data.drawings).min(-1) < 200).sum()
    assert 0.6 * count < ratio < 1.6 * count
    assert (image[ink].argmax(-1) == 0).all(), "red is the strongest channel"


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("cat", "cats"),
        ("fish", "fish"),
        ("bus", "buses"),
        ("strawberry", "strawberries"),
        ("key", "keys"),
        ("scissors", None),
        ("bread", None),
    ],
)
def test_plurals(name, plural):
    assert compose.plural(name) == plural


def test_a_small_thing_lies_where_the_caption_says(data):
    scene = compose.Scene(
        drawings=(0,),
        names=("x",),
        artist=ARTISTS[0],
        treatment=PLAIN,
        layout="small",
        position="at the bottom right",
    )
    ink = compose.render(scene, data.drawings).min(-1) < 200
    assert not ink[:32].any() and not ink[:, :32].any() and ink[32:, 32:].mean() > 0.5


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("scissors", "scissors"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("bread", "bread"),
        ("bus", "a bus"),
    ],
)
def test_noun_phrases(name, phrase):
    assert compose.noun_phrase(name) == phrase


def test_an_adjective_goes_between():
    assert compose.noun_phrase("apple", adjective="small") == "a small apple"


def test_every_style_has_its_own_words():
    descriptors = set()
    for artist in ARTISTS:
        for treatment in TREATMENTS:
            descriptors.add(compose.descriptor(artist, treatment))
    assert len(descriptors) == len(ARTISTS) * len(TREATMENTS)
    assert "in glossy 3d pencil sketch style" in descriptors


def test_held_out_pairs_are_of_distinct_concepts_and_not_trained_on(data):
    images, captions = data.held_out_pairs(10)
    assert images.shape == (len(captions), 64, 64, 3) and len(set(captions)) == len(captions) > 3
    trained = set()
    for drawing in data.pool("train", "core"):
        trained.add((data.concept[drawing], data.centred(drawing, PLAIN).tobytes()))
    for drawing in data.pool("held_out_pairs", "core"):
        image = data.centred(drawing, PLAIN).tobytes()
        assert (data.concept[drawing], image) not in trained


def test_text_for_the_tokenizer_names_every_concept(data):
    text = "\n".join(data.captions(50))
    for known in data.names:
        for name in known:
            assert name in text


def test_the_true_images_of_a_style_are_written_by_name(data, tmp_path):
    write_truth(data, tmp_path, artist="noto", treatment="mosaic", contents=("a cat", "scissors"))
    assert sorted(os.listdir(tmp_path)) == ["cat.png", "scissors.png"]
    written = np.asarray(Image.open(tmp_path / "cat.png"))
    assert np.array_equal(written, data.true_image("cat", "noto", "mosaic"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.true_image("hose"), "did you mean 'house'"),
        (lambda c: c.true_image("house", "nota"), "did you mean 'noto'"),
        (lambda c: c.true_image("house", "noto", "mosaik"), "did you mean 'mosaic'"),
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
        builder.build(tmp_path, tmp_path / "out")


def test_bundled_references_are_styles_no_model_saw_by_artists_it_did_see():
    rows = read_jsonl(BUNDLED)
    assert len(rows) >= 3
    for row in rows:
        assert ARTISTS_BY_NAME[row["artist"]] in TRAINED_ARTISTS
        assert TREATMENTS_BY_NAME[row["treatment"]] in HELD_OUT_TREATMENTS
        assert row["descriptor"].endswith("style") and row["content"]
        assert Image.open(BUNDLED.parent / row["image"]).size == (256, 256)
