"""The engine of settings, on a small set of its own: what it fills in, reads, describes and
refuses.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest

from styledrop_jax import settings
from styledrop_jax.errors import UserError, did_you_mean
from styledrop_jax.settings import numbered, section, setting, variant, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brush:
    width: int = setting(4, "of a stroke", low=1, high=100)
    wet: bool = setting(False, "whether it drips")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pen:
    width: int = setting(1, "of a line", low=1, high=8)
    ink: str = setting("black", "its colour", choices=("black", "blue"))


@dataclasses.dataclass(frozen=True)
class Tool:
    settings: type


TOOLS = {"brush": Tool(Brush), "pen": Tool(Pen)}
JUDGES = {"people": None, "chance": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    grain: float = setting(0.5, "of the surface", low=0, high=1)
    size: float = setting(20.0, "of a side", low=0, above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    tool: Any = variant(TOOLS, "brush", "what draws")
    paper: Paper = section(Paper, grain=0.25)
    judges: Mapping[str, float] = weights(JUDGES, {"people": 1.0}, "whose word counts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    title: str = setting("", "of the picture")
    artist: str = setting("someone", "who draws", empty=False)
    file: str = setting("", "to start from", path="file")
    seed: int = setting(0, "of chance", low=0, high=2**31 - 1)
    layers: tuple[Layer, ...] = numbered(Layer, "layer_", lambda: (Layer(),))


def _parse(**data):
    return settings.parse(Picture, data)


def _error(**data):
    with pytest.raises(UserError) as caught:
        _parse(**data)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_left_out_has_its_default():
    assert _parse() == Picture()
    assert Picture().layers == (Layer(),)
    assert Picture().layers[0].tool == Brush()
    assert Picture().layers[0].paper == Paper(grain=0.25), "a section may have defaults of its own"


def test_nested_numbered_and_chosen_values_are_read():
    first = {"tool": {"kind": "pen", "ink": "blue"}, "judges": {"chance": 2}}
    found = _parse(title="a cat", layer_1=first, layer_2={"paper": {"size": 3}})
    assert found.title == "a cat"
    assert found.layers[0].tool == Pen(ink="blue")
    assert found.layers[0].judges == {"chance": 2.0}, "a name that is left out weighs nothing"
    assert found.layers[1].paper == Paper(grain=0.25, size=3.0)
    assert isinstance(found.layers[1].paper.size, float), "a whole number is a number too"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.title = "a dog"


def test_layers_are_in_the_order_of_their_numbers():
    data = {f"layer_{number}": {"paper": {"size": number}} for number in (10, *range(1, 10))}
    sizes = [layer.paper.size for layer in _parse(**data).layers]
    assert sizes == list(range(1, 11))


@pytest.mark.parametrize("name", ["layer_0", "layer_02", "layer_", "layer_x"])
def test_what_is_no_number_is_unknown(name):
    assert f"config.{name}: unknown field" in _error(**{name: {}})


def test_numbers_have_no_gaps():
    message = _error(layer_1={}, layer_4={})
    assert "config.layer_2: missing" in message


def test_the_fields_of_other_kinds_may_stand_beside_the_chosen_one():
    both = {"width": 8, "wet": True, "ink": "blue"}
    assert _parse(layer_1={"tool": {"kind": "brush", **both}}).layers[0].tool == Brush(
        width=8, wet=True
    )
    assert _parse(layer_1={"tool": {"kind": "pen", **both}}).layers[0].tool == Pen(
        width=8, ink="blue"
    )
    assert _parse(layer_1={"tool": {}}).layers[0].tool == Brush(), "the kind may be left out"


def test_a_field_that_two_kinds_have_follows_the_rule_of_the_chosen_one():
    assert _parse(layer_1={"tool": {"kind": "brush", "width": 50}}).layers[0].tool.width == 50
    message = _error(layer_1={"tool": {"kind": "pen", "width": 50}})
    assert "config.layer_1.tool.width: found 50, expected a whole number" in message
    assert "at most 8" in message


def test_the_fields_of_other_kinds_are_checked_too():
    message = _error(layer_1={"tool": {"kind": "brush", "ink": "green", "whet": True}})
    assert "config.layer_1.tool.ink: found 'green', expected one of black, blue" in message
    assert "config.layer_1.tool.whet: unknown field; did you mean 'wet'?" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"seed": -1}, "config.seed: found -1, expected a whole number of at least 0"),
        ({"seed": 2**31}, "at most 2147483647"),
        ({"seed": 10**400}, "config.seed: found 1000"),
        ({"seed": 1.0}, "config.seed: found 1.0"),
        ({"seed": True}, "config.seed: found True"),
        ({"seed": "1"}, "config.seed: found '1'"),
        ({"seed": None}, "config.seed: found None"),
        ({"title": 3}, "config.title: found 3, expected text"),
        ({"artist": "  "}, "config.artist: found '  ', expected text that is not empty"),
        ({"titel": "x"}, "config.titel: unknown field; did you mean 'title'?"),
        ({"layer_1": 3}, "config.layer_1: found 3, expected the fields tool, paper, judges"),
        ({"layer_1": {"paper": []}}, "config.layer_1.paper: found [], expected the fields grain"),
        ({"layer_1": {"paper": {"grain": math.nan}}}, "found nan, expected a number of at least 0"),
        ({"layer_1": {"paper": {"size": 0}}}, "found 0, expected a number above 0"),
        ({"layer_1": {"paper": {"size": math.inf}}}, "found inf, expected a number above 0"),
        ({"layer_1": {"paper": {"size": 10**400}}}, "config.layer_1.paper.size: found 1000"),
        ({"layer_1": {"tool": "pen"}}, "config.layer_1.tool: found 'pen', expected a kind and its"),
        ({"layer_1": {"tool": {"kind": "pan"}}}, "one of brush, pen; did you mean 'pen'?"),
        ({"layer_1": {"tool": {"kind": []}}}, "config.layer_1.tool.kind: found []"),
        ({"layer_1": {"tool": {"wet": 1}}}, "config.layer_1.tool.wet: found 1, expected true or"),
        ({"layer_1": {"judges": {"peple": 1}}}, "peple: unknown; did you mean 'people'?"),
        ({"layer_1": {"judges": {"chance": "x"}}}, "config.layer_1.judges.chance: found 'x'"),
        ({"layer_1": {"judges": {"chance": 0}}}, "config.layer_1.judges: every weight is 0"),
        ({"layer_1": {"judges": {}}}, "config.layer_1.judges: every weight is 0"),
        ({"layer_1": {"judges": 1}}, "config.layer_1.judges: found 1, expected numbers for people"),
    ],
)
def test_what_cannot_be_says_what_was_expected(data, words):
    assert words in _error(**data)


def test_all_problems_come_in_one_line():
    message = _error(seed=-1, sead=2, layer_1={"tools": {}})
    assert len(message.split(" | ")) == 3
    for name in ("seed", "sead", "layer_1.tools"):
        assert f"config.{name}: " in message


def test_of_many_problems_the_first_are_named_and_all_counted():
    message = _error(seed=-1, **{f"field_{i}": 0 for i in range(1000)})
    assert message.startswith("config.seed: found -1") and len(message) < 300
    assert re.search(r" \| and 99\d more$", message)


@pytest.mark.parametrize(
    "data",
    [
        {"title": ["x" * 10_000]},
        {"artist": {"x": "y" * 10_000}},
        {"seed": "9" * 10_000},
        {"x" * 10_000: 1},
        {"layer_1": "x" * 10_000},
        {"layer_1": {"paper": "x" * 10_000}},
        {"layer_1": {"x" * 10_000: 1}},
        {"layer_1": {"tool": "x" * 10_000}},
        {"layer_1": {"tool": {"kind": "x" * 10_000}}},
        {"layer_1": {"tool": {"x" * 10_000: 1}}},
        {"layer_1": {"judges": {"x" * 10_000: 1, "people": 1}}},
        {"layer_1": {"judges": "x" * 10_000}},
    ],
)
def test_one_bad_field_is_a_short_line(data):
    assert len(_error(**data)) < 300


def test_fields_that_are_named_are_those_that_can_be_written():
    assert "layers" not in _error(layers=[]).replace("config.layers", "")
    with pytest.raises(UserError, match="expected the fields title, .*, layer_1$"):
        settings.parse(Picture, 3)


# -------------------------------------------------------------- the other directions


DATA = {
    "title": "a cat",
    "layer_1": {"tool": {"kind": "pen", "width": 2}, "judges": {"chance": 1.0}},
    "layer_2": {"paper": {"size": 3.0}},
}


def test_plain_data_comes_back_as_the_same_value():
    value = settings.parse(Picture, DATA)
    plain = settings.to_dict(value)
    assert settings.parse(Picture, plain) == value
    assert plain["layer_1"]["tool"] == {"kind": "pen", "width": 2, "ink": "black"}
    assert plain["layer_2"]["paper"] == {"grain": 0.25, "size": 3.0}
    assert set(plain) == {"title", "artist", "file", "seed", "layer_1", "layer_2"}


def test_complete_adds_every_default_and_changes_nothing():
    whole = settings.complete(Picture, DATA)
    assert whole["artist"] == "someone"
    assert whole["layer_1"]["tool"] == {"kind": "pen", "width": 2, "ink": "black", "wet": False}
    assert whole["layer_1"]["paper"] == {"grain": 0.25, "size": 20.0}
    assert whole["layer_1"]["judges"] == {"chance": 1.0}
    assert whole["layer_2"]["tool"] == {"kind": "brush", "width": 4, "wet": False, "ink": "black"}
    assert settings.parse(Picture, whole) == settings.parse(Picture, DATA)
    assert "artist" not in DATA and "paper" not in DATA["layer_1"], "its argument stays as it is"
    assert settings.complete(Picture, {})["layer_1"] == settings.complete(Layer, {})


WRONG = [
    {"layer_1": 3},
    {"layer_1": {"paper": 3}},
    {"layer_1": {"tool": 3}},
    {"layer_1": {"tool": {"kind": "pan"}}},
    {"layer_1": {"tool": {"kind": 3}}},
    {"layer_1": {"judges": 3}},
    {"titel": 1},
]


@pytest.mark.parametrize("data", WRONG)
def test_what_is_wrong_stays_wrong_and_can_be_described(data):
    whole = settings.complete(Picture, data)
    with pytest.raises(UserError):
        settings.parse(Picture, whole)
    assert list(settings.describe(Picture, whole))


def test_every_field_is_described_in_the_order_of_the_fields():
    lines = {line.name: line for line in settings.describe(Picture, settings.complete(Picture, {}))}
    assert list(lines) == [
        "title",
        "artist",
        "file",
        "seed",
        "layer_1.tool.kind",
        "layer_1.tool.width",
        "layer_1.tool.wet",
        "layer_1.tool.ink",
        "layer_1.paper.grain",
        "layer_1.paper.size",
        "layer_1.judges.people",
    ]
    assert lines["file"].path == "file" and not lines["title"].path
    assert lines["seed"].expected == "a whole number of at least 0 and at most 2147483647"
    assert lines["layer_1.tool.kind"].expected == "one of brush, pen"
    assert lines["layer_1.tool.width"].help == "of a stroke (brush, pen)"
    assert lines["layer_1.tool.ink"].help == "its colour (pen)"
    assert lines["layer_1.judges.people"].expected == "one of people, chance"
    assert lines["layer_1.paper.grain"].value == 0.25


def test_changed_replaces_what_is_given():
    paper = Paper()
    assert settings.changed(paper, {"size": 3, "grain": None}) == Paper(size=3.0)
    assert settings.changed(paper, {}) == paper
    for changes, words in (
        ({"sise": 3}, "sise: unknown; did you mean 'size'?"),
        ({"size": 0}, "size: found 0, expected a number above 0"),
        ({"size": "x" * 1000}, "size: found 'xxx"),
        ({"x" * 10_000: 0}, "unknown"),
    ):
        with pytest.raises(UserError) as caught:
            settings.changed(paper, changes)
        assert words in str(caught.value) and len(str(caught.value)) < 300


def test_did_you_mean():
    assert did_you_mean("Clip_Txt", ["clip_text", "random"]) == "; did you mean 'clip_text'?"
    assert did_you_mean("xyz", ["clip_text", "random"]) == ""
    assert did_you_mean("cat.png", ["oak.png"]) != ""
    assert did_you_mean("cat.png", ["oak.png"], part=lambda name: name[:-4]) == ""
