"""Coverage-guided fuzzing of everything that reads a file which may come from anyone.

    python benchmarks/fuzz.py [--only image,prompts] [--seconds 60] [--corpus FOLDER]

Atheris (libFuzzer; the extra `fuzz`) changes good files byte by byte towards code that no input
has reached. Each goes to the function that a command gives it to, which has to accept it or to
answer in one line that names the file, as in bad_inputs.py, within 20 seconds and 4 GB. An input
for which it does not is kept in the corpus folder, as `crash-…` or `timeout-…`.
"""

import argparse
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_FOUND = re.compile(r"^(crash|timeout|leak)-")
_INSTRUMENTED = [
    "PIL",
    *(f"styledrop_jax.{part}" for part in ("adapters", "interchange", "io", "models", "stages")),
]


class Target(NamedTuple):
    """What reads a file, the ending of its name, and files that are as they should be."""

    read: Callable[[Path], Any]
    ending: str
    seeds: list[bytes]


def _targets() -> dict[str, Callable[[], Target]]:
    return {
        "images": _images,
        "captions": _captions,
        "prompts": _prompts,
        "weights": _weights,
        "autoencoders": _autoencoders,
        "LoRAs": _loras,
        "model configs": _configs,
        "records": _records,
    }


def _images() -> Target:
    from PIL import Image

    from styledrop_jax.io import image_files

    seeds = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.effect_mandelbrot((9, 7), (-2, -1, 1, 1), 5).convert("RGB").save(file, kind)
        seeds.append(file.getvalue())
    return Target(image_files.read_image, ".png", seeds)


def _captions() -> Target:
    from styledrop_jax.io import captions

    row = {"image": "a.png", "content": "a cat", "descriptor": "in ink"}
    lines = json.dumps(row) + "\n" + json.dumps({"file_name": "b.png", "text": "a dog"}) + "\n"
    return Target(
        lambda path: captions.read_references(str(path), "", ""), ".jsonl", [lines.encode()]
    )


def _prompts() -> Target:
    from styledrop_jax.io import captions

    return Target(captions.read_prompts, ".txt", [b"a cat\n# no prompt\n\na red house\n"])


def _weights() -> Target:
    import numpy as np
    from safetensors.numpy import save

    from styledrop_jax.adapters import base
    from styledrop_jax.io import pretrained
    from styledrop_jax.models.rules import Rules

    def read(path: Path) -> None:
        pretrained.Tensors([path], Rules(rules=()))
        base.load_adapter(path)

    tensors = {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}
    metadata = {base.METADATA: json.dumps({"format": 1, "config": {}, "digest": "0"})}
    return Target(read, ".safetensors", [save(tensors), save(tensors, metadata)])


def _autoencoders() -> Target:
    import numpy as np
    from safetensors.numpy import save

    from styledrop_jax.io.pretrained import Tensors
    from styledrop_jax.models import vae

    row = np.ones(2, np.float16)
    seeds = []
    for names in (
        ("encoder.down.0.block.0.norm1.weight", "decoder.mid.attn_1.q.weight"),
        ("first_stage_model.decoder.up.3.block.0.nin_shortcut.bias", "model_ema.decay"),
        ("decoder.up_blocks.0.resnets.0.conv1.bias", "quant_conv.weight"),
    ):
        seeds.append(save(dict.fromkeys(names, row)))
    return Target(lambda path: Tensors.of_autoencoder(path, vae.RULES), ".safetensors", seeds)


def _loras() -> Target:
    import bad_inputs_bases
    from safetensors.numpy import save

    from styledrop_jax import base_model, trainable
    from styledrop_jax.interchange import base_loras

    base = base_model.load("emoji128")

    def read(path: Path) -> None:
        fresh = dataclasses.replace(base, denoiser=trainable.copy(base.denoiser))
        base_loras.merged(fresh, [(str(path), 1.0)])

    seeds = []
    for what, tensors in bad_inputs_bases.of_other_tools().items():
        if "Lo" in what:
            seeds.append(save(tensors))
    return Target(read, ".safetensors", seeds)


def _configs() -> Target:
    import bad_inputs_cases

    from styledrop_jax.io.files import read_object

    def read(path: Path) -> None:
        content = read_object(path)
        for config in bad_inputs_cases.MODELS.values():
            type(config).from_dict(content)

    seeds = []
    for config in bad_inputs_cases.MODELS.values():
        seeds.append(json.dumps(bad_inputs_cases._written(config)).encode())
    return Target(read, ".json", seeds)


def _records() -> Target:
    from styledrop_jax.io.records import read_steps
    from styledrop_jax.stages import samples

    def read(path: Path) -> None:
        for reads in (read_steps, samples.read_samples, samples.read_chosen):
            reads(path)

    sample = samples.Sample(
        prompt=0, image=0, file="a.png", content="a", text="a", judged="a", seed=1
    )
    rows = [samples._to_dict(sample), {"stage": "round_1", "step": 1, "loss": 0.5}]
    chosen = {"selected": rows[:1]}
    return Target(read, ".jsonl", [json.dumps(row).encode() + b"\n" for row in (*rows, chosen)])


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    """Tries inputs on one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = _targets()[name]()
    import bad_inputs

    file = folder / f"input{target.ending}"
    case = bad_inputs.Case(name, "", (file.name, "config"), lambda: target.read(file))

    def one(data: bytes) -> None:
        file.write_bytes(data)
        kind, said = bad_inputs.outcome(case)
        if kind not in ("answered", "accepted"):
            raise RuntimeError(f"{kind}: {said}")

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed_{number}").write_bytes(seed)
    flags = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=65536"]
    flags += ["-rss_limit_mb=0"]  # its peak counts what the parent of this process held
    flags += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], str(corpus), *flags], one)
    atheris.Fuzz()


@dataclasses.dataclass
class Result:
    """Inputs that were tried on a target, and what the fuzzer said of the one that failed."""

    target: str
    inputs: int
    failed: str


def fuzzed(name: str, folder: Path, seconds: int) -> Result:
    """Fuzzes one target in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*line, "--corpus", str(folder)], env=environment, capture_output=True, text=True
    )
    said = done.stderr + done.stdout
    tried = re.search(r"number_of_executed_units: (\d+)", said)
    found = [path.name for path in folder.iterdir() if _FOUND.match(path.name)]
    failed = f"{', '.join(found)}: {said[-3000:]}" if found or done.returncode else ""
    return Result(name, int(tried[1]) if tried else 0, failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="targets, with commas between them")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default 60)")
    parser.add_argument("--corpus", type=Path, help="what was found, to go on from the next time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        _fuzz(flags.one, flags.corpus, flags.seconds)
    failed = False
    print("| what is read | inputs | failures |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="styledrop-fuzz-") as temporary:
        for name in flags.only.split(",") if flags.only else _targets():
            folder = (flags.corpus or Path(temporary)) / name.replace(" ", "_")
            result = fuzzed(name, folder, flags.seconds)
            print(f"| {name} | {result.inputs} | {int(bool(result.failed))} |", flush=True)
            if result.failed:
                print(result.failed, file=sys.stderr)
                failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
