"""Which words a shipped model was taught."""

from styledrop_jax.io import hub
from styledrop_jax.methods import prompts
from styledrop_jax.methods.base import Prompt
from styledrop_jax.models.reading import Reading
from styledrop_jax.stages.begin import warn_of_unknown

MODEL = hub.SHIPPED / "emoji128-muse"


def test_prompts_that_name_nothing_known_and_words_that_are_names():
    asked = ["a cat", "two Cars on blue", "a zeppelin", "a zeppelin", "a category"]
    assert prompts.unknown(asked, MODEL) == ["a zeppelin", "a category"]
    assert prompts.known(["car", "Crown", "ged", "a car"], MODEL) == ["car", "Crown"]
    nowhere = hub.SHIPPED / "none"
    assert prompts.unknown(asked, nowhere) == [] and prompts.known(["car"], nowhere) == []


def test_words_of_a_style_are_no_thing_that_was_taught(caplog):
    """An orange is a fruit that the model knows; orange paper is none."""
    style = "in ink on orange paper style"
    asked = [
        Prompt(content="a teapot", text=f"a teapot {style}", judged=f"a teapot {style}"),
        Prompt(content="a cat", text=f"a cat {style}", judged=f"a cat {style}"),
        Prompt(content="{subject}", text="a sks dog", judged="a dog"),
    ]
    warn_of_unknown("emoji128", asked, Reading())
    assert caplog.text.count("names nothing that emoji128 was taught") == 1
    assert "'a teapot' names nothing" in caplog.text
