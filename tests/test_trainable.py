"""Every kind of trainable on one pipeline: what trains, that the base stays, and that a file brings it back."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from styledrop_jax import guidance, trainable, tree
from styledrop_jax.adapters import custom_diffusion, lora, styledrop, svdiff
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.config import KINDS
from styledrop_jax.errors import UserError
from styledrop_jax.methods.table import METHODS
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.stages import objective, sources
from styledrop_jax.training import loop

FIELDS = {
    "rank": 3,
    "shared": True,
    "alpha": 6.0,
    "targets": "attention",
    "text_encoder": False,
    "vectors": 2,
    "initializer": "cat",
    "norm": False,
}
CHOICES = [
    *((kind, False) for kind in KINDS),
    *((kind, True) for kind in ("lora", "svdiff", "full")),
]
EVERY = pytest.mark.parametrize(("kind", "text_encoder"), CHOICES)
ON_BOTH = pytest.mark.parametrize(
    ("base", "kind", "text_encoder"),
    [
        *(("muse", *choice) for choice in CHOICES),
        *(
            ("stable_diffusion", *choice)
            for choice in (("styledrop", False), ("textual_inversion", False), ("full", True))
        ),
    ],
    indirect=["base"],
)
HYPER = {"text_dropout": 0.0, "min_snr_gamma": 5.0, "noise_offset": 0.1, "remat": False}
PROMPT = "a <cat>"
SETTINGS = SampleSettings(steps=2, temperature=1.0, lambda_a=1.5, lambda_b=2.0)


@pytest.fixture(scope="module")
def base(request, tiny_muse):
    """A pipeline of random weights."""
    return (
        tiny_muse
        if getattr(request, "param", "muse") == "muse"
        else load(str(tiny.stable_diffusion()))
    )


def _plan(kind: str, text_encoder: bool, **changes) -> trainable.Trainable:
    return trainable.trainable(
        FIELDS | {"kind": kind, "text_encoder": text_encoder} | changes, ["<cat>"]
    )


def _sources(model, prompts=(PROMPT, "a red house"), weight: float = 1.0) -> objective.Stream:
    images = np.random.default_rng(len(prompts)).integers(
        0, 256, (len(prompts), *[model.resolution] * 2, 3)
    )
    return objective.Stream(images.astype(np.uint8), list(prompts), weight)


def _moved(model, plan, size: float = 0.3):
    """The model with noise added to all that trains, as if trained, and that state."""
    whole = trainable.parts(model, plan)
    graphdef, state, rest = nnx.split(whole, plan.filter(), ...)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype), nnx.as_pure(state)
    )
    whole = nnx.merge(graphdef, state, nnx.as_pure(rest))
    return dataclasses.replace(
        model, **{name: whole[name] for name in ("denoiser", "text") if name in whole}
    ), state


def _drawn(branches, n: int = 2) -> np.ndarray:
    return np.concatenate(
        list(guidance.generate(branches, range(n), settings=SETTINGS, batch_size=2))
    )


@EVERY
def test_a_plan_survives_its_file(kind, text_encoder):
    plan = _plan(kind, text_encoder)
    assert trainable.Trainable.from_dict(plan.to_dict()) == plan
    assert plan.trains_text == (text_encoder or kind in ("textual_inversion", "custom_diffusion"))


@ON_BOTH
def test_gradients_reach_what_trains_and_the_base_stays(kind, text_encoder, base):
    plan = _plan(kind, text_encoder)
    before = {
        name: np.array(x) for name, x in tree.flatten(nnx.state((base.denoiser, base.text))).items()
    }
    model, _ = _moved(trainable.attach(base, plan, rngs=nnx.Rngs(0)), plan, 0.02)
    data, loss = objective.prepare(model, plan, [_sources(model)], HYPER)
    graphdef, params, frozen = loop.split(data, plan.filter())
    names = set(tree.flatten(params))
    rows, keys = jnp.array([[0], [1]]), jax.random.split(jax.random.key(0), 2)
    gradient = jax.jit(
        jax.grad(lambda params: loss(nnx.merge(graphdef, params, frozen), rows, keys)[0])
    )
    sizes = {
        name: np.abs(np.asarray(grad)).max()
        for name, grad in tree.flatten(gradient(params)).items()
    }
    silent = sorted(name for name, size in sizes.items() if not size > 0)
    # In a text tower not all is looked at: rows of words that no prompt has, and what is behind the layer that is read.
    whole = isinstance(plan.denoiser, trainable.Full)
    assert all("text" in name or (whole and "embed" in name) for name in silent), silent
    expected = {"denoiser"} if plan.denoiser else set()
    assert {name.split(".")[1] for name in names} == expected | (
        {"text"} if plan.trains_text else set()
    )
    after = tree.flatten(nnx.state((base.denoiser, base.text)))
    assert set(after) == set(before) and all(
        np.array_equal(before[name], after[name]) for name in before
    )


@ON_BOTH
def test_a_file_brings_it_back_and_off_is_the_base(kind, text_encoder, base, tmp_path):
    plan = _plan(kind, text_encoder)
    model, state = _moved(trainable.attach(base, plan, rngs=nnx.Rngs(0)), plan)
    path = tmp_path / "adapter.safetensors"
    save_adapter(
        path, state, base_name="tiny", base_hash=base.base_hash, config=plan.to_dict(), round=1
    )
    prompts = [PROMPT, "a red house"]
    tuned, loaded = guidance.adapted(base, model, plan), guidance.load(base, path)
    alone = _drawn(guidance.base_branches(base, prompts, SETTINGS))
    images = _drawn(guidance.style_branches(tuned, prompts, SETTINGS))
    np.testing.assert_array_equal(
        _drawn(guidance.style_branches(loaded, prompts, SETTINGS)), images
    )
    assert np.abs(images - alone).max() > 0.01
    without = dataclasses.replace(SETTINGS, lambda_a=-1.0)  # Eq. 4 without its first branch
    plain = _drawn(guidance.style_branches(tuned, prompts, without))
    np.testing.assert_allclose(plain, alone, atol=1e-3)


def test_guidance_without_the_base_is_of_the_tuned_model(base):
    """With lambda_b 0 it draws by the tuned model's own output; two-scale guidance does so at lambda_a 0."""
    plan = _plan("lora", False)
    model, _ = _moved(trainable.attach(base, plan, rngs=nnx.Rngs(0)), plan)
    tuned = guidance.adapted(base, model, plan)
    free = dataclasses.replace(SETTINGS, guidance="classifier_free", lambda_b=0.0)
    scaled = dataclasses.replace(SETTINGS, lambda_a=0.0, lambda_b=0.0)
    np.testing.assert_allclose(
        _drawn(guidance.style_branches(tuned, ["a cat", "a dog"], free)),
        _drawn(guidance.style_branches(tuned, ["a cat", "a dog"], scaled)),
        atol=1e-3,
    )


def test_streams_pair_up_and_count_by_their_weights(base):
    plan = _plan("lora", False)
    model = trainable.attach(base, plan, rngs=nnx.Rngs(0))
    first, second = _sources(model), _sources(model, ("a dog", "a house", "a cat"), weight=0.5)
    rows = objective.batches([first, second], batch_size=2, seed=0)(0, 6)
    assert (
        rows.shape == (6, 2, 2)
        and set(rows[..., 0].ravel()) == {0, 1}
        and set(rows[..., 1].ravel()) == {2, 3, 4}
    )
    assert all(
        sorted(rows[3 * e : 3 * e + 3, :, 1].ravel()) == [2, 2, 3, 3, 4, 4] for e in range(2)
    )
    np.testing.assert_array_equal(
        objective.batches([first, second], batch_size=2, seed=0)(4, 2), rows[4:]
    )
    data, loss = objective.prepare(model, plan, [first, second], HYPER)
    rows, keys = jnp.array([[0, 2], [1, 3]]), jax.random.split(jax.random.key(1), 2)
    value, metrics = jax.jit(loss)(data, rows, keys)
    np.testing.assert_allclose(value, metrics["loss_0"] + 0.5 * metrics["loss_1"], rtol=1e-6)


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"], indirect=True)
def test_parts_and_recomputation_change_no_gradient(base):
    """Each example has the randomness that it has in the whole batch; what is recomputed is not kept."""
    plan = _plan("full", False)
    model = trainable.attach(base, plan, rngs=nnx.Rngs(0))
    source, hyper = _sources(model), HYPER | {"text_dropout": 0.5}
    rows, keys = jnp.array([[0], [1], [1], [0]]), jax.random.split(jax.random.key(2), 4)

    def gradient(remat):
        data, loss = objective.prepare(model, plan, [source], hyper | {"remat": remat})
        graphdef, params, frozen = loop.split(data, plan.filter())
        value = lambda params, rows, keys: loss(nnx.merge(graphdef, params, frozen), rows, keys)[0]  # noqa: E731
        kept = jax.eval_shape(
            lambda params: jax.vjp(lambda params: value(params, rows, keys), params)[1], params
        )
        size = sum(x.size for x in jax.tree.leaves(kept))
        return functools.partial(jax.jit(jax.value_and_grad(value)), params), size

    (whole, most), (again, least) = gradient(False), gradient(True)
    expected, first, second = (
        whole(rows, keys),
        again(rows[::2], keys[::2]),
        again(rows[1::2], keys[1::2]),
    )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    for found, right in zip(jax.tree.leaves(mean), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-3 * np.abs(right).max() + 1e-5)
    assert least < 0.8 * most


@pytest.mark.parametrize("base", ["stable_diffusion"], indirect=True)
def test_unmixing_adds_the_attention_of_a_subjects_words_to_the_others_half(base):
    mixed = dataclasses.replace(
        METHODS["cut_mix"].mixed, prompt="{left} and {right}"
    )  # short, as texts are here
    method = dataclasses.replace(METHODS["cut_mix"], mixed=mixed)
    images = _sources(base).images
    examples = [
        SimpleNamespace(image=x, content=c)
        for x, c in zip(images, ("a cat", "a red dog"), strict=True)
    ]
    config = {"mix": {"weight": 1.5, "unmix": 0.5}, "round_1": {"train": HYPER}}
    (mixed,) = sources.mixed(method, config, examples, base)
    ids = base.text_ids(mixed.prompts)
    for row, apart, (left, right) in zip(
        ids, mixed.apart, (("cat", "red dog"), ("red dog", "cat")), strict=True
    ):
        own = [row[apart[:, half] > 0] for half in (1, 0)]
        assert [base.tokenizer.decode(found).split() for found in own] == [
            left.split(),
            right.split(),
        ], "without 'a'"
        assert apart.sum() == pytest.approx(0.5)

    plan, (plain, keys) = (
        _plan("full", False),
        (_sources(base), jax.random.split(jax.random.key(0), 2)),
    )
    losses = {}
    for name, stream in (("with", mixed), ("without", mixed._replace(apart=None))):
        data, loss = objective.prepare(base, plan, [plain, stream], HYPER)
        losses[name] = jax.jit(loss)(data, jnp.array([[0, 2], [1, 3]]), keys)
    (value, metrics), (without, other) = losses["with"], losses["without"]
    assert metrics["unmix"] > 1e-4 and "unmix" not in other
    np.testing.assert_allclose(
        value - without, 1.5 * 2 * metrics["unmix"], rtol=1e-2
    )  # half of the mean are zeros
    np.testing.assert_allclose(metrics["loss_0"], other["loss_0"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "textual_inversion", "initializer": "a red house"}, "initializer"),
        ({"kind": "lora", "alpha": -1.0}, "lora alpha"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(changes, words, base):
    with pytest.raises(UserError, match=words):
        trainable.attach(base, _plan(**{"text_encoder": False} | changes), rngs=nnx.Rngs(0))


def test_a_new_word_needs_one():
    with pytest.raises(UserError, match="config.words.identifier: empty"):
        trainable.trainable(FIELDS | {"kind": "textual_inversion"}, [])


@pytest.mark.parametrize(
    "config", [{}, {"denoiser": {"adapter": "magic"}, "text": None, "words": None}, {"rank": 4}]
)
def test_a_file_of_something_else_is_refused(config):
    with pytest.raises(UserError, match="adapter"):
        trainable.Trainable.from_dict(config)


def test_every_adapter_has_its_kind():
    modules = (styledrop, lora, svdiff, custom_diffusion)
    assert {module.Config.kind for module in modules} | {"full", "textual_inversion"} == set(KINDS)
