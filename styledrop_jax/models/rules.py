"""How a model's parameters are named and laid out in a reference checkpoint.

A model's file declares `RULES`, an ordered tuple of `Rule`s. The first rule whose `path` matches a
parameter's dotted NNX path in full gives its tensor name and layout. `styledrop_jax.io.pretrained`
applies them in both directions.
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
    """The name and layout of the parameters whose path matches a pattern.

    Attributes:
        path: a regular expression over dotted NNX paths.
        name: the tensor name, which may refer to the pattern's groups.
        layout: how our array becomes the file's tensor.
    """

    path: str
    name: str
    layout: Layout = "same"


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of one model.

    Attributes:
        rules: tried in order; the first full match wins.
        renames: (regex, replacement) pairs that are applied to the *file's* tensor names before
            matching, for other spellings of the same tensor in older files.
        ignored: regex of file tensors that hold no parameter (buffers such as `position_ids`).
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(?!)"

    def renamed(self, name: str) -> str:
        """What a tensor of an older file is called now."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def name_of(self, path: str) -> tuple[str, Layout]:
        """The tensor name and layout of the parameter at dotted NNX `path`.

        Raises:
            KeyError: no rule matches.
        """
        for rule in self.rules:
            match = re.fullmatch(rule.path, path)
            if match:
                return match.expand(rule.name), rule.layout
        raise KeyError(path)


NORMS = Rule(r"(.+)\.scale", r"\1.weight")
BIASES = Rule(r"(.+)\.bias", r"\1.bias")
EMBEDDINGS = Rule(r"(.+)\.embedding", r"\1.weight")
LINEARS = Rule(r"(.+)\.kernel", r"\1.weight", "linear")
COMMON = (NORMS, BIASES, EMBEDDINGS, LINEARS)
"""Rules that follow a model's own: norm scales, biases, embedding tables, and linear kernels."""
