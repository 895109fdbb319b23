"""The wheel holds everything that a user needs: code, configs, models, types."""

import shutil
import subprocess
import sys
import tomllib
import zipfile

import tiny

PACKAGE = tiny.ROOT / "styledrop_jax"
PAGE = (".html", ".css", ".js", ".svg")


def test_every_package_is_listed():
    listed = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"styledrop_jax", "styledrop_jax.configs"}
    for path in PACKAGE.rglob("__init__.py"):
        found.add(".".join(path.parent.relative_to(tiny.ROOT).parts))
    assert set(listed["packages"]) == found


def test_the_wheel_has_code_configs_models_and_types(tmp_path):
    tree = tmp_path / "tree"  # without what earlier builds have left
    for name in ("styledrop_jax", "configs"):
        shutil.copytree(tiny.ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(tiny.ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, tree], check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"styledrop_jax/py.typed"}
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".json", ".jsonl", ".safetensors", ".png", ".jinja", *PAGE):
            expected.add(path.relative_to(tiny.ROOT).as_posix())
    for path in (tiny.ROOT / "configs").glob("*.py"):
        expected.add(f"styledrop_jax/configs/{path.name}")
    assert not expected - names
