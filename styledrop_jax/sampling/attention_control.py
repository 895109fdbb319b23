"""Control of cross-attention between two images that are generated together from the same noise.

Prompt-to-Prompt (2208.01626 §3) swaps a word: the new image is generated with the attention maps of
the old one, at all tokens, for a share of the steps. StyO's fine-grained content controller
(2303.03231) does so at the words of the content alone. Both need prompts that align token for
token.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial


def replacement(
    *, tokens: np.ndarray, branches: Sequence[bool], share: float, steps: int, start: int = 0
) -> Partial:
    """A control of batches of pairs: entry 2i + 1 attends as entry 2i does, which is left alone.

    Args:
        tokens: bool [t], at which tokens. All of them is Prompt-to-Prompt's replacement.
        branches: bool [k], in which branches of guidance: those under the prompt.
        share: in [0, 1], of the steps that are taken, counted from the first; 0 is no control.
        steps: of the sampler.
        start: the first that is taken.

    Returns:
        (weights [b, heads, n, t], place, step, branch) → weights; b is even. Its arrays are traced,
        so that other values need no new compilation.
    """
    until = start + math.ceil(share * (steps - start) - 1e-6)
    return Partial(_replace, jnp.asarray(tokens), jnp.asarray(branches), jnp.asarray(until))


def _replace(tokens, branches, until, weights, place, step, branch) -> jax.Array:
    del place  # every layer
    taken = jnp.repeat(weights[0::2], 2, axis=0)
    return jnp.where(branches[branch] & (step < until) & tokens, taken, weights)


def aligned_tokens(source: np.ndarray, target: np.ndarray, part: np.ndarray) -> np.ndarray | None:
    """Where the words `part` stand in two prompts that align: bool [t], or None if they do not.

    They align if they have as many tokens and `part` stands at the same place in both. If there are
    several such places, the last one counts.

    Args:
        source, target: token ids int [t] of both prompts, from the start to the end token, without
            padding.
        part: the ids of words that both say, without start and end.
    """
    if len(source) != len(target):
        return None
    size = len(part)
    for start in reversed(range(len(source) - size + 1)):
        place = slice(start, start + size)
        if np.array_equal(source[place], part) and np.array_equal(target[place], part):
            found = np.zeros(len(source), bool)
            found[place] = True
            return found
    return None
