"""What every method makes of its settings and images: streams, prompts, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from styledrop_jax import spec
from styledrop_jax.errors import UserError
from styledrop_jax.io.captions import Reference
from styledrop_jax.methods.base import Example, Program, Stream
from styledrop_jax.methods.halves import halves
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.registry import METHODS
from styledrop_jax.stages.read import check_words

WORDS = {"words": {"identifier": "sks", "noun": "dog"}}


def _reference(content="a house", descriptor="in red", *, value=0):
    image = np.full((6, 6, 3), value, np.uint8)
    return Reference(f"{content}.png", image, content, descriptor, "0" * 64)


def _settings(method, **sections):
    return spec.from_config({"method": method, **sections})


def _program(settings, **images):
    """The program of a run that has images of these sections, and of no others."""
    given = {name.replace("__", "."): references for name, references in images.items()}
    return METHODS[settings.method].program(settings, given)


def _say(settings, content, descriptor=""):
    return METHODS[settings.method].say(settings, content, descriptor)


def _captions(program):
    """{section: the prompts of its images}"""
    found = {}
    for stream in program.streams:
        found[stream.section] = [example.prompt for example in stream.examples]
    return found


def _generated(program):
    return {stream.section: stream.generated for stream in program.streams if stream.generated}


# -------------------------------------------------------------- styledrop


def test_styledrop_says_the_descriptor_once():
    settings = _settings("styledrop")
    program = _program(settings, reference=[_reference(), _reference("a cat in red")])
    assert _captions(program) == {"reference": ["a house in red", "a cat in red"]}
    assert program.streams[0].judges and program.streams[0].teaches
    assert program.contents == POOL and len(POOL) == 30
    assert _say(settings, "a cat {odd}", "in red").text == "a cat {odd} in red"
    assert _say(settings, " a  cat ", "in red").judged == "a cat in red"
    assert _say(settings, "a cat in red", "in red").text == "a cat in red"
    assert not _say(settings, "a cat", "in red").remark
    with pytest.raises(UserError, match="stands for nothing here"):
        _say(settings, "a {subject}", "in red")


# -------------------------------------------------------------- dreambooth


def test_dreambooth_keeps_the_class_beside_the_subject():
    settings = _settings("dreambooth", **WORDS, prior={"weight": 0.5, "generate": 3})
    program = _program(settings, reference=[_reference()], prior=[])
    assert _captions(program) == {"reference": ["a sks dog"], "prior": []}
    assert [stream.weight for stream in program.streams] == [1.0, 0.5]
    assert [stream.teaches for stream in program.streams] == [True, False]
    assert _generated(program) == {"prior": ("a dog", 3)}
    assert program.identifiers == {"words.identifier": "sks"}
    assert "a {subject}" in program.contents


def test_dreambooth_says_the_subject_and_a_scorer_sees_its_class():
    settings = _settings("dreambooth", **WORDS)
    said = _say(settings, "a {subject} on a blue background")
    assert said.text == "a sks dog on a blue background"
    assert said.judged == "a dog on a blue background"
    assert "'a dog' does not say 'sks dog'" in _say(settings, "a dog").remark
    assert not _say(settings, "a {subject}").remark and not _say(settings, "a sks dog").remark
    assert _say(settings, "a {subject}", "in red").judged == "a dog in red"


def test_the_frozen_model_adds_what_a_prior_lacks():
    settings = _settings("dreambooth", **WORDS, prior={"generate": 3})
    own = [_reference("x"), _reference("y")]
    program = _program(settings, reference=[_reference()], prior=own)
    assert _captions(program)["prior"] == ["a dog", "a dog"]
    assert _generated(program) == {"prior": ("a dog", 1)}
    program = _program(settings, reference=[_reference()], prior=own * 2)
    assert not _generated(program), "there are more than are asked for"
    with pytest.raises(UserError, match="config.prior.image: empty.* config.prior.generate above"):
        _program(_settings("dreambooth", **WORDS), reference=[_reference()], prior=[])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"identifier": "sks"}, "config.words.noun: empty"),
        ({"noun": "dog"}, "config.words.identifier: empty.* `styledrop rare-tokens`"),
    ],
)
def test_dreambooth_needs_both_words(words, message):
    settings = _settings("dreambooth", words=words)
    with pytest.raises(UserError, match=message):
        _program(settings, reference=[_reference()], prior=[])
    with pytest.raises(UserError, match=message):
        _say(settings, "a {subject}")


# -------------------------------------------------------------- styleforge and style_word


def test_styleforge_keeps_style_beside_the_new_style():
    settings = _settings("styleforge", **WORDS)
    program = _program(settings, reference=[_reference()], aux=[_reference(), _reference()])
    assert _captions(program) == {"reference": ["sks style"], "aux": ["style", "style"]}
    assert _say(settings, "a cat").text == "a cat in sks style"
    assert _say(settings, "a cat", "in red").judged == "a cat in red", "words that a scorer knows"
    assert not _say(settings, "a cat").remark
    for method in ("styleforge", "style_word"):
        with pytest.raises(UserError, match="identifier: empty.* `styledrop rare-tokens`"):
            _say(_settings(method), "a cat")
        with pytest.raises(UserError, match="stands for nothing here"):
            _say(_settings(method, **WORDS), "a {subject}")


def test_a_style_word_stands_beside_what_each_image_shows():
    settings = _settings("style_word", **WORDS)
    program = _program(settings, reference=[_reference(), _reference("a cat")])
    captions = ["a house in sks style", "a cat in sks style"]
    assert _captions(program) == {"reference": captions}
    assert program.identifiers == {"words.identifier": "sks"}
    said = _say(settings, "a cat", "in red")
    assert (said.text, said.judged) == ("a cat in sks style", "a cat in red")


# -------------------------------------------------------------- multi_styleforge


COMPONENTS = {
    "component_1": {"identifier": "sks"},
    "component_2": {"identifier": "aug", "aux": {"weight": 0.5}},
    "component_3": {"identifier": "xyz", "aux": {"generate": 2}},
}


def _components(**changes):
    return _settings("multi_styleforge", **COMPONENTS | changes)


def _of_components(settings):
    images = {}
    for name in COMPONENTS:
        images[name] = [_reference()]
        images[f"{name}.aux"] = [] if name == "component_3" else [_reference()]
    return METHODS["multi_styleforge"].program(settings, images)


def test_multi_styleforge_has_streams_of_every_component_and_says_them_all():
    settings = _components()
    program = _of_components(settings)
    assert _captions(program) == {
        "component_1": ["sks style"],
        "component_2": ["aug style"],
        "component_3": ["xyz style"],
        "component_1.aux": ["style"],
        "component_2.aux": ["style"],
        "component_3.aux": [],
    }
    assert [stream.weight for stream in program.streams] == [1, 1, 1, 1, 0.5, 1]
    assert _generated(program) == {"component_3.aux": ("style", 2)}
    assert list(program.identifiers.values()) == ["sks", "aug", "xyz"]
    said = _say(settings, "a cat", "in red")
    assert said.text == "a cat in sks style and aug style and xyz style"
    assert said.judged == "a cat in red"
    with pytest.raises(UserError, match="config.component_2.identifier: empty"):
        _say(_components(component_2={}), "a cat")


# -------------------------------------------------------------- styo


STYO = {
    "words": {"noun": "portrait"},
    "source": {"style": "ak47", "content": "sks"},
    "target": {"style": "aug", "content": "m4a1"},
    "aux": {"generate": 2},
}


def _styo(**contrast):
    return _settings("styo", **STYO, contrast=contrast)


def _of_styo(settings):
    source = _reference("anna")
    return _program(settings, source=[source], target=[_reference()], aux=[_reference()])


def test_prompts_of_styo_are_the_papers():
    settings = _styo()
    program = _of_styo(settings)
    aug = "aug not ak47 aug not ak47 aug not ak47"
    ak47 = "ak47 not aug ak47 not aug ak47 not aug"
    assert _captions(program) == {
        "source": [f"a drawing with {ak47} style of sks not m4a1 portrait"],
        "target": [f"a drawing with {aug} style of m4a1 not sks portrait"],
        "aux": ["a drawing with ak47 not aug style of portrait"],
    }
    assert _generated(program) == {"aux": ("a portrait", 1)}, "in the words of the frozen model"
    (content,) = program.contents
    said = _say(settings, content)
    assert said.text == f"a drawing with {aug} style of sks not m4a1 portrait"
    assert said.judged == "portrait"
    assert "does not say" in _say(settings, "a portrait").remark
    assert program.redrawn is not None
    assert program.redrawn.prompt == _captions(program)["source"][0]
    assert program.redrawn.kept == "sks not m4a1 portrait"
    assert said.text.endswith(program.redrawn.kept)


def test_styo_repeats_where_it_is_told_to():
    sampled_only = _styo(negator="without", content_repeats=2, repeat_training=False)
    source = "a drawing with ak47 without aug style of sks without m4a1 portrait"
    assert _captions(_of_styo(sampled_only))["source"] == [source]
    said = _say(sampled_only, "{subject}").text
    assert said.endswith("style of sks without m4a1 sks without m4a1 portrait")

    trained_only = _styo(repeat_drawing=False)
    assert _captions(_of_styo(trained_only))["source"][0].count("ak47 not aug") == 3
    said = _say(trained_only, "{subject}").text
    assert said == "a drawing with aug not ak47 style of sks not m4a1 portrait"


def test_styo_without_a_negator_says_only_what_an_image_has():
    plain = _styo(negator="")
    program = _of_styo(plain)
    assert _captions(program)["target"] == ["a drawing with aug aug aug style of m4a1 portrait"]
    assert program.redrawn is not None and program.redrawn.kept == "sks portrait"
    assert _say(plain, "{subject}").text.endswith("sks portrait")


def test_styo_by_words_alone_follows_no_image():
    settings = _settings("styo", **STYO | {"source": {**STYO["source"], "control": 0.0}})
    assert _of_styo(settings).redrawn is None


@pytest.mark.parametrize("word", ["style", "content"])
@pytest.mark.parametrize("section", ["source", "target"])
def test_styo_needs_every_word(section, word):
    settings = _settings("styo", **STYO | {section: {**STYO[section], word: ""}})
    with pytest.raises(UserError, match=f"config.{section}.{word}: empty"):
        _of_styo(settings)


# -------------------------------------------------------------- cut_mix


def test_two_subjects_are_cut_and_put_side_by_side_under_a_prompt_that_says_so():
    left = np.full((6, 6, 3), 1, np.uint8)
    left[:, 1:4] += np.arange(10, 40, 10, dtype=np.uint8)[:, None]
    right = np.full((6, 6, 3), 2, np.uint8)
    mixed = halves(left, right)
    np.testing.assert_array_equal(mixed[3, :, 0], [11, 21, 31, 2, 2, 2], "the middle half of each")


def test_cut_mix_shows_each_subject_alone_and_beside_each_other_one():
    settings = _settings("cut_mix", mix={"weight": 1.5, "unmix": 0.5})
    dog = _reference("a sks dog", value=1)
    program = _program(settings, reference=[dog, dog, _reference("b", value=2)])
    alone, together = program.streams
    assert _captions(program)["reference"] == ["photo of a sks dog"] * 2 + ["photo of b"]
    assert (together.weight, together.unmix) == (1.5, 0.5)
    sides = {}
    for example in together.examples:
        image = example.at(6)
        sides[int(image[0, 0, 0]), int(image[0, 3, 0])] = example.prompt
    assert len(together.examples) == 4, "a subject is not mixed with itself"
    assert sides == {
        (1, 2): "photo of a sks dog on the left and b on the right",
        (2, 1): "photo of b on the left and a sks dog on the right",
    }
    assert program.contents[:3] == ["a sks dog", "b", "a sks dog sitting beside b"]
    assert alone.judges and not together.judges
    assert _say(settings, "b and c").text == "photo of b and c"


def test_images_of_every_stream_are_padded_with_their_ground():
    wide = dataclasses.replace(_reference("a dog"), image=np.zeros((2, 6, 3), np.uint8))
    padded = dataclasses.replace(wide, content="b", ground="#ffffff")
    program = _program(_settings("cut_mix"), reference=[wide, padded])
    alone, together = program.streams
    bars = [255, 255, 0, 0, 255, 255]  # from top to bottom
    assert [list(example.at(6)[:, 0, 0]) for example in alone.examples] == [[0] * 6, bars]
    pair = together.examples[0].at(6)[..., 0]
    assert list(pair[:, 0]) == [0] * 6 and list(pair[:, -1]) == bars
    assert list(together.examples[1].at(6)[:, 0, 0]) == bars

    settings = _settings("dreambooth", **WORDS)
    _, prior = _program(settings, reference=[wide], prior=[padded]).streams
    assert list(prior.examples[0].at(6)[:, 0, 0]) == bars


def test_cut_mix_needs_two_subjects():
    with pytest.raises(UserError, match="all images show 'a dog'; expected two subjects"):
        _program(_settings("cut_mix"), reference=[_reference("a dog"), _reference("a dog")])


# -------------------------------------------------------------- words of all methods


def test_no_word_stands_for_two_things():
    same = {**STYO, "target": {"style": "SKS", "content": "m4a1"}}
    program = _of_styo(_settings("styo", **same))
    with pytest.raises(UserError, match="config.target.style: 'SKS', as config.source.content"):
        check_words(program)
    program = _of_components(_components(component_3={"identifier": "aug", "aux": {"generate": 1}}))
    with pytest.raises(UserError, match="config.component_3.identifier: 'aug', as config.comp"):
        check_words(program)


@pytest.mark.parametrize("method", ["dreambooth", "styleforge", "style_word"])
def test_a_word_of_spaces_is_none_and_spaces_around_a_word_do_not_count(method):
    for blank in ("", " ", "\t\n"):
        with pytest.raises(UserError, match="config.words.identifier: empty"):
            _say(_settings(method, words={"identifier": blank, "noun": "dog"}), "a cat")
    spaced = _settings(method, words={"identifier": " sks ", "noun": " dog "})
    assert _say(spaced, "a cat").text == _say(_settings(method, **WORDS), "a cat").text


def test_what_is_taught_and_what_is_kept_have_prompts_of_their_own():
    def stream(section, teaches):
        example = Example(image=np.zeros((6, 6, 3), np.uint8), prompt="a dog")
        return Stream(
            section=section,
            examples=[example],
            caption=lambda content, descriptor: "a dog",
            teaches=teaches,
        )

    check_words(Program(streams=[stream("prior", False), stream("aux", False)]))
    for teaches in (True, False):
        program = Program(streams=[stream("reference", True), stream("prior", teaches)])
        with pytest.raises(UserError, match="reference: trains under 'a dog', as config.prior"):
            check_words(program)


def test_streams_that_keep_may_share_a_prompt():
    check_words(_of_components(_components()))
