"""The training loop: the same bits however it is interrupted, and a stop that says where."""

import errno
import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from styledrop_jax import hosts, log
from styledrop_jax.errors import UserError
from styledrop_jax.training import checkpoint, loop, optim
from styledrop_jax.training.step import Over, make_train_step, shared_train_step

# when one read of a damaged checkpoint fails, Orbax drops its others
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEY = jax.random.key(0)
HEAD = nnx.All(nnx.Param, nnx.PathContains("head"))


class Tiny(nnx.Module):
    def __init__(self, width=3):
        rngs = nnx.Rngs(0)
        self.base = nnx.Linear(2, width, rngs=rngs)
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.base(x)))


def _loss(model, batch, keys):
    """Depends on the data, the examples' keys and the weights."""
    noise = 0.1 * jax.vmap(lambda key: jax.random.normal(key, batch.shape[1:]))(keys)
    error = model(batch + noise) - batch
    return (error**2).mean(), {"noise": noise.mean()}


def _batches(start, count):
    steps = []
    for step in range(start, start + count):
        steps.append(np.random.default_rng(step).normal(size=(4, 2)).astype("f"))
    return jnp.stack(steps)


class _NoBoard:
    """In place of TensorBoard's writer, which takes seconds to import."""

    def scalar(self, *args):
        pass

    close = scalar


@pytest.fixture(autouse=True)
def no_board(monkeypatch):
    monkeypatch.setattr(log, "_Board", lambda *args: _NoBoard())


def _fit(
    folder,
    *,
    steps=8,
    model=None,
    loss=_loss,
    batches=_batches,
    trainable=HEAD,
    ema_decay=0.0,
    **kwargs,
):
    settings = {"steps_per_call": 2, "checkpoint_every": 4} | kwargs
    with log.Logger(folder) as logger:
        return loop.fit(
            Tiny() if model is None else model,
            trainable,
            loss,
            optim.make(1e-2, ema_decay=ema_decay),
            batches,
            steps=steps,
            key=KEY,
            folder=folder / "checkpoints",
            logger=logger,
            stage="tiny",
            **settings,
        )


def _same(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def _close(left, right) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), left, right)


def _metrics(folder) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    unbroken = _fit(tmp_path / "unbroken")

    def killed_after_6(start, count):
        if start == 6:  # steps 5 and 6 are in the log but not in a checkpoint
            raise KeyboardInterrupt
        return _batches(start, count)

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "broken", batches=killed_after_6)
    seen = []

    def watched(start, count):
        seen.append(start)
        return _batches(start, count)

    _same(_fit(tmp_path / "broken", batches=watched), unbroken)
    assert seen == [4, 6], "continues from the checkpoint"
    metrics = _metrics(tmp_path / "broken")
    assert metrics == _metrics(tmp_path / "unbroken")
    rows = [json.loads(line) for line in metrics.splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[0].keys() == {"stage", "step", "loss", "noise"}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_saves_first(sent, tmp_path, capfd):
    """In the dispatch of steps 5 and 6, of which no checkpoint is due."""

    def told(start, count):
        if start == 4:
            os.kill(os.getpid(), sent)
        return _batches(start, count)

    before = signal.getsignal(sent)
    with pytest.raises(hosts.Stopped):
        _fit(tmp_path / "told", batches=told)
    assert signal.getsignal(sent) is before
    said = "stopping when these steps are done and kept; Ctrl-C again stops at once\n"
    assert capfd.readouterr().err == (said if sent == signal.SIGINT else "")
    seen = []

    def watched(start, count):
        seen.append(start)
        return _batches(start, count)

    _same(_fit(tmp_path / "told", batches=watched), _fit(tmp_path / "unbroken"))
    assert seen == [6]
    assert _metrics(tmp_path / "told") == _metrics(tmp_path / "unbroken")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def told(start, count):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return _batches(start, count)

    with pytest.raises(KeyboardInterrupt) as raised:
        _fit(tmp_path, batches=told)
    assert raised.type is KeyboardInterrupt and not list(tmp_path.glob("checkpoints/[0-9]*"))


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9, "accumulate": 2}])
def test_a_run_made_longer_equals_a_long_one(settings, tmp_path):
    _fit(tmp_path / "a", steps=4, **settings)
    _same(_fit(tmp_path / "a", steps=8, **settings), _fit(tmp_path / "b", steps=8, **settings))
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")


def test_a_finished_run_does_nothing(tmp_path):
    done = _fit(tmp_path, steps=4)
    _same(_fit(tmp_path, steps=4, batches=None), done)


@pytest.mark.parametrize("steps_per_call", [1, 3, 8])
def test_steps_may_be_grouped_in_any_way(steps_per_call, tmp_path):
    expected = _fit(tmp_path / "two", checkpoint_every=0)
    found = _fit(tmp_path / "other", checkpoint_every=0, steps_per_call=steps_per_call)
    _close(found, expected)


def test_one_program_serves_any_number_of_steps(tmp_path, monkeypatch):
    """Dispatches of 3, 2, 3 and 1 steps, whose metrics are their own steps' means."""
    made = []
    make = make_train_step

    def in_numpy(start, count):
        return np.asarray(_batches(start, count))

    def kept(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(loop, "make_train_step", kept)
    _fit(tmp_path / "odd", steps=9, batches=in_numpy, steps_per_call=3, checkpoint_every=5)
    assert made[0]._cache_size() == 1
    _fit(tmp_path / "each", steps=9, steps_per_call=1, checkpoint_every=5)
    alone = [json.loads(line)["loss"] for line in _metrics(tmp_path / "each").splitlines()]
    rows = [json.loads(line) for line in _metrics(tmp_path / "odd").splitlines()]
    assert [row["step"] for row in rows] == [3, 5, 8, 9]
    for row, first in zip(rows, (0, 3, 5, 8), strict=True):
        assert row["loss"] == pytest.approx(np.mean(alone[first : row["step"]]), rel=1e-5)


def test_the_host_does_not_wait_for_what_it_has_just_sent(tmp_path, monkeypatch):
    """The batch of a dispatch is made before the metrics of the one before are looked at, but
    nothing is saved before its own are.
    """
    seen = []

    def watched(start, count):
        seen.append(f"batch {start}")
        return _batches(start, count)

    with monkeypatch.context() as patch:
        scalars = log.Logger.scalars
        save = checkpoint.Checkpoints.save

        def logged(self, step, values):
            seen.append(f"metrics {step}")
            scalars(self, step, values)

        def saved(self, step, *state):
            seen.append(f"saved {step}")
            save(self, step, *state)

        patch.setattr(log.Logger, "scalars", logged)
        patch.setattr(checkpoint.Checkpoints, "save", saved)
        _fit(tmp_path, steps=6, steps_per_call=2, checkpoint_every=6, batches=watched)
    expected = ["batch 0", "batch 2", "metrics 2", "batch 4", "metrics 4", "metrics 6", "saved 6"]
    assert seen == expected


def test_after_may_be_called_at_some_steps_alone(tmp_path):
    seen = []

    def after(step, state, *_):
        seen.append(step)
        return state

    _fit(tmp_path, after=after, after_at=[4, 8])
    assert seen == [4, 8]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_add_up_to_the_batch(accumulate, tmp_path):
    whole = _fit(tmp_path / "whole", steps=4)
    parts = _fit(tmp_path / "parts", steps=4, accumulate=accumulate)
    _close(parts, whole)
    lines = _metrics(tmp_path / "whole").splitlines()
    for one, other in zip(lines, _metrics(tmp_path / "parts").splitlines(), strict=True):
        one = json.loads(one)
        other = json.loads(other)
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["noise"] == pytest.approx(other["noise"], rel=1e-5)


def test_the_average_is_of_the_steps_and_not_of_the_start(tmp_path):
    decay = 0.8
    seen = []

    def after(step, state, *_):
        seen.append(np.array(state["params"]["head"]["kernel"]))
        return state

    found = _fit(tmp_path, steps=5, steps_per_call=1, after=after, ema_decay=decay)
    share = decay ** np.arange(4, -1, -1)
    expected = np.einsum("s,sij->ij", share / share.sum(), seen)
    np.testing.assert_allclose(found["head"]["kernel"], expected, rtol=1e-5)
    assert np.abs(expected - seen[-1]).max() > 1e-3


def test_only_what_is_trainable_changes(tmp_path):
    model = Tiny()
    untouched = Tiny()
    params = _fit(tmp_path, model=model)
    assert params.keys() == {"head"}
    assert not np.allclose(params["head"]["kernel"], untouched.head.kernel[...])
    # Its arrays were not donated.
    _same(nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(nnx.state(untouched)))
    graphdef, _, frozen = loop.split(model, HEAD)
    trained = nnx.merge(graphdef, params, frozen)
    _same(trained.base.kernel[...], untouched.base.kernel[...])


def test_after_may_change_the_state_and_sees_every_dispatch(tmp_path):
    seen = []

    def after(step, state, graphdef, frozen):
        seen.append(step)
        if step == 8:
            state["params"]["head"]["bias"] = jnp.full(2, 7.0)
        return state

    params = _fit(tmp_path, after=after)
    assert seen == [2, 4, 6, 8]
    np.testing.assert_array_equal(params["head"]["bias"], [7, 7])
    _same(_fit(tmp_path, batches=None), params)  # what it changed was saved


def _other_head() -> nnx.State:
    """Weights of the head that are not the module's own."""
    _, params, _ = loop.split(Tiny(), HEAD)
    return jax.tree.map(lambda p: 2 * p + 1, params)


def test_training_begins_from_given_weights(tmp_path):
    """As it would from a module that has them, whether they are a state or a nested dict."""
    weights = _other_head()
    model = Tiny()
    nnx.update(model, weights)
    expected = _fit(tmp_path / "own", model=model)
    _same(_fit(tmp_path / "given", start_from=weights), expected)
    plain = jax.tree.map(np.asarray, nnx.to_pure_dict(weights))
    _same(_fit(tmp_path / "plain", start_from=plain), expected)
    assert not np.allclose(expected["head"]["kernel"], _fit(tmp_path / "a")["head"]["kernel"])


def test_given_weights_take_the_dtype_of_the_modules(tmp_path):
    half = jax.tree.map(lambda p: p.astype(jnp.float16), _other_head())
    params = _fit(tmp_path, start_from=half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_checkpoint_comes_before_given_weights(tmp_path):
    _fit(tmp_path / "a", steps=4)
    _same(_fit(tmp_path / "a", start_from=_other_head()), _fit(tmp_path / "b"))


def test_given_weights_that_do_not_fit_are_refused(tmp_path):
    head = {"kernel": np.zeros((3, 2)), "bias": np.zeros(5)}
    with pytest.raises(UserError, match=r"^tiny: .*one array differs: head.bias has shape \(5,\)"):
        _fit(tmp_path, start_from={"head": head})
    with pytest.raises(UserError, match="2 arrays differ: missing head.bias"):
        _fit(tmp_path, start_from={"head": {"weight": np.zeros((3, 2)), "kernel": head["kernel"]}})
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_are_removed_as_a_whole(tmp_path):
    _fit(tmp_path, steps=4)
    checkpoint.remove(tmp_path / "checkpoints")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_removing_checkpoints_survives_a_kill(killed_at, tmp_path, monkeypatch):
    """The first kill comes before anything is deleted, the second in the middle of it."""

    def killed(folder):
        if killed_at == 2:
            (folder / "4" / "_CHECKPOINT_METADATA").unlink()
        raise KeyboardInterrupt

    _fit(tmp_path, steps=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        checkpoint.remove(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists(), "no half of it can be taken for a checkpoint"
    _fit(tmp_path, steps=4)  # there may even be new ones
    checkpoint.remove(tmp_path / "checkpoints")
    checkpoint.remove(tmp_path / "checkpoints")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def _bad_data_at(bad):
    def batches(start, count):
        scale = jnp.nan if start + count > bad else 1.0
        return _batches(start, count).at[max(bad - start, 0) :].multiply(scale)

    return batches


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (5, r"by step 6 \(loss nan\); the last good checkpoint is .*checkpoints/4; lower"),
        (0, "no checkpoint yet"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run(bad, words, tmp_path):
    seen = []

    def after(step, state, *_):
        seen.append(step)
        return state

    with pytest.raises(UserError, match=rf"^tiny: not a number any more .*{words}"):
        _fit(tmp_path, batches=_bad_data_at(bad), after=after)
    assert seen == ([2, 4] if bad else []), "nothing is exported from broken weights"
    if bad:
        assert np.isfinite(_fit(tmp_path, steps=4, batches=None)["head"]["kernel"]).all()


@jax.custom_vjp
def _trap(loss, sprung):
    """The loss itself, with a gradient that is no number if sprung."""
    return loss


_trap.defvjp(
    lambda loss, sprung: (loss, sprung), lambda sprung, g: (jnp.where(sprung, jnp.nan, g), None)
)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    """The loss of the last step before a checkpoint is that of the weights before it."""

    def loss(model, batch, keys):
        value, metrics = _loss(model, batch, keys)
        return _trap(value, batch.max() > 5), metrics

    def batches(start, count):
        return _batches(start, count).at[1].set(9.0 if start == 6 else 1.0)

    words = r"by step 8 \(loss \d.*\); the last good checkpoint is .*checkpoints/4"
    with pytest.raises(UserError, match=words):
        _fit(tmp_path, loss=loss, batches=batches)


def _damage(step_folder, how) -> None:
    if how == "item removed":
        for path in sorted((step_folder / "params").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return
    for path in step_folder.rglob("*"):
        if path.is_file() and path.parent != step_folder:
            content = path.read_bytes()
            half = content[: len(content) // 2]
            path.write_bytes(half if how == "truncated" else bytes(len(content)))


@pytest.mark.parametrize("how", ["truncated", "zeroed", "item removed"])
def test_a_damaged_checkpoint_is_named(how, tmp_path):
    _fit(tmp_path, steps=4)
    _damage(tmp_path / "checkpoints" / "4", how)
    with pytest.raises(UserError, match=r"checkpoints/4: cannot be restored") as error:
        _fit(tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _fit(tmp_path, steps=4)
    with pytest.raises(UserError, match=r"checkpoints/4: cannot be restored"):
        _fit(tmp_path, model=Tiny(width=5))


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    """As TensorStore reports it."""

    def full(self, step, **kwargs):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing \"a\": No space left on device [os_error_code='28']"
        )

    _fit(tmp_path, steps=4)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match=r"checkpoints/8: cannot be written: the disk is full"):
        _fit(tmp_path)


def test_a_disk_that_fills_up_in_the_background_is_said_too(tmp_path, monkeypatch, capfd):
    """Of the checkpoint after 4 steps, which is being written as the steps after it are trained."""

    def full(self, step):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", full)
    with pytest.raises(UserError, match=r"checkpoints/4: cannot be written: the disk is full"):
        _fit(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_checkpoint_of_another_setting_is_refused(tmp_path):
    meta = {"base": "abc", "round": 1}
    params = _fit(tmp_path, steps=4, meta=meta)
    with pytest.raises(UserError, match="holds a checkpoint of .*abc.*, this run has .*xyz"):
        _fit(tmp_path, meta=meta | {"base": "xyz"})
    _same(_fit(tmp_path, steps=4, meta=meta, batches=None), params)


def test_many_styles_train_at_once_as_they_do_alone():
    optimizer = optim.make(1e-2)
    graphdef, params, frozen = loop.split(Tiny(), HEAD)
    step = make_train_step(_loss, optimizer)
    leaves, structure = jax.tree.flatten(frozen)
    over = Over(structure, (None,) * len(leaves))
    many = shared_train_step(_loss, optimizer, accumulate=1, over=over)
    again = Over(jax.tree.structure(frozen), (None,) * len(leaves))
    assert shared_train_step(_loss, optimizer, accumulate=1, over=again) is many
    states = []
    data = []
    alone = []
    for i, scale in enumerate((1.0, 0.5, -2.0)):
        start = jax.tree.map(lambda p, scale=scale: p * scale, params)
        states.append(loop.init_state(start, optimizer))
        data.append(_batches(10 * i, 4))
        own = loop.init_state(start, optimizer)
        alone.append(step(graphdef, own, frozen, data[-1], 4, KEY))

    def stacked(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    found = many(graphdef, stacked(states), frozen, jnp.stack(data, axis=1), 4, KEY)
    _close(found, stacked(alone))


def test_schedules_of_the_learning_rate():
    """Warm-up rises from zero, the cosine ends at zero, and decay leaves vectors alone."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def sizes(optimizer, grads, steps):
        state = optimizer.init(params)
        sizes = []
        updates = None
        for _ in range(steps):
            updates, state = optimizer.update(grads, state, params)
            sizes.append(float(jnp.abs(updates["b"]).max()))
        return updates, sizes

    _, rising = sizes(optim.make(0.1, warmup=4), params, 6)
    np.testing.assert_allclose(rising, [0, 0.025, 0.05, 0.075, 0.1, 0.1], atol=1e-5)
    _, cosine = sizes(optim.make(0.1, warmup=1, steps=5, schedule="cosine"), params, 6)
    assert cosine[0] == 0
    assert cosine[1] == pytest.approx(0.1, abs=1e-5)
    assert cosine[5] == pytest.approx(0, abs=1e-6)
    _, shortest = sizes(optim.make(0.1, steps=1, schedule="cosine"), params, 2)
    assert shortest == pytest.approx([0, 0.1], abs=1e-5)
    updates, _ = sizes(optim.make(0.1, weight_decay=0.5), zeros, 1)
    np.testing.assert_allclose(updates["w"], -0.05 * np.ones((2, 2)), rtol=1e-5)
    np.testing.assert_array_equal(updates["b"], 0)
    clipped = optim.make(0.1, clip_norm=1.0)
    assert isinstance(clipped, optax.GradientTransformation)


@pytest.mark.parametrize("muon", [False, True])
def test_muon_takes_matrices_inside_the_network(muon):
    rng = np.random.default_rng(0)
    uneven = rng.standard_normal((8, 6)) @ np.diag([9, 3, 1, 0.3, 0.1, 0.03])
    kernel = jnp.asarray(uneven, jnp.float32)
    grads = {
        "layer": {"kernel": kernel},
        "embedding": {"kernel": kernel},
        "conv": {"kernel": kernel.reshape(2, 2, 2, 6)},
        "conv_out": {"kernel": kernel.reshape(2, 2, 2, 6)},
        "depthwise": {"kernel": kernel.reshape(4, 2, 1, 6)},
        "bias": jnp.ones(3),
    }
    optimizer = optim.make(0.1, muon=muon)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for name in ("layer", "conv"):
        spread = np.linalg.svd(updates[name]["kernel"].reshape(8, 6), compute_uv=False)
        assert (spread[-1] / spread[0] > 0.3) == muon, "orthogonalised: every direction moves alike"
    others = (updates["embedding"], updates["conv_out"], updates["depthwise"])
    for moved in jax.tree.leaves((updates["bias"], others)):
        # Adam's first step is the same for every number.
        np.testing.assert_allclose(np.abs(moved), np.abs(moved).max(), rtol=1e-3)
