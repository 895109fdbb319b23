"""What a run came to: one number to choose by, and a verdict in plain words.

The scores are means over the samples of a stage, cosines of CLIP features: `clip_content` with the
prompt, `clip_style` with the references, `clip_leakage` with the words for what they show.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

Scores = Mapping[str, float]
WELL = "learnt well"

_FEW = 0.05  # a difference of scores that an eye does not see
_CONTENT = 3.0  # content spans about a third of what style does
_LEAK = 0.08  # more than the base model has: some prompts show what the reference shows
_LOST = 0.75  # of the base model's content, below which things are hard to tell
_WELL = 0.5  # of the way from the base model to the reference itself
_HOLD = 0.01  # of the style: a state of a later round may fall short by so much
_DRIFT = 0.06  # of the style: a later round that falls short by more is not the best
_LOSS = 1 / 3  # of the first round's content: nor is one that loses more
_NEAR = 0.6
_FAR = 0.3


def worth(scores: Scores) -> float:
    """Style and three times content: the state of a round with most of it is the best.

    A leak has its price in content: things that turn into what the reference shows are less of what
    their prompts ask for, also where the leakage by words does not tell. Sameness is no part of it,
    since images of one style are alike too.
    """
    return scores["clip_style"] + _CONTENT * scores["clip_content"]


def before(style: float, *, found: bool) -> str:
    """What the words of the style bring by themselves.

    Args:
        style: the base model's mean style score.
        found: whether the words are those that `styledrop describe` finds.
    """
    if style >= _NEAR:
        return "near to the reference: the words say much of the style"
    own = "`styledrop describe` finds these; words of your own may be nearer"
    if style >= _FAR:
        nearer = own if found else "words nearer to it would help (`styledrop describe`)"
        return f"on the way to the reference: {nearer}"
    finds = "`styledrop describe` finds nearer ones for its colours, lines and ground"
    nearer = own if found else finds
    return f"far from the reference: the model takes these words for another style; {nearer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A run in plain words.

    Attributes:
        round: the best, from 1.
        learnt: how well the best round has the style, in a word or two.
        remarks: what else there is to know, a sentence each.
        advice: what to try: "words", "pictures" of the style, "more" or "less" of it, more
            of the "text", a further "round".
    """

    round: int
    learnt: str
    remarks: Sequence[str] = ()
    advice: Sequence[str] = ()


def judge(base: Scores, rounds: Sequence[Scores], ends: str = "") -> Verdict:
    """The verdict on a run.

    The best is the last round that keeps the first one's style and things. A later one has learnt
    from samples of many things and leaks less, which a sum of scores does not tell: a blind viewer
    took it where the sum said the first. A first round whose things are hard to tell has no style
    to keep.

    Args:
        base: the base model's under the words of the style alone.
        rounds: of each round, in their order; at least one.
        ends: why there is no further one; empty if nothing is said of that.
    """
    first = rounds[0]
    best = 0
    remarks = []
    for i, later in enumerate(rounds):
        drifted = first["clip_style"] - later["clip_style"]
        unlike = first["clip_content"] - later["clip_content"]
        if drifted > _DRIFT and not _lost(first, base):
            remarks.append(f"round {i + 1} drifted from the style, by {drifted:.2f}")
        elif unlike > _LOSS * abs(first["clip_content"]):
            remarks.append(f"things of round {i + 1} are harder to tell than of round 1")
        else:
            best = i
    scores = rounds[best]
    gained = scores["clip_style"] - base["clip_style"]
    way = gained / max(1 - base["clip_style"], _FEW)
    leaked = scores["clip_leakage"] - base["clip_leakage"]
    advice = []
    if gained < _FEW:
        learnt = "the words alone do it" if base["clip_style"] >= _NEAR else "hardly learnt"
        advice += ["words", "more"]
    elif way >= _WELL:
        learnt = WELL
    else:
        learnt = "learnt in part"
        advice += ["words", "pictures"]
    if leaked > _LEAK:
        remarks.append("it leaks: other things take on what the reference shows")
        advice += ["less", "pictures"]
    if _lost(scores, base):
        learnt = "learnt in part" if learnt == WELL else learnt
        remarks.append("things are harder to tell than the base model's")
        advice += ["text"] if "more" in advice else ["text", "less"]
    if ends:
        remarks.append(f"it stops after round {len(rounds)}: {ends}")
        advice.append("round")
    return Verdict(
        round=best + 1, learnt=learnt, remarks=remarks, advice=tuple(dict.fromkeys(advice))
    )


def style_to_hold(first: Scores, base: Scores) -> float:
    """The style score that a state of a later round is to reach: about the first one's; none if
    things are hard to tell there.
    """
    return -math.inf if _lost(first, base) else first["clip_style"] - _HOLD


def _lost(scores: Scores, base: Scores) -> bool:
    """Whether things are harder to tell than the base model's."""
    return scores["clip_content"] < _LOST * base["clip_content"]
