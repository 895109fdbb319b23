"""Which words a shipped model was taught."""

from styledrop_jax.io import hub
from styledrop_jax.methods import prompts

MODEL = hub.SHIPPED / "emoji64"


def test_prompts_that_name_nothing_known_and_words_that_are_names():
    asked = ["a cat", "two Cars on blue", "a zeppelin", "a zeppelin", "a category"]
    assert prompts.unknown(asked, MODEL) == ["a zeppelin", "a category"]
    assert prompts.known(["car", "Crown", "ged", "a car"], MODEL) == ["car", "Crown"]
    nowhere = hub.SHIPPED / "none"
    assert prompts.unknown(asked, nowhere) == [] and prompts.known(["car"], nowhere) == []
