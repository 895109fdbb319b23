"""How a model's parameters are named and laid out in a reference checkpoint.

A model file declares `RULES`: an ordered tuple of `Rule`s, the first whose `path` matches a parameter's dotted NNX path
in full gives its tensor name and layout. `styledrop_jax.pretrained` applies them in both directions.
"""

import dataclasses
import re
from typing import Literal

Layout = Literal["same", "linear", "conv", "conv_transpose", "1x1", "row"]
"""How our array becomes the file's tensor.

same: no change. linear: [in, out] → [out, in]. conv: HWIO → OIHW. conv_transpose: HWIO → IOHW.
1x1: [in, out] → [out, in, 1, 1]. row: [c] → [1, 1, 1, c].
"""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One pattern: a regular expression over dotted NNX paths, the tensor name it expands to, and the layout."""

    path: str
    name: str
    layout: Layout = "same"


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of one model.

    Attributes:
        rules: tried in order; the first full match wins.
        renames: (regex, replacement) pairs applied to the *file's* tensor names before matching: other spellings of the
            same tensor in older files.
        ignored: regex of file tensors that carry no parameter (buffers such as `position_ids`).
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(?!)"

    def name_of(self, path: str) -> tuple[str, Layout]:
        """The tensor name and layout of the parameter at dotted NNX `path`; KeyError if no rule matches."""
        for rule in self.rules:
            if match := re.fullmatch(rule.path, path):
                return match.expand(rule.name), rule.layout
        raise KeyError(path)


NORMS = Rule(r"(.+)\.scale", r"\1.weight")
BIASES = Rule(r"(.+)\.bias", r"\1.bias")
EMBEDDINGS = Rule(r"(.+)\.embedding", r"\1.weight")
LINEARS = Rule(r"(.+)\.kernel", r"\1.weight", "linear")
COMMON = (NORMS, BIASES, EMBEDDINGS, LINEARS)
"""Put after a model's own rules: norm scales, biases, embedding tables, and every remaining kernel as a linear."""
