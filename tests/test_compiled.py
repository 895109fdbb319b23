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
device = sys.argv[1]
try:
    compiled.mesh(device)
except Exception as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(compiled.measured("attention", "sd15", device, kernels=True).temporaries))
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
        pytest.skip(f"no compiler for {device}: install the extra `compilers` ({found[:200]})")
    assert found < 0.5e9
