"""The bad inputs of `bad_inputs.py`, made from what the package itself says that it reads."""

import argparse
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bad_inputs_bases
import numpy as np
from bad_inputs import Case
from bad_inputs_values import VALUES, paths, put
from PIL import Image
from safetensors.numpy import save_file

from styledrop_jax import config_files, log, runs, settings, spec, trainable
from styledrop_jax.adapters import base as adapters
from styledrop_jax.adapters import styledrop, textual_inversion
from styledrop_jax.cli import COMMANDS
from styledrop_jax.io import captions, files, hub, image_files, pretrained
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.run_folder import Run
from styledrop_jax.models import clip_config, t5, unet, uvit_config, vae, vqgan
from styledrop_jax.models.rules import Rules
from styledrop_jax.models.tokenizer import check_tokenizer, load_tokenizer
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.registry import METHODS
from styledrop_jax.sampling.noise_schedule import NoiseSchedule
from styledrop_jax.stages import best, judge, report, samples

WORDS = ("-1", "1000000000", "9" * 5000, "nan", "1e999", "x", "", "a\nb", "\udcff", "/dev/zero")
MODELS = {
    "transformer": uvit_config.Config.emoji(),
    "vqvae": vqgan.Config.emoji(),
    "unet": unet.Config.emoji(),
    "vae": vae.Config.emoji(),
    "text_encoder": clip_config.ClipConfig.emoji64().text,
    "clip": clip_config.ClipConfig.emoji64(),
    "t5": t5.Config(),
    "scheduler": NoiseSchedule(),
}
_NEEDED = {
    "extend": ("--rounds", "1"),
    "plan": ("--config", "styledrop"),
    "push": ("--to", "a/b", "--dry-run"),
}
_SAMPLE = samples.Sample(
    prompt=0, image=0, file="samples/a.png", content="a cat", text="a cat", judged="a cat", seed=1
)


def every(folder: Path) -> list[Case]:
    """All bad inputs; what they need of files is written into `folder`."""
    makers = (
        _of_settings,
        _of_models,
        _of_builds,
        _of_tokenizers,
        _of_adapters,
        bad_inputs_bases.of_bases,
        _of_runs,
        _of_files,
        _of_flags,
    )
    cases: list[Case] = []
    for make in makers:
        cases += make(folder)
    return cases


# -------------------------------------------------------------- settings and models


def _of_settings(_: Path) -> Iterator[Case]:
    seen = set()
    for method in METHODS:
        data = spec.complete({"method": method})
        for field in settings.describe(spec._kind(data), data):
            if field.name in seen:
                continue
            seen.add(field.name)
            for what, value in VALUES.items():
                changed = json.loads(json.dumps(data))
                spec._put(changed, field.name.split("."), value)
                name = f"{field.name}: {what}"
                yield Case("settings", name, (field.name,), partial(spec.from_config, changed))


def _of_models(_: Path) -> Iterator[Case]:
    for model, config in MODELS.items():
        read = type(config).from_dict
        values = _written(config)
        for field in values:
            for what, value in VALUES.items():
                changed = {**values, field: value}
                names = (field, *(other for other in values if other != field))
                yield Case("models", f"{model} {field}: {what}", names, partial(read, changed))


def _written(config: Any) -> dict[str, Any]:
    """As a config.json has it."""
    if isinstance(config, NoiseSchedule):
        known = {"_class_name": "DDIMScheduler", "clip_sample": False}
        return {**known, **dataclasses.asdict(config)}
    return json.loads(json.dumps(config.to_dict()))


def _of_builds(folder: Path) -> Iterator[Case]:
    """Sizes that some model has, beside the weights of one that has others."""
    kinds = {"emoji128-muse": (muse_files, ("TRANSFORMER", "VQVAE", "TEXT"))}
    kinds["emoji128"] = (stable_diffusion_files, ("UNET", "VAE", "TEXT"))
    for kind, (module, names) in kinds.items():
        for name in names:
            component = getattr(module, name)
            original = hub.SHIPPED / kind / component.folder
            values = json.loads((original / "config.json").read_text())
            for field, value in values.items():
                if type(value) is not int:
                    continue
                for size in (2**20, value + 1):
                    place = folder / "builds" / kind / component.folder / f"{field}_{size}"
                    changed = {**values, field: size}
                    label = f"{kind} {component.folder} {field}: {size}"
                    call = partial(_build, component, original, place, changed)
                    yield Case("builds", label, (str(place), field), call)


def _build(component: Any, original: Path, place: Path, values: Mapping[str, Any]) -> None:
    place.mkdir(parents=True)
    for file in original.iterdir():
        if file.name != "config.json":
            (place / file.name).symlink_to(file)
    (place / "config.json").write_text(json.dumps(values))
    component.load(place)


def _of_tokenizers(folder: Path) -> Iterator[Case]:
    original = hub.SHIPPED / "emoji128-muse" / "tokenizer"
    text = clip_config.TextConfig.from_dict(
        json.loads((original.parent / "text_encoder" / "config.json").read_text())
    )

    def load(place: Path, name: str, values: Mapping[str, Any]) -> None:
        shutil.copytree(original, place)
        (place / name).write_text(json.dumps(values))
        check_tokenizer(load_tokenizer(place), text, source=str(place))

    for file in sorted(original.glob("*.json")):
        whole = json.loads(file.read_text())
        for field in whole:
            for what, value in VALUES.items():
                place = folder / "tokenizers" / file.stem / field / what.replace(" ", "_")
                call = partial(load, place, file.name, {**whole, field: value})
                yield Case("tokenizers", f"{file.name} {field}: {what}", ("tokenizer",), call)


# -------------------------------------------------------------- adapters and weights


def _of_adapters(folder: Path) -> Iterator[Case]:
    tensors = {"denoiser.x": np.ones((4, 8), np.float32)}
    token = textual_inversion.Token(word="<a>", initializer="a")
    words = textual_inversion.Config(tokens=(token,)).to_dict()
    whole = {"denoiser": styledrop.Config().to_dict(), "text": None, "words": words}
    metadata = {"format": 1, "base_name": "x", "base_hash": "0" * 64, "round": 1, "extra": {}}
    place = folder / "adapters"
    place.mkdir()
    number = 0
    for keys in paths({**metadata, "config": json.loads(json.dumps(whole))}):
        for what, value in VALUES.items():
            if value == "\ud800":
                continue  # safetensors writes no such text
            changed = json.loads(json.dumps({**metadata, "config": whole}))
            put(changed, keys, value)
            path = place / f"{number}.safetensors"
            number += 1
            name = f"{'.'.join(map(str, keys))}: {what}"
            names = (path.name, str(keys[-1]), "adapter", "token")
            yield Case("adapters", name, names, partial(_load_adapter, path, tensors, changed))


def _load_adapter(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Of a file whose checksum is right, whatever it says."""
    metadata["digest"] = adapters._digest(metadata, tensors)
    save_file(tensors, path, metadata={adapters.METADATA: json.dumps(metadata)})
    trainable.from_dict(adapters.load_adapter(path, base_hash="0" * 64).config)


# -------------------------------------------------------------- run folders


def _of_runs(folder: Path) -> Iterator[Case]:
    scores = {name: 0.5 for name in judge._SCORES}
    row = samples._to_dict(dataclasses.replace(_SAMPLE, source="references/000.png"))
    reference = {"path": "a.png", "file": "references/000.png", "content": "a cat"}
    reference |= {"caption": "a cat", "descriptor": "in ink", "sha256": "0" * 64}
    records: dict[str, Any] = {
        "config.json": spec.complete({}),
        "manifest.json": {
            "references": [reference],
            "prompts": ["a cat"],
            "base": {"name": "x", "hash": "x", "parameters": 1},
            "versions": {"jax": "1"},
            "device": "cpu",
            "rounds": {"round_1": {"trainable": 1, "frozen": 1, "images": 1}},
        },
        "verdict.json": {
            "round": 1,
            "learnt": "x",
            "remarks": ["x"],
            "advice": ["more"],
            "scores": {"base": scores, "round_1": scores},
        },
        "metrics.jsonl": {"stage": "round_1", "step": 1, "loss": 0.5},
        "round_1/scores.jsonl": row,
        "round_1/selected.json": {"selected": [row]},
        "round_1/steps/000001/scores.jsonl": row,
        "round_1/steps/best.json": {"step": 1},
    }
    number = 0
    for name, record in records.items():
        for keys in [(), *paths(record)]:
            if len(keys) > 3 or name == "config.json" and len(keys) > 1:
                continue
            for what, value in VALUES.items():
                number += 1
                place = folder / "runs" / str(number)
                changed = json.loads(json.dumps(record))
                if keys:
                    put(changed, keys, value)
                content = {**records, name: changed if keys else value}
                label = f"{name} {'.'.join(map(str, keys))}: {what}"
                names = (name, Path(name).name, f"{Path(name).stem}.", *map(str, keys[-1:]))
                yield Case("runs", label, names, partial(_read_run, place, content))


def _read_run(place: Path, records: Mapping[str, Any]) -> None:
    """All that commands read of a finished run that has left these records."""
    for name, content in records.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(content) + "\n")
    runs.list_runs(place)
    run = Run.load(place)
    told = spec.from_config(run.config)
    _ = run.references, run.prompts, run.changes
    judge.read_verdict(run)
    best.read_best(run, 1)
    samples.read_samples(place / "round_1" / "scores.jsonl")
    samples.read_chosen(place / "round_1" / "selected.json")
    log.read_metrics(place, "round_1")
    report.write_report(run, told, command="x")


# -------------------------------------------------------------- files and flags


def _of_files(folder: Path) -> Iterator[Case]:
    place = folder / "files"
    place.mkdir()
    bad = _bad_files(place)
    readers: dict[str, Callable[[Path], Any]] = {
        "image": image_files.read_image,
        "mask": lambda path: image_files.read_mask(path, (8, 8)),
        "prompts": captions.read_prompts,
        "references": lambda path: captions.read_references(str(path), "a cat", "in ink"),
        "config": lambda path: config_files.load(str(path)),
        "settings": lambda path: config_files.read(
            "styledrop", {"reference.image": str(path), "reference.content": "a"}
        ),
        "JSON": files.read_json,
        "JSON lines": lambda path: files.JsonLines(expanded(path)),
        "adapter": adapters.load_adapter,
        "weights": lambda path: pretrained.Tensors([path], Rules(rules=())),
        "index": pretrained._shards,
        "run": Run.load,
        "runs": runs.list_runs,
        "tokenizer": load_tokenizer,
        "model": lambda path: hub.resolve(str(path)),
    }
    for reader, read in readers.items():
        for what, path in bad.items():
            names = (Path(path).name[-20:] or "x", "config", repr(str(path))[1:-1][-20:])
            yield Case("files", f"{reader}: {what}", names, partial(read, Path(path)))


def _bad_files(place: Path) -> dict[str, str]:
    """{what it is: its path}, each with every ending that a reader goes by."""
    paths = {
        "a device": "/dev/zero",
        "half a letter": "\udcff.png",
        "a zero byte": "a\0b.png",
        "5,000 letters": "x" * 5000 + ".png",
        "no such user": "~nosuchuser/a.png",
        "two lines": "two\nlines.png",
        "missing": str(place / "missing.png"),
        "a folder": str(place),
    }
    contents = {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(5000),
        "levels": b"[" * 200_000,
        "ten million letters": b"x" * 10**7,
        "a JSON line of ten million letters": json.dumps({"image": "x" * 10**7}).encode(),
        "not UTF-8": b"\xff\xfe\x00",
    }
    for ending in ("png", "jsonl", "csv", "txt", "json", "safetensors", "py"):
        for what, content in contents.items():
            path = place / f"{what.replace(' ', '_').replace(',', '')}.{ending}"
            path.write_bytes(content)
            paths[f"{what}, .{ending}"] = str(path)
    os.mkfifo(place / "pipe.png")
    paths["a pipe"] = str(place / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "socket.png"))
    paths["a socket"] = str(place / "socket.png")
    (place / "dead.png").symlink_to(place / "nowhere")
    paths["a dead link"] = str(place / "dead.png")
    Image.new("RGB", (8, 8)).save(place / "program.png", format="EPS")
    paths["an EPS"] = str(place / "program.png")
    return paths


def _of_flags(folder: Path) -> Iterator[Case]:
    """Each flag of each command with each word, beside what else the command has to have."""
    place = folder / "no such run"
    for name, command in COMMANDS.items():
        if name in ("completion", "configs", "pretrain"):
            continue  # they write
        parsed = command.parser()._actions
        actions = [action for action in parsed if action.option_strings]
        needed = list(_NEEDED.get(name, ()))
        known = {action.option_strings[-1] for action in actions}
        for action in parsed:
            if action.required and not set(action.option_strings[:1]) & set(needed):
                needed += [*action.option_strings[:1], str(place)]
        for action in actions:
            flag = action.option_strings[-1]
            if isinstance(action, argparse._HelpAction) or action.nargs == 0:
                continue
            for word in WORDS:
                argv = [*needed, "--prompt", "a cat"] if "--prompt" in known else needed
                names = (flag, flag.removeprefix("--"), "run", "word", "image", "file")
                label = f"{name} {flag} {word[:20]!r}"
                yield Case("flags", label, names, partial(command.run, [*argv, f"{flag}={word}"]))
    for override in ("config.seed", "config.round_1.train.steps", "config.nothing", "config"):
        for word in WORDS:
            argv = ["--config", "styledrop", f"--{override}={word}"]
            label = f"personalize --{override} {word[:20]!r}"
            call = partial(_settings_of, argv)
            yield Case("flags", label, (override, "--config"), call)


def _settings_of(argv: list[str]) -> None:
    data, _ = config_files.from_arguments(argv)
    spec.from_config(data)
