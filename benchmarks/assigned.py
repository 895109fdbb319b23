"""What a run takes of a TPU, sooner than `styledrop plan` says it.

    pip install ".[compilers]"
    python benchmarks/assigned.py --config styledrop:sdxl --device v6e
    python benchmarks/assigned.py --config styledrop:sdxl --device v5e:2x2 --config.mesh.fsdp 4

The compiler of a TPU gives every array its place before it writes instructions, which of a large
model takes most of its time: here it is stopped between the two. Programs and columns are those of
`styledrop plan`. Temporaries are a little less than there, as instructions may need more; what
chips send each other is not said, and arguments are counted from shapes, a decoder's with the
encoder's weights. `--part` is for one of the programs alone: 0 training, 1 sampling, 2 decoding.
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
from styledrop_jax.planning import compiler, devices, hlo, run  # noqa: E402
from styledrop_jax.planning.compiler import Cost  # noqa: E402
from styledrop_jax.planning.devices import GB  # noqa: E402
from styledrop_jax.stages.read import read  # noqa: E402

_PARTS = 3
_PLACES = "*.jit_*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*.jit_*after_optimizations_after_buffer_assignment.txt"  # written after those
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
    columns = ("program", "arguments", "temporaries", "beside", "in all GB", "Tflop", "traffic GB")
    columns += ("at least, ms", "arithmetic's share", "CPU s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for i in flags.part or range(_PARTS):
        temporaries, traffic, seconds = _stopped([*sys.argv, "--compile", str(i)])
        cost = parts[i].cost._replace(temporaries=temporaries, traffic=traffic)
        part = parts[i]._replace(cost=cost)
        bound = cost.bound(device)
        assert bound is not None and device.peak is not None
        cells = [f"{size / GB:.2f}" for size in (cost.arguments, temporaries, part.beside)]
        cells += [f"{part.memory:.2f}", f"{cost.flops / 1e12:.1f}", f"{traffic / GB:.1f}"]
        cells += [f"{bound * 1e3:.1f}", f"{cost.flops / device.peak / 1e12 / bound:.0%}"]
        print(f"| {part.name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def _stopped(line: Sequence[str]) -> tuple[int, int, float]:
    """Bytes of temporaries and of traffic of the program that a command compiles, and its CPU
    seconds until they were known, when it is stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_.*"
        child = subprocess.Popen([sys.executable, *line], env=os.environ | {"XLA_FLAGS": flags})
        while not (done := list(Path(folder).glob(_PROGRAM))):
            if child.poll() is not None:
                raise SystemExit(f"{' '.join(line)}: ended with {child.returncode}")
            time.sleep(0.5)
        time.sleep(5)  # until it is written
        child.kill()
        _, _, used = os.wait4(child.pid, 0)
        (places,) = Path(folder).glob(_PLACES)
        temporaries = sum(map(int, _TEMPORARY.findall(places.read_text())))
        traffic = hlo.moved(done[0].read_text())
    return temporaries, traffic, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
