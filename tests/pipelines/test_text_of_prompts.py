"""Weights and long prompts: the features of the reference's text towers, weighted and joined here
by hand; training and sampling with them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from flax import nnx
from references import LENGTH

from styledrop_jax import guidance, trainable
from styledrop_jax.adapters import lora
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.adapters.textual_inversion import Config, Token
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import merged
from styledrop_jax.models.reading import Reading
from styledrop_jax.pipelines.base import SampleSettings, TrainSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.stages import objective

BOTH = Reading(weights=True, long=True)
ROOM = LENGTH - 2
Chunks = list[list[tuple[str, float]]]
PROMPT = "a (red:1.4) house BREAK [a dog]"
CHUNKS: Chunks = [[("a", 1), ("red", 1.4), ("house", 1)], [("a dog", 1 / 1.1)]]


def _rows(tokenizer, chunks: Chunks, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights of each chunk, padded."""
    ids = torch.full((len(chunks), length), tokenizer.pad_token_id)
    weights = torch.ones(len(chunks), length)
    for row, chunk in enumerate(chunks):
        place = 1
        ids[row, 0] = tokenizer.bos_token_id
        for text, weight in chunk:
            for token in tokenizer(text, add_special_tokens=False).input_ids:
                ids[row, place] = token
                weights[row, place] = weight
                place += 1
        ids[row, place] = tokenizer.eos_token_id
    return ids, weights


def _joined(states: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """Weighted, each chunk's mean kept, one after the other."""
    found = []
    for chunk, own in zip(states, weights, strict=True):
        changed = chunk * own[:, None]
        found.append(changed * (chunk.mean() / changed.mean()))
    return torch.cat(found).numpy()


@torch.no_grad()
def _reference(parts: Any, chunks: Chunks) -> np.ndarray:
    ids, weights = _rows(parts["tokenizer"], chunks, LENGTH)
    return _joined(parts["text_encoder"](ids)[0], weights)


@pytest.fixture
def model(models):
    return models["epsilon"].reads(BOTH)


def test_weights_and_chunks_are_the_references(model, parts):
    long = "a cat " * 8
    found = model.encode_text([PROMPT, "a cat", long]).states
    assert found.shape == (3, 2 * LENGTH, 16)
    for states, chunks in zip(
        found,
        [CHUNKS, [[("a cat", 1)], []], [[("a cat " * 5, 1)], [("a cat " * 3, 1)]]],
        strict=True,
    ):
        np.testing.assert_allclose(states, _reference(parts, chunks), atol=1e-4, rtol=1e-4)


def test_prompts_without_weights_have_the_features_of_before(models, model):
    prompts = ["a cat", "", "a red house"]
    plain = models["epsilon"].encode_text(prompts).states
    np.testing.assert_array_equal(model.encode_text(prompts).states, plain)
    longer = model.encode_text([*prompts, PROMPT]).states
    np.testing.assert_array_equal(longer[:3, :LENGTH], plain)


@functools.cache
def _xl() -> tuple[Any, Any]:
    from diffusers import StableDiffusionXLPipeline

    base = load(str(tiny.stable_diffusion_xl()))
    folder = tiny.home() / "reference_of_reading"
    merged.save(folder, base, dtype="float32")
    return base, StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.filterwarnings("ignore")
def test_both_towers_of_xl_are_the_references_and_pooled_is_the_first_chunk():
    base, reference = _xl()
    states = []
    pooled = None
    for end in ("", "_2"):
        tokenizer = getattr(reference, f"tokenizer{end}")
        ids, weights = _rows(tokenizer, CHUNKS, base.prompt_length)
        with torch.no_grad():
            out = getattr(reference, f"text_encoder{end}")(ids, output_hidden_states=True)
        states.append(_joined(out.hidden_states[-2], weights))
        pooled = out[0][0]
    found = base.reads(BOTH).encode_text([PROMPT, "", "BREAK a dog"])
    expected = np.concatenate(states, axis=-1)
    np.testing.assert_allclose(found.states[0], expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled[0], pooled, atol=1e-4)
    assert not found.states[1].any() and not found.pooled[1].any(), "the empty prompt is zeros"
    assert found.states[2, : base.prompt_length].any(), "and an empty chunk is not"


def test_a_learnt_word_has_weights_and_trains_under_them(models):
    words = Config(tokens=(Token(word="<hut>", initializer="a", vectors=2),))
    what = Trainable(words=words, denoiser=None, text=lora.Config(rank=2, alpha=2.0))
    model = trainable.attach(models["epsilon"].reads(BOTH), what, rngs=nnx.Rngs(0))
    tokens = model.text_tokens(["a (<hut>:1.5) house, " + "a cat " * 5])
    of_word = tokens.ids >= len(models["epsilon"].tokenizer)
    assert of_word.sum() == 2 and (tokens.weights[of_word] == 1.5).all()
    assert tokens.ids.shape == (1, 2, LENGTH)
    graphdef, state, rest = nnx.split(model.text, nnx.All(trainable.trained(what)), ...)

    def loss(state: Any) -> jax.Array:
        tower = nnx.merge(graphdef, state, rest)
        return (model.text_features(tower, tokens).states ** 2).mean()

    gradient = jax.grad(loss)(nnx.as_pure(state))
    rows = gradient["text_model"]["embeddings"]["adapter"]["delta"]
    assert np.abs(rows).min(axis=-1).shape == (2,) and np.abs(rows).sum(axis=-1).all()


def test_training_reads_prompts_so_whether_or_not_the_text_tower_trains(models):
    small = lora.Config(rank=2, alpha=2.0)
    settings = TrainSettings(text_dropout=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    batch = objective.Batch(images=list(images), prompts=[PROMPT, "a cat"])
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(reading: Reading, what: Trainable) -> float:
        base = models["epsilon"].reads(reading)
        model = trainable.attach(base, what, rngs=nnx.Rngs(0))
        data, loss_of = objective.prepare(model, what, [batch], settings)
        return float(jax.jit(loss_of)(data, jnp.array([[0], [1]]), keys)[0])

    cached = loss(BOTH, Trainable(denoiser=small))
    np.testing.assert_allclose(cached, loss(BOTH, Trainable(denoiser=small, text=small)), rtol=1e-5)
    assert abs(cached - loss(Reading(), Trainable(denoiser=small))) > 1e-4


def test_an_image_depends_on_its_own_prompts_whatever_it_is_sampled_with(model):
    settings = SampleSettings(batch_size=2, steps=2, guidance="classifier_free")
    tuned = guidance.bare(model)

    def sampled(prompts: list[str]) -> np.ndarray:
        branches = guidance.classifier_free(tuned, prompts, settings)
        seeds = list(range(len(prompts)))
        return np.concatenate(list(guidance.generate(branches, seeds, settings=settings)))

    both = sampled(["a cat", "a cat " * 8])
    np.testing.assert_array_equal(both[0], sampled(["a cat", "a dog"])[0])
    assert np.abs(both[1] - sampled(["a cat", "a cat " * 5])[1]).max() > 1e-3
    short = guidance.bare(dataclasses.replace(model, reading=Reading()))
    plain = guidance.classifier_free(short, ["a cat", "a dog"], settings)
    unread = np.concatenate(list(guidance.generate(plain, [0, 1], settings=settings)))
    np.testing.assert_array_equal(both[0], unread[0])


def test_a_muse_reads_long_prompts_and_refuses_weights(tiny_muse):
    with pytest.raises(UserError, match="^prompt_weights: found true, expected false: 'tiny' is a"):
        tiny_muse.reads(BOTH)
    model = tiny_muse.reads(Reading(long=True))
    found = model.encode_text(["a cat " * 8, "a dog"])
    first = tiny_muse.encode_text(["a cat " * 5, "a dog"])
    length = model.prompt_length
    assert found.states.shape[1] == 2 * length
    np.testing.assert_array_equal(found.states[:, :length], first.states)
    np.testing.assert_array_equal(found.pooled, first.pooled)


def test_weights_do_nothing_to_a_muse(tiny_muse):
    """Which is why they are refused."""
    text = tiny_muse.encode_text(["a red house"])
    tokens = jnp.arange(16).reshape(1, 4, 4)
    states = text.states * jnp.linspace(0.5, 2, text.states.shape[1])[:, None]
    micro = tiny_muse.micro[None]
    plain = tiny_muse.denoiser(tokens, text.states, text.pooled, micro)
    np.testing.assert_allclose(
        tiny_muse.denoiser(tokens, states, text.pooled, micro), plain, atol=1e-3
    )
