"""Hard-prompt optimisation: words of the vocabulary that CLIP finds likest to pictures, by gradient
descent (PEZ, arXiv 2302.03668, Alg. 1).

Continuous embeddings are kept. In each step they are projected to the nearest embeddings of words;
the gradient of the loss, taken there, is applied to the continuous ones. The likest words that any
step came by are the result.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from styledrop_jax.adapters.textual_inversion import Rows
from styledrop_jax.errors import UserError
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.models.clip import Clip

_SHORTEST = 3  # letters of a word
_BEFORE, _AFTER = "in", "style"


class Found(NamedTuple):
    """A descriptor, "in … style", and the mean cosine of the pictures and their contents under
    it.
    """

    descriptor: str
    likeness: float


def find(
    images: np.ndarray,
    contents: Sequence[str],
    clip: ClipScorer,
    *,
    words: int = 6,
    steps: int = 500,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Found:
    """Finds words of a style.

    Args:
        images: [n, h, w, 3] in [0, 1], any size.
        contents: what each shows; a prompt is "{content} in {words} style".
        clip: whose vocabulary the words are of, and which says how well they fit.
        words: how many, of one token each.
        steps, learning_rate: of AdamW, whose weight decay is 0.1, as the paper's.
        seed: of the words to start from.

    Raises:
        UserError: the prompts have more tokens than the text tower reads, or its vocabulary has no
            whole words.
    """
    known = _words(clip, contents)
    seen = jnp.asarray(clip.image_features(images))
    ids = _ids(clip, contents, words)
    graphdef, state = nnx.split(clip.model)
    model = clip.model
    table = model.text.text_model.embeddings.token_embedding.embedding[...].astype(jnp.float32)
    rows = table[jnp.array(list(known.values()))]
    start = jax.random.choice(jax.random.key(seed), len(rows), (words,))
    best = _search(graphdef, state, rows, rows[start], ids, seen, steps, learning_rate)
    said = " ".join(list(known)[i] for i in np.asarray(best))
    descriptor = f"{_BEFORE} {said} {_AFTER}"
    texts = clip.text_features([f"{content} {descriptor}" for content in contents])
    return Found(descriptor, float(np.mean(np.sum(texts * np.asarray(seen), axis=1))))


def _words(clip: ClipScorer, contents: Sequence[str]) -> dict[str, int]:
    """The words of one token each, with its id: those that the tokenizer reads as it writes them,
    and that say nothing of what the pictures show.
    """
    tokenizer = clip.tokenizer
    vocabulary = tokenizer.get_vocab()
    ids = sorted(vocabulary.values())
    written = [str(tokenizer.decode([i])).strip() for i in ids]
    read: Any = tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
    shown = {word for content in contents for word in content.lower().split()}
    found = {}
    for i, word, again in zip(ids, written, read, strict=True):
        if again == [i] and len(word) >= _SHORTEST and word.isalpha() and word not in shown:
            found.setdefault(word, i)
    if not found:
        raise UserError("clip: its vocabulary has no whole words; expected CLIP's own tokenizer")
    return found


def _ids(clip: ClipScorer, contents: Sequence[str], words: int) -> jax.Array:
    """Token ids [n, t] of the prompts, as short as they go; the words to find have ids that follow
    the vocabulary's.
    """
    tokenizer = clip.tokenizer
    first = clip.model.config.text.vocab_size
    after = tokenizer(_AFTER, add_special_tokens=False)["input_ids"]
    rows = []
    for content in contents:
        before = tokenizer(f"{content} {_BEFORE}", add_special_tokens=False)["input_ids"]
        free = range(first, first + words)
        rows.append([tokenizer.bos_token_id, *before, *free, *after, tokenizer.eos_token_id])
    longest = max(len(row) for row in rows)
    if longest > clip.length:
        raise UserError(
            f"words: a prompt with {words} of them has {longest} tokens, the text encoder reads "
            f"{clip.length}; expected fewer, or shorter words for what the picture shows"
        )
    padding = tokenizer.pad_token_id
    return jnp.array([row + [padding] * (longest - len(row)) for row in rows])


def _search(
    graphdef: nnx.GraphDef[Clip],
    state: nnx.State,
    rows: jax.Array,
    start: jax.Array,
    ids: jax.Array,
    seen: jax.Array,
    steps: int,
    learning_rate: float,
) -> jax.Array:
    """The places in `rows` [m, d] of the words [k] with the least loss of all steps."""
    optimizer = optax.adamw(learning_rate, weight_decay=0.1)
    directions = _unit(rows)

    def loss(hard: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        first = model.config.text.vocab_size
        embeddings: Any = model.text.text_model.embeddings
        embeddings.adapter = nnx.data(Rows(hard, first=first, norm=None))
        return 1 - jnp.mean(jnp.sum(model.text_features(ids) * seen, axis=1))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        soft, moments, best, least = carry
        nearest = jnp.argmax(_unit(soft) @ directions.T, axis=1)
        value, gradient = jax.value_and_grad(loss)(rows[nearest])
        best = jnp.where(value < least, nearest, best)
        updates, moments = optimizer.update(gradient, moments, soft)
        carry = (soft + updates, moments, best, jnp.minimum(value, least))
        return carry, None

    @jax.jit
    def search(soft: jax.Array) -> jax.Array:
        begin = (soft, optimizer.init(soft), jnp.zeros(len(soft), int), jnp.inf)
        (_, _, best, _), _ = jax.lax.scan(step, begin, length=steps)
        return best

    return search(start)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
