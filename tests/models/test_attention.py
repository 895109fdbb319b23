"""Attention: controlled, by the kernels of accelerators (interpreted), on several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from styledrop_jax.models import attention as module
from styledrop_jax.models.attention import attention

_HEADS = 2
_KERNELS = ("_splash", "_triton")


def test_a_control_replaces_the_attention_weights():
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, 3, 8), np.float32))
    k = jnp.asarray(rng.standard_normal((2, 4, 8), np.float32))
    v = jnp.asarray(rng.standard_normal((2, 4, 8), np.float32))
    seen = []

    def first_only(weights):
        seen.append(weights)
        return jnp.zeros_like(weights).at[..., 0].set(1)

    y = attention(q, k, v, heads=2, control=first_only)
    np.testing.assert_allclose(y, np.repeat(v[:, :1], 3, axis=1), rtol=1e-6)
    np.testing.assert_allclose(seen[0].sum(-1), 1, rtol=1e-5)
    same = attention(q, k, v, heads=2, control=lambda weights: weights)
    np.testing.assert_allclose(same, attention(q, k, v, heads=2), rtol=1e-6)


@pytest.fixture(params=_KERNELS)
def interpreted(request, monkeypatch):
    """`attention` by one kernel, interpreted."""
    call = pallas.pallas_call
    monkeypatch.setattr(
        pallas, "pallas_call", lambda *args, **kwargs: call(*args, **kwargs | {"interpret": True})
    )
    jax.clear_caches()
    monkeypatch.setattr(module, "_of_platform", getattr(module, request.param))
    yield attention
    jax.clear_caches()


def _inputs(n: int, head: int, batch: int = 1) -> tuple[jax.Array, ...]:
    """q, k, v and the output's gradient."""
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(jax.random.normal(key, (batch, n, _HEADS * head), jnp.bfloat16) for key in keys)


def _with_gradients(q, k, v, g):
    out, pull = jax.vjp(lambda *x: attention(*x, heads=_HEADS), q, k, v)
    return out, *pull(g)


def _check(found, given):
    """Within a few of bfloat16's own errors of the plain form in float32."""
    exact = _with_gradients(*(x.astype(jnp.float32) for x in given))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        error = jnp.abs(one.astype(jnp.float32) - other)
        assert float(error.max()) < 0.02 * float(jnp.abs(other).max())


@pytest.mark.parametrize(("n", "head"), [(1024, 40), (1024, 80), (1056, 64)])
def test_kernels_agree_with_the_plain_form(interpreted, n, head):
    given = _inputs(n, head)
    _check(jax.jit(_with_gradients)(*given), given)


def test_kernels_under_transformations(interpreted):
    """As the training and the sampling use them: in a scan, a checkpoint, a vmap."""
    given = _inputs(1024, 40)

    @jax.jit
    def transformed(*given):
        def step(total, x):
            found = jax.vmap(jax.checkpoint(_with_gradients))(*x)
            return total, found

        _, found = jax.lax.scan(step, 0, jax.tree.map(lambda x: x[None, None], given))
        return jax.tree.map(lambda x: x[0, 0], found)

    _check(transformed(*given), given)


@pytest.mark.parametrize("case", ["float32", "short", "control", "mask"])
def test_what_is_short_or_looked_at_is_plain(case, monkeypatch):
    def no_kernel(*_):
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(module, "_of_platform", no_kernel)
    q, k, v, _ = _inputs(512 if case == "short" else 1024, 8)
    more = {}
    if case == "float32":
        q = q.astype(jnp.float32)
    if case == "control":
        more = {"control": lambda weights: weights}
    if case == "mask":
        more = {"mask": jnp.ones((1, 1, 1, 1024), bool)}
    jax.eval_shape(lambda *x: attention(*x, heads=_HEADS, **more), q, k, v)


@pytest.mark.parametrize(
    ("platform", "kernel"), [("tpu", "tpu_custom_call"), ("cuda", "mha_forward"), ("cpu", "")]
)
def test_one_traced_program_is_right_on_each_platform(platform, kernel):
    q, k, v, _ = _inputs(1024, 40)
    traced = jax.jit(lambda *x: attention(*x, heads=_HEADS)).trace(q, k, v)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    pairs = f"{_HEADS}x1024x1024xf32"  # the weights of all pairs
    assert kernel in text
    assert (pairs in text) == (not kernel)


def test_a_kernel_takes_its_device_s_part_of_the_batch():
    """Six do not divide among four: each device takes all of them, as XLA cannot cut a kernel."""
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"))
    with jax.sharding.use_abstract_mesh(mesh):
        cut = jax.make_jaxpr(lambda *x: attention(*x, heads=_HEADS))(*_inputs(1024, 8, 8)[:3])
        whole = jax.make_jaxpr(lambda *x: attention(*x, heads=_HEADS))(*_inputs(1024, 8, 6)[:3])
    assert "bf16[2,2,1024,8]" in str(cut)
    assert "shard_map" in str(whole) and "bf16[6,2,1024,8]" in str(whole)


_TWO_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from styledrop_jax.models.attention import attention
mesh = jax.make_mesh((1, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
x = jax.random.normal(jax.random.key(0), (3, 2, 1024, 16), jnp.bfloat16)
function = jax.vmap(jax.grad(lambda x: (attention(x, x, x, heads=2) ** 2).astype("float32").sum()))
alone = jax.jit(function)(x)
with jax.set_mesh(mesh):
    both = jax.jit(function)(jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "fsdp"))))
assert "fsdp" in str(both.sharding.spec[1]), both.sharding
assert jnp.abs(alone - both).max() <= 0.01 * jnp.abs(alone).max()
"""


def test_two_devices_attend_as_one():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    line = [sys.executable, "-c", _TWO_DEVICES]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
