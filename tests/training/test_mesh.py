"""Several devices: batches and large weights are cut, and the result is that of one device."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

from styledrop_jax import tree
from styledrop_jax.io import image_files, pretrained
from styledrop_jax.models import unet
from styledrop_jax.training import mesh

_PROGRAM = """
import jax
from styledrop_jax import cli
from styledrop_jax.training import loop, mesh
mesh._SMALL = 64  # so that the tiny weights are cut
placed = loop.placed
def seen(*arguments):
    state, shardings = placed(*arguments)
    kinds = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state)}
    print("state:", "fsdp" in str(kinds))
    return state, shardings
loop.placed = seen
cli.main()
assert jax.device_count() == DEVICES
"""


_SENT = """
import sys
from styledrop_jax import config_files
from styledrop_jax.planning import compiler, devices, run
from styledrop_jax.stages.read import read
from styledrop_jax.training import mesh
mesh._SMALL = 64
fields = {"base": sys.argv[1], "clip": sys.argv[2], "mesh.fsdp": 4}
for name in ("round_1", "round_2"):
    fields |= {f"{name}.train.batch_size": 4, f"{name}.sample.batch_size": 4}
spec = config_files.read("styledrop", fields)
four = devices.find("cpu")._replace(mesh=mesh.imagined(spec.mesh, 4))
compiler.chips = lambda device: mesh.make(spec.mesh)
def measure(name, program):
    if name.startswith("training"):
        return compiler.estimated(program, four)
    cost = compiler.compiled(program, four)
    print(name.partition(",")[0], *cost.sent)
    return cost
plan = run.planned(spec, read(spec))
list(run.parts(plan, run.counts(plan), four, measure))
"""


def _on(devices: int, *words: object, program: str = _PROGRAM) -> str:
    """Runs a command line on as many devices in a process of its own; returns what it says."""
    line = [sys.executable, "-c", program.replace("DEVICES", str(devices)), *map(str, words)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "32"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _close(one, other):
    """Two runs of one round have learnt, and drawn, the same within rounding."""
    first = load_file(one / "round_1" / "adapter.safetensors")
    second = load_file(other / "round_1" / "adapter.safetensors")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        np.testing.assert_allclose(second[name], weight, atol=2e-4)
    for stage in ("base", "round_1"):
        files = list((one / stage / "samples").iterdir())
        assert files
        for file in files:
            image = image_files.read_image(file)
            same = image_files.read_image(other / stage / "samples" / file.name)
            assert np.abs(image.astype(int) - same).mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("base", ["muse", "stable_diffusion"])
def test_four_devices_train_and_generate_as_one(base, tmp_path):
    """All of the denoiser trains, cut in two, each half on two devices; three images are sampled
    at a time, which do not divide.
    """
    folder = tiny.models() / "muse" if base == "muse" else tiny.stable_diffusion()
    more = [
        *("--config.base", folder, "--config.rounds", 1, "--config.round_1.train.batch_size", 4),
        *("--config.round_1.sample.temperature", 0, "--config.round_1.sample.batch_size", 3),
        *("--config.round_1.adapter.kind", "full"),
    ]
    assert tiny.styledrop(*tiny.arguments(tmp_path / "one", *more)) == 0
    said = _on(4, *tiny.arguments(tmp_path / "four", *more), "--config.mesh.fsdp", 2)
    assert "state: True" in said
    _close(tmp_path / "one", tmp_path / "four")


def test_a_run_goes_on_with_other_devices(tmp_path):
    """Stopped on one device after half of its steps, and continued on two that share weights."""
    import runs

    more = ("--config.rounds", 1, "--config.round_1.sample.temperature", 0)
    assert tiny.styledrop(*tiny.arguments(tmp_path / "one", *more)) == 0
    runs.train_until_death(tmp_path / "two", 1, *more)
    said = _on(2, *tiny.arguments(tmp_path / "two", *more), "--config.mesh.fsdp", 2)
    assert "round_1: 2 of 4" in said
    _close(tmp_path / "one", tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["mesh"] == {"data": 0, "fsdp": 1}, "that of the command that began it"


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"])
def test_devices_that_sample_send_each_other_weights_alone(base):
    folder = tiny.models() / "muse" if base == "muse" else tiny.stable_diffusion()
    said = _on(4, folder, tiny.models() / "clip", program=_SENT).splitlines()
    assert "sampling all-gather" in said
    assert "decoding all-gather" in said


def test_what_does_not_divide_is_said_before_anything_is_loaded(tmp_path, capfd):
    import runs

    words = tiny.arguments(tmp_path / "run", "--config.base", "no/such/model")
    error = runs.refused(capfd, *words, "--config.mesh.fsdp", "3")
    assert "config.mesh.fsdp: found 3, expected a divisor of 1" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "shape", "fsdp", "expected"),
    [
        ("down.0.kernel", (3, 3, 320, 640), 4, (None, None, None, "fsdp")),
        ("down.0.kernel", (3, 3, 640, 320), 4, (None, None, "fsdp")),
        ("opt.0.mu.down.0.kernel", (640, 320), 4, ("fsdp",)),
        ("down.0.kernel", (640, 320), 1, ()),
        ("down.0.kernel", (640, 321), 3, (None, "fsdp")),
        ("down.0.kernel", (641, 321), 7, ()),
        ("down.0.bias", (640,), 4, ()),
        ("text.embedding", (49408, 768), 4, (None, "fsdp")),
        ("targets.0", (4096, 64, 64, 4), 4, ()),
    ],
)
def test_large_weights_are_cut_along_their_longest_axis(name, shape, fsdp, expected):
    assert mesh.spec(name, shape, fsdp) == PartitionSpec(*expected)


@pytest.mark.parametrize("chips", [4, 16])
def test_a_chip_holds_its_share_of_what_a_full_training_takes(chips):
    """All weights of Stable Diffusion 1.5's U-Net with Adam's two moments, from shapes alone."""
    whole = 0
    held = 0
    for name, shape in _sd15().items():
        size = int(np.prod(shape))
        whole += size
        held += size // chips if any(mesh.spec(name, shape, chips)) else size
    assert whole > 8e8
    assert held * chips <= 1.02 * whole


@functools.cache
def _sd15():
    """{path: shape}; the moments have the shapes and the last parts of the paths."""
    network = nnx.eval_shape(lambda: unet.UNet(unet.Config.sd15(), rngs=pretrained.ONE_KEY))
    return {name: x.shape for name, x in tree.flatten(nnx.state(network, nnx.Param)).items()}
