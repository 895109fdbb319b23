"""The verdict on a run: which round is the best, and what is said of it."""

import pytest

from styledrop_jax.feedback.verdict import before, judge, worth


def _scores(style, content, leakage):
    return {
        "clip_style": style,
        "clip_content": content,
        "clip_sameness": leakage,
        "clip_leakage": leakage,
    }


BASE = _scores(0.3, 0.6, 0.1)


def test_worth_is_style_and_content():
    assert worth(_scores(0.7, 0.2, 0.1)) == pytest.approx(1.3)
    assert worth(_scores(0.7, 0.2, 0.9)) == worth(_scores(0.7, 0.2, 0.1))


def test_a_later_round_is_the_best_if_it_keeps_the_style_and_the_things():
    first = _scores(0.7, 0.5, 0.15)
    near = _scores(0.66, 0.45, 0.15)
    drifted = _scores(0.5, 0.6, 0.1)
    blurred = _scores(0.75, 0.3, 0.15)
    assert judge(BASE, [first, near]).round == 2
    assert judge(BASE, [first, drifted, near]).round == 3
    assert judge(BASE, [first, near, drifted]).round == 2
    assert judge(BASE, [first, first]).round == 2, "of equals the last"
    assert judge(BASE, [first, near]).remarks == []
    found = judge(BASE, [first, drifted])
    assert found.round == 1
    assert found.remarks == ["round 2 drifted from the style, by 0.20"]
    found = judge(BASE, [first, blurred])
    assert found.round == 1
    assert found.remarks == ["things of round 2 are harder to tell than of round 1"]


def test_a_round_that_lost_its_things_has_no_style_to_hold():
    leaking = _scores(0.9, 0.3, 0.5)
    assert judge(BASE, [leaking, _scores(0.6, 0.6, 0.1)]).round == 2


@pytest.mark.parametrize(
    ("base", "scores", "learnt"),
    [
        (BASE, _scores(0.8, 0.6, 0.1), "learnt well"),
        (BASE, _scores(0.45, 0.6, 0.1), "learnt in part"),
        (BASE, _scores(0.31, 0.6, 0.1), "hardly learnt"),
        (_scores(0.8, 0.6, 0.1), _scores(0.81, 0.6, 0.1), "the words alone do it"),
    ],
)
def test_how_well_the_style_is_learnt_is_what_it_gains_on_the_base_model(base, scores, learnt):
    verdict = judge(base, [scores])
    assert verdict.learnt == learnt
    assert bool(verdict.advice) == (learnt != "learnt well")


def test_what_leaks_or_is_hard_to_tell_is_said_with_something_to_try():
    leaking = judge(BASE, [_scores(0.9, 0.4, 0.4)])
    assert leaking.learnt == "learnt in part"
    assert any("leaks" in remark for remark in leaking.remarks)
    assert any("harder to tell" in remark for remark in leaking.remarks)
    assert "less" in leaking.advice
    hard = judge(BASE, [_scores(0.9, 0.3, 0.1)])
    assert hard.learnt == "learnt in part" and {"text", "less"} <= set(hard.advice)
    begun = judge(BASE, [_scores(0.31, 0.3, 0.1)])
    assert begun.learnt == "hardly learnt" and "less" not in begun.advice


def test_a_word_before_training():
    assert before(0.7, found=False).startswith("near")
    assert before(0.4, found=False).startswith("on the way")
    assert "another style; `styledrop describe` finds" in before(0.1, found=False)
    for style in (0.4, 0.1):
        said = before(style, found=True)
        assert "words of your own may be nearer" in said, "describe would find the same again"


def test_why_there_is_no_further_round_is_said_with_how_to_have_it():
    found = judge(BASE, [_scores(0.9, 0.6, 0.1)], "it is coarser")
    assert found.remarks == ["it stops after round 1: it is coarser"]
    assert found.advice == ("round",)
