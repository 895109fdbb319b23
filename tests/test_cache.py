"""The cache of compiled programs: found again, done without, and mended."""

import os
import subprocess
import sys

import pytest
import tiny

from styledrop_jax import cache

_NAMES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
_PROGRAM = """
from styledrop_jax import cache
cache.keep_programs()
import jax
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: x * 2 + 1)(jax.numpy.arange(3)).block_until_ready()
print(any("cache_hits" in event for event in found))
"""


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """An environment that says nothing of JAX's cache, and a home of the test's own."""
    for name in _NAMES:
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    return tmp_path / ".cache" / "styledrop_jax" / "programs"


def _compiles(**more: str) -> bool:
    """Whether a process of its own found its program compiled."""
    line = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(line, env=os.environ | more, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip() == "True"


def test_a_second_start_finds_what_the_first_compiled(clean):
    """What a death left is dropped, and made anew."""
    assert not _compiles()
    assert _compiles()
    for entry in clean.glob("*-atime"):
        entry.unlink()
    assert not _compiles()
    assert _compiles()


def test_a_folder_that_cannot_be_written_is_done_without(clean, monkeypatch):
    clean.parents[1].write_text("a file where a folder should be")
    cache.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    clean.parents[1].unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    cache.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_without_a_home_there_is_no_cache(clean, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    cache.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_what_the_user_says_stands(clean, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    cache.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(clean)
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1000"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    cache.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


_SAMPLE = """
import sys
from styledrop_jax import cache, cli
cache.keep_programs()
import jax
programs = []
def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        programs.append(event)
jax.monitoring.register_event_duration_secs_listener(listen)
cli.main()
print(len(programs), *sys.modules)
"""


def test_a_picture_takes_few_programs_and_nothing_that_only_trains(tmp_path):
    """Each program is traced, and looked for among those that are kept, at every start."""
    words = ["sample", "--run", tiny.finished(), "--prompt", "a cat", "--num", 1, "--out", tmp_path]
    line = [sys.executable, "-c", _SAMPLE, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    programs, *modules = done.stdout.splitlines()[-1].split()
    assert 1 < int(programs) <= 12
    unused = {"torch", "orbax.checkpoint", "tensorstore", "tensorboardX", "scipy", "pandas"}
    assert not unused & set(modules)
