"""The architecture: who may import whom, read from the source without running it."""

import ast
from pathlib import Path

import pytest

import styledrop_jax

ROOT = Path(styledrop_jax.__file__).parent
# From the ground up. A part imports itself and what stands on a lower rung, never its neighbours:
# `sampling` and `models` do not know each other.
RUNGS = [
    {"errors"},
    {"tree", "settings", "hosts", "cache"},
    {"models", "sampling"},
    {"io"},
    {"log", "runs"},
    {"training", "adapters"},
    {"pipelines"},
    {"methods", "metrics", "pictures"},
    {"feedback"},
    {"registry"},
    {"trainable", "spec"},
    {"guidance", "interchange", "config_files", "results"},
    {"stages"},
    {"planning"},
    {"rounds", "style", "emoji"},
    {"library", "styles", "publish"},
    {"__init__"},
    {"studio"},
    {"commands"},
    {"cli"},
    {"__main__", "warm"},
]
RUNG = {part: height for height, parts in enumerate(RUNGS) for part in parts}
TEST_ONLY = {"torch", "torchvision", "diffusers", "accelerate", "peft", "tensorflow"}
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=NAMES)


def _part(path: Path) -> str:
    """The package or module right under `styledrop_jax` that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(source: str) -> set[str]:
    """Dotted names of all that is imported anywhere in a file, in functions and under TYPE_CHECKING
    too.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in _imports(path.read_text(encoding="utf-8")))
    return {name[1] for name in names if name[0] == "styledrop_jax" and name[1:] != ["__version__"]}


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\nfrom c import d, e\ndef f():\n    if T:\n        from c.g import h as i\n"
    assert _imports(source) == {"a.b", "c.d", "c.e", "c.g.h"}


def test_every_part_has_its_place():
    parts = {_part(path) for path in FILES}
    assert parts == set(RUNG), "put a new part on its rung in RUNGS, and take a removed one off"


@EVERY_FILE
def test_imports_point_downward(path):
    part = _part(path)
    upward = {other for other in _parts_imported(path) - {part} if RUNG[other] >= RUNG[part]}
    assert not upward, f"{part} imports {', '.join(sorted(upward))}, which do not stand below it"


@EVERY_FILE
def test_the_reference_libraries_are_not_needed(path):
    roots = {name.split(".")[0] for name in _imports(path.read_text(encoding="utf-8"))}
    assert not roots & TEST_ONLY


@EVERY_FILE
def test_nothing_is_imported_by_string(path):
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not called & {"import_module", "__import__", "exec", "eval"}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*/**/__init__.py")), ids=lambda path: path.parent.name
)
def test_packages_export_nothing(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr), "a one-line docstring and no more"
