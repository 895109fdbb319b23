"""The memory that a run takes of a TPU, sooner than `styledrop plan` says it.

    pip install ".[compilers]"
    python benchmarks/assigned.py --config styledrop:sdxl --device v6e
    python benchmarks/assigned.py --config styledrop:sdxl --device v5e:2x2 --config.mesh.fsdp 4

The compiler of a TPU gives every array its place before it writes instructions, which of a large
model takes most of its time: here it is stopped between the two. Programs and columns are those of
`styledrop plan`, and so is the memory; traffic is not known. `--part` is for one of the programs
alone: 0 training, 1 sampling, 2 decoding.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs

from styledrop_jax import config_files, spec  # noqa: E402
from styledrop_jax.pipelines.base import Compilable  # noqa: E402
from styledrop_jax.planning import compiler, devices, run  # noqa: E402
from styledrop_jax.planning.compiler import Cost  # noqa: E402
from styledrop_jax.stages.read import read  # noqa: E402

_PARTS = 3
_PLACES = "*.jit_*after_optimizations-buffer-assignment.txt"
_AFTER = "*.jit_*after_optimizations_after_buffer_assignment.txt"  # written later than those
_TEMPORARY = re.compile(r"^allocation \d+: size (\d+), preallocated-temp", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", required=True, help="v5e, v6e, v5p, or a slice of them")
    parser.add_argument("--part", type=int, action="append", choices=range(_PARTS))
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)  # in a process of its own
    config, rest = config_files.from_arguments(sys.argv[1:])
    flags = parser.parse_args(rest)
    value = spec.from_config(spec.absolute(config))
    device = devices.find(flags.device, value.mesh)
    compiled = -1

    def measure(name: str, program: Compilable) -> Cost:
        nonlocal compiled
        compiled += 1
        asked = compiled == flags.compile
        return (compiler.compiled if asked else compiler.estimated)(program, device)

    plan = run.planned(value, read(value))
    parts = list(run.parts(plan, run.counts(plan), device, measure))
    if flags.compile is not None:
        return
    columns = ("program", "arguments", "temporaries", "beside", "in all GB", "CPU s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for i in flags.part or range(_PARTS):
        temporaries, seconds = _stopped([*sys.argv, "--compile", str(i)])
        sizes = (parts[i].cost.arguments, temporaries, parts[i].beside)
        cells = [f"{size / devices.GB:.2f}" for size in (*sizes, sum(sizes))]
        print(f"| {parts[i].name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def _stopped(line: Sequence[str]) -> tuple[int, float]:
    """Bytes of temporaries of the program that a command compiles, and its CPU seconds until they
    had their places, where it is stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_.*"
        environment = os.environ | {"XLA_FLAGS": flags}
        child = subprocess.Popen([sys.executable, *line], env=environment)
        while child.poll() is None and not list(Path(folder).glob(_AFTER)):
            time.sleep(0.5)
        child.kill()
        _, _, used = os.wait4(child.pid, 0) if child.returncode is None else (0, 0, None)
        (places,) = Path(folder).glob(_PLACES)
        found = _TEMPORARY.findall(places.read_text())
    return sum(map(int, found)), 0.0 if used is None else used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
