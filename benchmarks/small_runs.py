"""The smallest runs of all commands that write: what `kills.py` and `faults.py` break, continue
and compare.

The models are those of the tests, made anew. A process that has loaded all libraries is forked for
each command, before anything is computed in it: XLA's threads would not be there after a fork.
"""

import importlib
import logging
import multiprocessing
import os
import pkgutil
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # as the tests
_FORK = multiprocessing.get_context("fork")
PATIENCE = 300  # seconds after which a command hangs
STOPPED = 130  # the exit code of a command that was told to stop and said so
_COMMON = {
    "reference.content": "a house",
    "reference.descriptor": "in watercolor painting style",
    "round_1.sample.batch_size": 2,
    "round_2.sample.batch_size": 2,
}
_PRETRAIN = {"vocabulary": "starter", "batch_size": 2, "steps": 3, "warmup": 1}
_PRETRAIN |= {"checkpoint_every": 1, "width": 4}


class World:
    """Models, pictures and finished runs in one folder, made by `build` in a process of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def personalize(self, run: Path, base: str, more: Mapping[str, object] = {}) -> list[str]:
        """The words of a run of two rounds on the base `base`, "muse" or "sd"."""
        config = {
            **_COMMON,
            "base": self.folder / base,
            "clip": self.folder / "clip",
            "prompts": self.folder / "prompts.txt",
            "reference.image": self.folder / "reference.png",
            **more,
        }
        line = ["personalize", "--config", "debug:emoji128-muse", "--workdir", str(run)]
        for name, value in config.items():
            line += [f"--config.{name}", str(value)]
        return line

    def finished(self, base: str) -> str:
        return str(self.folder / f"finished_{base}")

    def build(self, parts: Collection[str]) -> None:
        """Makes what commands need: "muse" and "sd" are finished runs, "corpus" is to pretrain."""
        import emoji_packages
        import tiny

        from styledrop_jax.emoji import builder

        tiny.build_models(self.folder, seed=1)
        tiny.models = lambda: self.folder
        shutil.copytree(tiny.stable_diffusion(), self.folder / "sd")
        (self.folder / "prompts.txt").write_text("a cat\na red house\n")
        for number, name in enumerate(("reference.png", "photos/a cat.png", "photos/a dog.png")):
            tiny.picture(self.folder / name, seed=number)
        if "corpus" in parts:
            emoji_packages.build_npm(self.folder / "npm")
            builder.build(self.folder / "npm", self.folder / "corpus")
        for base, adapter in (("muse", "styledrop"), ("sd", "lora")):
            if base in parts:
                config = {"rounds": 1, "round_1.adapter.kind": adapter}
                assert run_here(self.personalize(Path(self.finished(base)), base, config)) == 0


class Command(NamedTuple):
    """A command that writes into one folder.

    Attributes:
        words: (world, the folder) → what is typed.
        needs: of the world; see `World.build`.
        goes_on: whether the folder begins as a copy of the finished run that it needs.
    """

    words: Callable[[World, Path], Sequence[str]]
    needs: str = ""
    goes_on: bool = False


def _use(command: str, base: str, *more: str) -> Command:
    def words(world: World, out: Path) -> list[str]:
        run = ["--style" if command == "mix" else "--run", world.finished(base)]
        flags = [word.format(world=world.folder) for word in more]
        return [command, *run, "--out", str(out / "images"), *flags]

    return Command(words, base)


def _personalize(base: str, more: Mapping[str, object]) -> Command:
    return Command(lambda world, out: world.personalize(out / "run", base, more))


def _pretrain(world: World, out: Path) -> list[str]:
    line = ["pretrain", "--config", "pretrain_vq", "--workdir", str(out / "run")]
    for name, value in {"corpus": world.folder / "corpus", **_PRETRAIN}.items():
        line += [f"--config.{name}", str(value)]
    return line


def _extend(_: World, out: Path) -> list[str]:
    return ["extend", "--run", str(out / "run"), "--rounds", "1"]


_KEEPS = {"round_1.keep": 2, "round_1.select.images_per_prompt": 2, "round_1.sample.steps": 3}
_TWO = ("--prompt", "a cat", "--prompt", "a red house", "--num", "2")
COMMANDS = {
    "personalize muse": _personalize("muse", {}),
    "personalize sd": _personalize("sd", _KEEPS),
    "extend": Command(_extend, "muse", goes_on=True),
    "sample muse": _use("sample", "muse", *_TWO),
    "sample sd": _use("sample", "sd", *_TWO),
    "stylize": _use("stylize", "muse", "--image", "{world}/photos", "--num", "2"),
    "edit": _use("edit", "sd", *_TWO, "--image", "{world}/reference.png"),
    "mix": _use("mix", "muse", *_TWO, "--subject", "{world}/finished_muse"),
    "export": _use("export", "sd", "--format", "pipeline"),
    "pretrain": Command(_pretrain, "corpus"),
    "configs": Command(lambda _, out: ["configs", str(out / "configs")]),
}


def load_libraries(folder: Path) -> None:
    """All that a command imports, so that what is forked has it; programs are kept in `folder`."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ["XLA_FLAGS"] = " ".join((_FLAGS, os.environ.get("XLA_FLAGS", "")))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not be there after a fork
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    import styledrop_jax

    for module in pkgutil.walk_packages(styledrop_jax.__path__, "styledrop_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("tensorboardX", "emoji_packages", "tiny"):
        importlib.import_module(name)


def run_here(words: Sequence[str]) -> int:
    """Runs a command in this process; its exit code."""
    from styledrop_jax import cli

    sys.argv = ["styledrop", *words]
    try:
        cli.main()
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code; minus the number of the signal that ended it; None if it hung.
        said: on standard error. seconds: that it took.
    """

    code: int | None
    said: str
    seconds: float


def run_forked(
    words: Sequence[str], place: Path, *, first: Callable[[], None] = lambda: None
) -> Ended:
    """Runs a command in a process of its own.

    Args:
        words: what is typed after `styledrop`.
        place: a folder for what it prints; its caches are in `place`/out.
        first: is called in the process before the command.
    """
    start = time.monotonic()
    said = place / "stderr"
    process = _FORK.Process(target=_child, args=(words, place, said, first))
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Ended(code, said.read_text(errors="replace"), time.monotonic() - start)


def _child(words: Sequence[str], place: Path, said: Path, first: Callable[[], None]) -> None:
    _speak_into(place / "stdout", said)
    os.environ["XDG_CACHE_HOME"] = str(place / "out" / "cache")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.root.handlers.clear()  # a library's, which the command would not have
    try:
        first()
        code = run_here(words)
    except KeyboardInterrupt:
        code = STOPPED  # before the command began, or after its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def begin(command: Command, world: World, place: Path) -> list[str]:
    """Makes the folder `place`/out anew; the words of the command that writes into it."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if command.goes_on:
        shutil.copytree(world.finished(command.needs), out / "run")
    return list(command.words(world, out))


def built(folder: Path, parts: Collection[str]) -> World:
    """The world with what its commands need, made in a process of its own."""
    folder.mkdir(parents=True)
    world = World(folder)
    process = _FORK.Process(target=_build, args=(world, parts, folder / "said"))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the smallest models were not made: {(folder / 'said').read_text()}")
    return world


def _build(world: World, parts: Collection[str], said: Path) -> None:
    _speak_into(said, said)
    world.build(parts)


def _speak_into(out: Path, error: Path) -> None:
    for number, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
