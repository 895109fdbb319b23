"""What the compilers of accelerators say, where they are installed: the extra `compilers`."""

import json
import os
import subprocess
import sys

import pytest
import tiny

# In a process of its own, as the compilers are found when JAX starts.
_PROGRAM = """
import json, sys
import compiled
from styledrop_jax.errors import UserError
try:
    found = compiled.measured("attention", "sd15", 4, sys.argv[1], kernels=True).temporaries
except UserError as error:
    found = str(error)
print(json.dumps(found))
"""


@pytest.mark.parametrize("device", ["v5e", "v6e", "h100"])
def test_attention_over_4096_positions_fits(device):
    """A batch of 4 of Stable Diffusion 1.5 at 512 pixels: over 3 GB if plain."""
    folders = [str(tiny.ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", _PROGRAM, device]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if isinstance(found, str):
        pytest.skip(found)
    assert found < 0.5e9
