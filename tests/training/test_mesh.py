"""Several devices: a batch is cut between them, and the result is that of one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from styledrop_jax.io import image_files

_PROGRAM = """
import jax
from styledrop_jax import cli
cli.main()
assert jax.device_count() == 2
"""


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"])
def test_two_devices_train_and_generate_as_one(base, tmp_path):
    folder = tiny.models() / "muse" if base == "muse" else tiny.stable_diffusion()
    more = ("--config.base", folder, "--config.rounds", 1, "--config.round_1.sample.temperature", 0)
    assert tiny.styledrop(*tiny.arguments(tmp_path / "one", *more)) == 0
    line = [sys.executable, "-c", _PROGRAM, *tiny.arguments(tmp_path / "two", *more)]
    two_devices = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(line, env=two_devices, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = load_file(tmp_path / "one" / "round_1" / "adapter.safetensors")
    two = load_file(tmp_path / "two" / "round_1" / "adapter.safetensors")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        np.testing.assert_allclose(two[name], weight, atol=2e-4)
    for stage in ("base", "round_1"):
        files = list((tmp_path / "one" / stage / "samples").iterdir())
        assert files
        for file in files:
            image = image_files.read_image(file)
            same = image_files.read_image(tmp_path / "two" / stage / "samples" / file.name)
            assert np.abs(image.astype(int) - same).mean() < 1
