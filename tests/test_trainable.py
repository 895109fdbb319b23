"""Every kind of trainable on one pipeline: what trains, that the base stays, what a file holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from styledrop_jax import guidance, trainable, tree
from styledrop_jax.adapters import full
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.errors import UserError
from styledrop_jax.methods.base import Example, Stream
from styledrop_jax.pipelines.base import SampleSettings, TrainSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.registry import ADAPTERS
from styledrop_jax.stages import objective
from styledrop_jax.training import loop, optim
from styledrop_jax.training.step import make_train_step

FIELDS = {
    "rank": 3,
    "shared": True,
    "alpha": 6.0,
    "targets": "attention",
    "vectors": 2,
    "initializer": "cat",
}
CHOICES = [(kind, False) for kind in ADAPTERS if kind != "hard_prompt"]  # which trains nothing
CHOICES += [(kind, True) for kind in ("lora", "svdiff", "full")]
EVERY = pytest.mark.parametrize(("kind", "text_encoder"), CHOICES)
ON_BOTH = pytest.mark.parametrize(
    ("base", "kind", "text_encoder"),
    [
        *(("muse", *choice) for choice in CHOICES),
        ("stable_diffusion", "styledrop", False),
        ("stable_diffusion", "textual_inversion", False),
        ("stable_diffusion", "full", True),
    ],
    indirect=["base"],
)
TRAINING = TrainSettings(text_dropout=0.0, min_snr_gamma=5.0, noise_offset=0.1)
PROMPT = "a <cat>"
SETTINGS = SampleSettings(steps=2, batch_size=2, temperature=1.0, lambda_a=1.5, lambda_b=2.0)


@pytest.fixture(scope="module")
def base(request, tiny_muse):
    """A pipeline of random weights."""
    if getattr(request, "param", "muse") == "muse":
        return tiny_muse
    return load(str(tiny.stable_diffusion()))


def _trains(kind, text_encoder=False, **changes):
    """What an adapter of these fields trains; fields that the kind has not are left out."""
    fields = {**FIELDS, "text_encoder": text_encoder, **changes}
    known = {field.name for field in dataclasses.fields(ADAPTERS[kind].settings)}
    own = {name: value for name, value in fields.items() if name in known}
    return ADAPTERS[kind].trains(ADAPTERS[kind].settings(**own), ["<cat>"])


def _batch(model, prompts=(PROMPT, "a red house"), weight=1.0):
    shape = (len(prompts), model.resolution, model.resolution, 3)
    images = np.random.default_rng(len(prompts)).integers(0, 256, shape).astype(np.uint8)
    return objective.Batch(images=images, prompts=list(prompts), weight=weight)


def _moved(model, what, size=0.3):
    """The model with noise added to all that trains, as if trained, and that state."""
    whole = trainable.parts(model, what)
    graphdef, state, rest = nnx.split(whole, trainable.trained(what), ...)
    rng = np.random.default_rng(0)

    def shaken(x):
        return x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype)

    state = jax.tree.map(shaken, nnx.as_pure(state))
    whole = nnx.merge(graphdef, state, nnx.as_pure(rest))
    changed = {name: whole[name] for name in ("denoiser", "text") if name in whole}
    return dataclasses.replace(model, **changed), state


def _sampled(branches):
    count = len(branches[0].prompts)
    return np.concatenate(list(guidance.generate(branches, range(count), settings=SETTINGS)))


@EVERY
def test_what_trains_survives_its_file(kind, text_encoder):
    what = _trains(kind, text_encoder)
    assert trainable.from_dict(what.to_dict()) == what
    learns_words = kind in ("textual_inversion", "custom_diffusion")
    assert what.trains_text == (text_encoder or learns_words)


def test_features_of_a_prompt_are_held_once_however_many_images_have_it(base):
    """And an image's are those of its own prompt, the last those of none."""
    what = _trains("styledrop")
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    prompts = ("a dog", "a red house", "a dog", "a dog")
    data, loss = objective.prepare(model, what, [_batch(model, prompts)], TRAINING)
    held = [x[...] for x in data.words]
    assert {len(x) for x in held} == {3, 5}
    (of,) = [x for x in held if x.dtype == jnp.int32 and x.shape == (5,)]
    assert list(of) == [0, 1, 0, 0, 2]
    few = [_batch(model, ("a dog", "a red house"))]
    few[0] = dataclasses.replace(few[0], images=_batch(model, prompts).images[:2])
    other, its_loss = objective.prepare(model, what, few, TRAINING)
    rows = jnp.array([[1], [0]])
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = nnx.jit(loss)(data, rows, keys)[0], nnx.jit(its_loss)(other, rows, keys)[0]
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "kind"), [(tiny.models, "styledrop"), (tiny.stable_diffusion, "textual_inversion")]
)
def test_trainings_of_the_same_shapes_are_one_program(base, kind):
    """Of a base model that is loaded anew, other words and images, and as many steps as one
    likes."""
    what = _trains(kind)
    folder = base() / "muse" if base is tiny.models else base()

    def program(prompts, **changes):
        model = trainable.attach(load(str(folder)), what, rngs=nnx.Rngs(0))
        settings = dataclasses.replace(TRAINING, **changes)
        data, loss = objective.prepare(model, what, [_batch(model, prompts)], settings)
        graphdef, *_ = loop.split(data, trainable.trained(what))
        return graphdef, loss

    first = program(["a <cat>", "a red house"])
    again = program(["a dog", "a blue <cat>"], steps=7)
    assert again == first and hash(again) == hash(first)
    assert program(["a <cat>", "a red house"], text_dropout=0.5) != first


@ON_BOTH
def test_gradients_reach_what_trains_and_the_base_stays(kind, text_encoder, base):
    what = _trains(kind, text_encoder)
    before = {}
    for name, value in tree.flatten(nnx.state((base.denoiser, base.text))).items():
        before[name] = np.array(value)
    model, _ = _moved(trainable.attach(base, what, rngs=nnx.Rngs(0)), what, 0.02)
    data, loss = objective.prepare(model, what, [_batch(model)], TRAINING)
    graphdef, params, frozen = loop.split(data, trainable.trained(what))
    names = set(tree.flatten(params))
    rows = jnp.array([[0], [1]])
    keys = jax.random.split(jax.random.key(0), 2)

    def value(params, frozen):  # all as arguments: XLA would compute with constants as it compiles
        return loss(nnx.merge(graphdef, params, frozen), rows, keys)[0]

    silent = []
    for name, gradient in tree.flatten(jax.jit(jax.grad(value))(params, frozen)).items():
        if not np.abs(np.asarray(gradient)).max() > 0:
            silent.append(name)
    # In a text tower not all is looked at: rows of words that no prompt has, and what is behind
    # the layer that is read.
    whole = isinstance(what.denoiser, full.Config)
    assert all("text" in name or (whole and "embed" in name) for name in silent), silent
    expected = {"denoiser"} if what.denoiser else set()
    if what.trains_text:
        expected.add("text")
    assert {name.split(".")[1] for name in names} == expected
    after = tree.flatten(nnx.state((base.denoiser, base.text)))
    assert set(after) == set(before)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@ON_BOTH
def test_a_file_brings_it_back_and_off_is_the_base(kind, text_encoder, base, tmp_path):
    what = _trains(kind, text_encoder)
    model, state = _moved(trainable.attach(base, what, rngs=nnx.Rngs(0)), what)
    path = tmp_path / "adapter.safetensors"
    origin = {"base_name": "tiny", "base_hash": base.base_hash, "round": 1}
    save_adapter(path, state, config=what.to_dict(), **origin)
    prompts = [PROMPT, "a red house"]
    tuned = guidance.tuned(base, model, what)
    loaded = guidance.load(base, path)
    alone = _sampled(guidance.classifier_free(guidance.bare(base), prompts, SETTINGS))
    images = _sampled(guidance.style_branches(tuned, prompts, SETTINGS))
    again = _sampled(guidance.style_branches(loaded, prompts, SETTINGS))
    np.testing.assert_array_equal(again, images)
    assert np.abs(images - alone).max() > 0.01
    without = dataclasses.replace(SETTINGS, lambda_a=-1.0)  # Eq. 4 without its first branch
    plain = _sampled(guidance.style_branches(tuned, prompts, without))
    np.testing.assert_allclose(plain, alone, atol=1e-3)


def test_guidance_without_the_base_is_of_the_tuned_model(base):
    """With lambda_b 0 it samples the tuned model; two-scale guidance does so at lambda_a 0."""
    what = _trains("lora")
    model, _ = _moved(trainable.attach(base, what, rngs=nnx.Rngs(0)), what)
    tuned = guidance.tuned(base, model, what)
    free = dataclasses.replace(SETTINGS, guidance="classifier_free", lambda_b=0.0)
    scaled = dataclasses.replace(SETTINGS, lambda_a=0.0, lambda_b=0.0)
    prompts = ["a cat", "a dog"]
    np.testing.assert_allclose(
        _sampled(guidance.style_branches(tuned, prompts, free)),
        _sampled(guidance.style_branches(tuned, prompts, scaled)),
        atol=1e-3,
    )


# -------------------------------------------------------------- streams


def test_streams_pair_up_and_count_by_their_weights(base):
    what = _trains("lora")
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    batches = [_batch(model), _batch(model, ("a dog", "a house", "a cat"), weight=0.5)]
    rows = objective.rows(batches, batch_size=2, seeds=[0, 1])
    first = rows(0, 6)
    assert first.shape == (6, 2, 2)
    assert set(first[..., 0].ravel()) == {0, 1} and set(first[..., 1].ravel()) == {2, 3, 4}
    for epoch in range(2):
        seen = sorted(first[3 * epoch : 3 * epoch + 3, :, 1].ravel())
        assert seen == [2, 2, 3, 3, 4, 4]
    np.testing.assert_array_equal(rows(4, 2), first[4:])
    data, loss = objective.prepare(model, what, batches, TRAINING)
    keys = jax.random.split(jax.random.key(1), 2)
    value, metrics = jax.jit(loss)(data, jnp.array([[0, 2], [1, 3]]), keys)
    np.testing.assert_allclose(value, metrics["loss_0"] + 0.5 * metrics["loss_1"], rtol=1e-6)


def _stream(images, **more):
    examples = [Example(image=image, prompt="a cat") for image in images]
    return Stream(section="reference", examples=examples, caption=lambda *_: "a cat", **more)


def test_each_stream_has_an_order_and_crops_of_its_own(base):
    wide = np.random.default_rng(0).integers(0, 256, (24, 48, 3)).astype(np.uint8)
    cropped = TrainSettings(random_crop=True)
    first = objective.batch(_stream([wide]), base, cropped, seed=1)
    assert len(first.images) == len(first.prompts) == 8
    assert len({image.tobytes() for image in first.images}) == 8
    again = objective.batch(_stream([wide]), base, cropped, seed=1)
    np.testing.assert_array_equal(again.images, first.images)
    other = objective.batch(_stream([wide]), base, cropped, seed=2)
    assert not {image.tobytes() for image in other.images} & {x.tobytes() for x in first.images}
    kept = objective.batch(_stream([wide], teaches=False), base, cropped, seed=1)
    assert len(kept.images) == 1, "what keeps the prior is not cropped at random"

    padded = Example(image=wide, prompt="a cat", ground="#ff00ff")
    stream = dataclasses.replace(_stream([]), examples=[padded])
    for image in objective.batch(stream, base, cropped, seed=1).images:
        assert (image == (255, 0, 255)).all(axis=-1).any(), "a crop of the padded square"

    batches = [objective.batch(_stream([wide] * 9), base, TRAINING, seed=0)] * 2
    rows = objective.rows(batches, batch_size=9, seeds=[3, 4])(0, 1)[0]
    assert (rows[:, 0] != rows[:, 1] - 9).any()


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"], indirect=True)
def test_parts_and_recomputation_change_no_gradient(base):
    """Each example has the randomness of the whole batch; what is recomputed is not kept."""
    what = _trains("full")
    model = trainable.attach(base, what, rngs=nnx.Rngs(0))
    rows = jnp.array([[0], [1], [1], [0]])
    keys = jax.random.split(jax.random.key(2), 4)

    def gradient(remat):
        settings = dataclasses.replace(TRAINING, text_dropout=0.5, remat=remat)
        data, loss = objective.prepare(model, what, [_batch(model)], settings)
        graphdef, params, frozen = loop.split(data, trainable.trained(what))

        def value(params, frozen, rows, keys):
            return loss(nnx.merge(graphdef, params, frozen), rows, keys)[0]

        def kept(params):
            return jax.vjp(lambda params: value(params, frozen, rows, keys), params)[1]

        size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(kept, params)))
        return functools.partial(jax.jit(jax.value_and_grad(value)), params, frozen), size

    whole, most = gradient(False)
    again, least = gradient(True)
    first = again(rows[::2], keys[::2])
    second = again(rows[1::2], keys[1::2])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    expected = jax.tree.leaves(whole(rows, keys))
    for found, right in zip(jax.tree.leaves(mean), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=2e-3 * np.abs(right).max() + 1e-5)
    assert least < 0.8 * most


@pytest.mark.parametrize("base", ["stable_diffusion"], indirect=True)
def test_unmixing_adds_the_attention_of_a_subjects_words_to_the_others_half(base):
    images = _batch(base).images
    alone = []
    for image, content in zip(images, ("a cat", "a red dog"), strict=True):
        alone.append(Example(image=image, prompt=content, content=content))
    pairs = []
    for left, right in (alone, alone[::-1]):  # of short prompts, as texts are here
        prompt = f"{left.content} and {right.content}"
        pairs.append(dataclasses.replace(left, prompt=prompt, right=right))
    stream = Stream(section="mix", examples=pairs, caption=lambda *_: "", weight=1.5, unmix=0.5)
    mixed = objective.batch(stream, base, TRAINING, seed=0)
    ids = base.text_ids(mixed.prompts)
    words = (["cat"], ["red", "dog"]), (["red", "dog"], ["cat"])
    for row, apart, own in zip(ids, mixed.apart, words, strict=True):
        for half, expected in zip((1, 0), own, strict=True):
            found = base.tokenizer.decode(row[apart[:, half] > 0]).split()
            assert found == expected, "without 'a', which both have"
        assert apart.sum() == pytest.approx(0.5)

    what = _trains("full")
    keys = jax.random.split(jax.random.key(0), 2)
    losses = []
    for batch in (mixed, dataclasses.replace(mixed, apart=None)):
        data, loss = objective.prepare(base, what, [_batch(base), batch], TRAINING)
        losses.append(jax.jit(loss)(data, jnp.array([[0, 2], [1, 3]]), keys))
    (value, metrics), (without, other) = losses
    assert metrics["unmix"] > 1e-4 and "unmix" not in other
    added = 1.5 * 2 * metrics["unmix"]  # half of the mean are zeros
    np.testing.assert_allclose(value - without, added, rtol=1e-2)
    np.testing.assert_allclose(metrics["loss_0"], other["loss_0"], rtol=1e-5)


# -------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("textual_inversion", {"initializer": "a red house"}, "initializer"),
        ("custom_diffusion", {"initializer": "a red house"}, "initializer"),
    ],
)
def test_what_does_not_fit_is_refused(kind, changes, words, base):
    with pytest.raises(UserError, match=words):
        trainable.attach(base, _trains(kind, **changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["textual_inversion", "custom_diffusion"])
def test_a_new_word_needs_one(kind):
    with pytest.raises(UserError, match="config.words.identifier: empty"):
        ADAPTERS[kind].trains(ADAPTERS[kind].settings(), [])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"denoiser": {"adapter": "magic"}, "text": None, "words": None},
        {"denoiser": {"adapter": ["lora"]}, "text": None, "words": None},
        {"denoiser": 3, "text": None, "words": None},
        {"denoiser": None, "text": "lora", "words": None},
        {"denoiser": None, "text": None, "words": [1]},
        {"denoiser": None, "text": None, "words": {"tokens": 3}},
        {"denoiser": None, "text": None, "words": None, "more": None},
        {"rank": 4},
    ],
)
def test_a_file_of_something_else_is_refused(config):
    with pytest.raises(UserError, match="adapter|token|words"):
        trainable.from_dict(config)


def test_every_adapter_has_the_name_of_its_kind():
    for name, kind in ADAPTERS.items():
        assert kind.config.kind == name


# -------------------------------------------------------------- sizes


def _photographs(model, shapes):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    return objective.Batch(images=images, prompts=["a cat"] * len(images))


def test_photographs_keep_about_their_shape_in_a_few_sizes():
    base = load(str(tiny.stable_diffusion()))
    wide = np.zeros((30, 45, 3), np.uint8)
    examples = [
        Example(image=wide, prompt="a cat", keeps=True),
        Example(image=wide.swapaxes(0, 1), prompt="a cat", keeps=True),
        Example(image=wide, prompt="a cat"),
    ]
    stream = dataclasses.replace(_stream([]), examples=examples)
    (found,) = objective.sizes([stream], base)
    assert found == [(12, 20), (20, 12), (16, 16)]
    batch = objective.batch(stream, base, TRAINING, seed=0, sizes=found)
    assert batch.sizes == found
    assert objective.said([found]).startswith("images train in 3 sizes, width x height: 1 at 20x12")
    assert not objective.said([[(16, 16)] * 2])


def test_muse_says_that_it_learns_from_squares_alone(tiny_muse):
    wide = Example(image=np.zeros((30, 45, 3), np.uint8), prompt="a cat", keeps=True)
    stream = dataclasses.replace(_stream([]), examples=[wide])
    with pytest.raises(UserError, match=r"config.reference.fit: found 'keep'.* from squares of 8"):
        objective.sizes([stream], tiny_muse)


def test_a_step_trains_on_images_of_one_size_as_if_there_were_no_others():
    model = load(str(tiny.stable_diffusion()))
    what = _trains("lora")
    model = trainable.attach(model, what, rngs=nnx.Rngs(0))
    mixed = _photographs(model, [(16, 16), (12, 20), (16, 16), (12, 20)])
    alone = dataclasses.replace(mixed, images=mixed.images[1::2], prompts=mixed.prompts[1::2])
    optimizer = optim.make(1e-2)
    key = jax.random.key(0)
    found = []
    for batch, rows in ((mixed, [1, 3]), (alone, [0, 1])):
        data, loss = objective.prepare(model, what, [batch], TRAINING)
        graphdef, params, frozen = loop.split(data, trainable.trained(what))
        step = make_train_step(loss, optimizer)
        state = loop.init_state(params, optimizer)
        given = np.array([[[row] for row in rows]], np.int32)
        state, metrics = step(graphdef, state, frozen, given, 1, key)
        found.append((state["params"], metrics))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_streams_of_several_sizes_add_up():
    """A stream of photographs beside one of squares: each has its own batch, and its weight."""
    model = load(str(tiny.stable_diffusion()))
    what = _trains("lora")
    model = trainable.attach(model, what, rngs=nnx.Rngs(0))
    photographs = _photographs(model, [(12, 20), (16, 16)])
    squares = dataclasses.replace(_photographs(model, [(16, 16)] * 2), weight=0.5)
    data, choices = objective.prepare(model, what, [photographs, squares], TRAINING)
    assert [len(choice.losses) for choice in choices] == [2, 1]
    rows = jnp.array([[0, 2], [0, 3]])
    assert int(choices[0].which(data, rows)) == 0 and int(choices[0].which(data, rows + 1)) == 1
    keys = jax.random.split(jax.random.key(1), 2)
    first, one = nnx.jit(choices[0].losses[0])(data, rows, keys)
    second, other = nnx.jit(choices[1].losses[0])(data, rows, keys)
    np.testing.assert_allclose(first, one["loss_0"], rtol=1e-6)
    np.testing.assert_allclose(second, 0.5 * other["loss_1"], rtol=1e-6)
    assert one["loss_1"] == other["loss_0"] == 0, "metrics are summed"
    batches = [photographs, squares]
    for step in objective.rows(batches, batch_size=3, seeds=[0, 1])(0, 6):
        assert len(set(step[:, 0])) == 1 and set(step[:, 1]) <= {2, 3}
