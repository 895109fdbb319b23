"""`styledrop plan`: what it counts is what a run then does, and no device or weight is needed."""

import dataclasses
import shutil
from typing import Any

import jax.numpy as jnp
import pytest
import runs
import tiny
from flax import nnx

from styledrop_jax import config_files, tree
from styledrop_jax.adapters import full
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.pipelines.load import load, shapes
from styledrop_jax.planning import compiler, devices, programs, run
from styledrop_jax.planning.compiler import Cost
from styledrop_jax.stages.begin import trainables
from styledrop_jax.stages.read import read
from styledrop_jax.training import mesh
from styledrop_jax.training.mesh import MeshSettings

CPU = devices.find("cpu")
SQUARE = (tiny.RESOLUTION, tiny.RESOLUTION)


def _spec(**changes):
    spec = config_files.read(str(tiny.finished()))
    return dataclasses.replace(spec, **changes)


def _plan(**changes):
    spec = _spec(**changes)
    return run.planned(spec, read(spec))


def _words(workdir, *more):
    """The arguments of `personalize` as those of `plan`."""
    line = tiny.arguments(workdir, *more)
    place = line.index("--workdir")
    return ["plan", *line[1:place], *line[place + 2 :]]


def test_what_is_counted_is_what_a_run_did():
    counted = run.counts(_plan())
    rounds = read_json(tiny.finished() / "manifest.json")["rounds"]
    assert counted.trained == [rounds[name]["trainable"] for name in ("round_1", "round_2")]
    assert counted.frozen == [rounds[name]["frozen"] for name in ("round_1", "round_2")]
    made = [0]
    for stage in ("base", "round_1", "round_2"):
        made.append(len(list((tiny.finished() / stage / "samples").glob("*.png"))))
    assert counted.images == made


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"])
def test_shapes_are_those_of_the_model(base, tmp_path):
    folder = tiny.models() / "muse" if base == "muse" else tiny.stable_diffusion()
    copy = shutil.copytree(folder, tmp_path / "base")
    for path in copy.rglob("*.safetensors"):
        path.unlink()  # config files are enough
    loaded = load(str(folder), jnp.dtype("bfloat16"))
    found = shapes(str(copy), jnp.dtype("bfloat16"), weights=jnp.dtype("bfloat16"))
    for name in ("denoiser", "autoencoder", "text"):
        expected = tree.flatten(nnx.state(getattr(loaded, name)))
        given = tree.flatten(nnx.state(getattr(found, name)))
        assert given.keys() == expected.keys()
        for path, array in expected.items():
            assert (given[path].shape, given[path].dtype) == (array.shape, array.dtype), path


@pytest.mark.parametrize("base", ["muse", "stable_diffusion"])
def test_arguments_are_counted_exactly_and_compile(base):
    folder = tiny.models() / "muse" if base == "muse" else tiny.stable_diffusion()
    spec = _spec(base=str(folder))
    pipeline = shapes(spec.base, jnp.dtype("float32"), weights=jnp.dtype("float32"))
    (what, *_) = trainables(spec, read(spec).program)
    train = dataclasses.replace(spec.round(1).train, batch_size=2)
    images = [programs.Images([SQUARE] * 3)]
    step = programs.training(pipeline, what, images, train, steps=2, devices=CPU.mesh)
    known = compiler.estimated(step, CPU)
    whole = compiler.compiled(step, CPU)
    assert whole.arguments <= known.arguments <= 1.1 * whole.arguments  # some are not read
    assert whole.temporaries and whole.flops == known.flops > 1e6
    sampler = programs.sampling(pipeline, what, spec.round(1).sample, CPU.mesh)
    assert set(sampler) == {"sampling", "decoding"}
    assert all(compiler.estimated(program, CPU).flops > 1e5 for program in sampler.values())


def test_another_autoencoder_is_counted_in_place_of_its_own(tmp_path):
    base = str(tiny.stable_diffusion())
    folder = shutil.copytree(f"{base}/vae", tmp_path / "vae")
    wider = read_json(folder / "config.json") | {"block_out_channels": [8, 16]}
    write_json(folder / "config.json", wider)
    names = ("", str(folder), "nobody/knows", "a.safetensors")
    plans = [_plan(base=base, vae=vae) for vae in names]
    own, other, *as_own = (run._sizes(plan.pipeline, CPU)["autoencoder"] for plan in plans)
    assert own < other and as_own == [own, own]
    with pytest.raises(UserError, match=r"^config\.vae: found 'a.safetensors', expected it empty"):
        _plan(vae="a.safetensors")


def test_long_prompts_are_counted_in_chunks():
    spec: Any = _spec(base=str(tiny.stable_diffusion()))
    long = dataclasses.replace(spec.reference, descriptor="in watercolor painting style " * 20)

    def sizes(**changes):
        """Of what a step of training and of the sampler take."""
        plan = _plan(base=spec.base, reference=long, **changes)
        counted = run.counts(plan)
        parts = run.parts(plan, counted, CPU, lambda _, x: Cost(compiler.bytes_of(x.arguments), 0))
        return [part.cost.arguments for part in parts]

    (trained, sampled, decoded), (longer, longest, same) = sizes(), sizes(long_prompts=True)
    assert trained < longer and sampled < longest and decoded == same


def test_a_batch_in_parts_is_as_much_work():
    work = []
    for accumulate in (1, 2):
        stages = []
        for number in (1, 2):
            stage = _spec().round(number)
            train = dataclasses.replace(stage.train, accumulate=accumulate)
            stages.append(dataclasses.replace(stage, train=train))
        plan = _plan(round_settings=tuple(stages))
        parts = run.parts(plan, run.counts(plan), CPU, lambda _, x: compiler.estimated(x, CPU))
        part = next(iter(parts))
        assert ("in 2 parts" in part.name) == (accumulate == 2)
        work.append(part.times * part.cost.flops)
    assert work[1] == pytest.approx(work[0], rel=0.1)


def test_images_of_several_sizes_are_one_program():
    spec = _spec(base=str(tiny.stable_diffusion()))
    pipeline = shapes(spec.base, jnp.dtype("float32"), weights=jnp.dtype("float32"))
    (what, *_) = trainables(spec, read(spec).program)
    costs = []
    for sizes in ([SQUARE, SQUARE], [SQUARE, (12, 20)]):
        images = [programs.Images(sizes)]
        train = spec.round(1).train
        step = programs.training(pipeline, what, images, train, steps=2, devices=CPU.mesh)
        costs.append(compiler.estimated(step, CPU))
    squares, mixed = costs
    assert 0.95 * squares.arguments < mixed.arguments < squares.arguments, "fewer pixels"
    assert mixed.flops == pytest.approx(squares.flops, rel=0.2), "a step has one size"


def _on(name, what, **share):
    """What a step of 8 images takes on a device whose chips share the work."""
    spec = _spec()
    pipeline = shapes(spec.base, jnp.dtype("float32"), weights=jnp.dtype("float32"))
    train = dataclasses.replace(spec.round(1).train, batch_size=8)
    device = devices.find(name, MeshSettings(**share))
    images = [programs.Images([SQUARE])]
    step = programs.training(pipeline, what, images, train, steps=1, devices=device.mesh)
    return compiler.estimated(step, device)


def test_chips_share_a_batch():
    (what, *_) = trainables(_spec(), read(_spec()).program)
    one = _on("v5e", what)
    eight = _on("v5e:2x4", what)
    assert eight.flops == pytest.approx(one.flops / 8, rel=1e-3)
    assert one.arguments - eight.arguments == 4 * (8 - 1), "each has its own row alone"


def test_chips_share_the_weights(monkeypatch):
    monkeypatch.setattr(mesh, "_SMALL", 64)  # so that the tiny weights are cut
    what = Trainable(denoiser=full.Config())
    one = _on("v5e", what)
    four = _on("v5e:2x2", what, fsdp=4)
    assert one.arguments < 4 * four.arguments < 1.3 * one.arguments
    two = _on("v5e:2x2", what, data=2, fsdp=2)
    assert four.arguments < two.arguments < one.arguments


def test_chips_that_do_not_share_evenly(capfd, tmp_path):
    slice_of_four = ("--device", "v5e:2x2")
    error = runs.refused(capfd, *_words(tmp_path / "run", "--config.mesh.fsdp", 3), *slice_of_four)
    assert "config.mesh.fsdp: found 3, expected a divisor of 4" in error
    more = runs.flags(round_1__train__batch_size=6)
    error = runs.refused(capfd, *_words(tmp_path / "run", *more), *slice_of_four)
    assert "train.batch_size: found 6, expected a multiple of 4" in error


def test_the_command_counts_where_there_is_no_compiler(tmp_path, capfd, monkeypatch):
    def lacking(device):
        raise UserError(f'--device {device.name}: no compiler; pip install ".[compilers]"')

    monkeypatch.setattr("styledrop_jax.planning.words.chips", lacking)
    assert tiny.styledrop(*_words(tmp_path / "run"), "--device", "v5e") == 0
    out = capfd.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "training, round 2, batch" in out and "parameters train" in out
    assert "temporaries and traffic are not known" in out
    assert "GB that JAX has on v5e" in out and 'pip install ".[compilers]"' in out
    assert "disk: about" in out and "at least 0 s on v5e" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h10", "did you mean 'h100'?"),
        ("v5e:2", "expected a shape such as v5e:1x1"),
        ("v5p:2x2", "expected a shape such as v5p:1x1x1"),
    ],
)
def test_devices_that_are_not(capfd, tmp_path, name, words):
    error = runs.refused(capfd, *_words(tmp_path / "run"), "--device", name)
    assert f"--device: found {name!r}" in error and words in error


def test_a_base_that_is_nowhere(capfd, tmp_path):
    more = runs.flags(base="someone/something")
    error = runs.refused(capfd, *_words(tmp_path / "run", *more))
    assert "config.base" in error and "amused/amused-512" in error


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("amused-256", 603_537_664)],
)
def test_presets_are_known_without_their_weights(preset, parameters):
    spec = config_files.read(f"lora:{preset}")
    counted = run.counts(run.planned(spec, read(spec)))
    assert counted.frozen == [parameters] and counted.steps == [1000]


# -------------------------------------------------------------- what does not fit


def _part(temporaries):
    return run.Part("training", Cost(10**9, 1e12, temporaries), 0, 1)


def _advice(plan, memory, measure):
    device = CPU._replace(memory=memory)
    return run.advice(plan, run.counts(plan), _part(9 * 10**9), device, measure)


def test_advice_is_compiled_and_bounded():
    plan = _plan()
    asked = []

    def measure(words, program):
        asked.append(words)
        return Cost(10**9, 1e12, 3 * 10**9 if "remat" in words else 9 * 10**9)

    (*failed, last) = _advice(plan, 5.0, measure)
    assert "train.remat true would fit: 4.0 GB" in last
    assert all("would not fit either: 10.0 GB" in line for line in failed)
    asked.clear()
    assert len(list(_advice(plan, 0.5, measure))) == len(asked) <= 4
    assert len(set(asked)) == len(asked)


def test_the_bound_is_the_slower_of_operations_and_traffic():
    device = devices.find("v5e")
    assert Cost(0, 197e12).bound(device) == 1.0
    assert Cost(0, 197e12, 0, 2 * 0.819e12).bound(device) == 2.0
    assert Cost(0, 1.0).bound(CPU) is None


def test_one_line_says_what_a_run_takes():
    plan = _plan()
    line = run.brief(plan)
    steps = sum(run.counts(plan).steps)
    assert line.startswith(f"this run: {steps} training steps of ")
    assert "GB of memory for weights and optimiser alone" in line and "MB of disk" in line
