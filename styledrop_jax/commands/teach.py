"""What makes a run, says what it would take, goes on with one, and lists them."""

import argparse
import ast
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from styledrop_jax.commands.parser import Parser
from styledrop_jax.errors import Explanation, UserError

_START = """styledrop personalize learns from your images; say which, and where the run goes:

    styledrop personalize --config styledrop --workdir runs/mine \\
        --config.reference.image my.png --config.reference.content "a house" \\
        --config.reference.descriptor "in watercolor painting style"

To see it work first, on an image that comes with it:
    styledrop personalize --config styledrop --workdir runs/first

Configs: {configs}. `styledrop configs DIR` copies them out to be edited.
`styledrop personalize --config NAME --help` shows every field."""


def personalize_parser() -> Parser:
    parser = Parser("personalize", personalize)
    parser.add_argument("--config", help="a config: NAME, NAME:PRESET, or a file of your own")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="the run folder: new, or one to continue"
    )
    parser.add_argument("--base", default="", help="where the base model is now, if it has moved")
    parser.add_argument(
        "--styles",
        type=Path,
        help='many styles: a file with a line {"name", "image", "content", "descriptor"} for each, '
        "whose run folder is NAME in --workdir",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=0,
        help="how many of the styles train at a time; by default one on each CPU device, of which "
        "JAX_NUM_CPU_DEVICES=2 makes two, and eight on each accelerator",
    )
    return parser


def personalize(argv: Sequence[str]) -> None:
    """Teach a style from images, in rounds of training, sampling, scoring and selecting.

        styledrop personalize --config styledrop --workdir runs/first
        styledrop personalize --config styledrop --config.reference.image my.png \\
            --config.reference.content "a house" \\
            --config.reference.descriptor "in watercolor painting style" --workdir runs/mine
        styledrop personalize --config styledrop --styles styles.jsonl --workdir runs/many

    Leaves adapters, samples, scores and report.html in the run folder. The same command continues a
    run that was stopped. `--config styledrop:amused-256` takes another base model; `--config.FIELD
    VALUE` overrides a field. The fields, with the values that this command gives them:
    """
    from styledrop_jax import config_files, spec

    parser = personalize_parser()
    if asked := {"-h", "--help"} & set(argv):
        _help_of_config(parser, [word for word in argv if word not in asked])
        return
    if not any(word.lstrip("-").split("=")[0] == "config" for word in argv):
        raise Explanation(_START.format(configs=", ".join(config_files.names())))
    config, rest = config_files.from_arguments(argv)
    flags = parser.read(rest)
    from styledrop_jax.feedback.select import Paused
    from styledrop_jax.rounds import personalize as run

    if flags.at_once < 0 or (flags.at_once and not flags.styles):
        raise UserError(f"--at-once: found {flags.at_once}, expected at least 1, beside --styles")
    if flags.styles:
        _many(config, flags)
        return
    value = spec.from_config(spec.absolute(config))
    command = "styledrop personalize " + shlex.join(argv)
    try:
        path = run(value, flags.workdir, command=command, base=flags.base)
    except Paused as waiting:
        print(waiting)
        return
    print(f"report: {path}")


def _many(config: dict[str, Any], flags: argparse.Namespace) -> None:
    """The runs of many styles."""
    from styledrop_jax import styles

    if flags.base:
        raise UserError("--base: found beside --styles, expected --config.base")
    listed = styles.read_styles(flags.styles, config)
    for path in styles.personalize(listed, flags.workdir, at_once=flags.at_once):
        print(f"report: {path}")


def _help_of_config(parser: Parser, argv: Sequence[str]) -> None:
    """The help of the command, with what the config says of itself and all of its fields."""
    from styledrop_jax import config_files, spec

    named = [word for word in argv if word.lstrip("-").split("=")[0] == "config"]
    words = argv if named else ["--config", "styledrop", *argv]
    try:
        config, _ = config_files.from_arguments(words)
        name = parser.parse_known_args(["--workdir", "", *words])[0].config
        file, _ = config_files.find(name)
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        if about:  # in place of the examples, before what holds of every config
            parser.description = "\n\n".join([about, str(parser.description).rpartition("\n\n")[2]])
        lines = []
        for heading, fields in spec.describe(config).items():
            lines += [f"{heading}:", *(f"  --config.{field}" for field in fields), ""]
        parser.epilog = "\n".join(lines)
    except UserError as error:
        parser.epilog = f"  (not shown: {error})"
    parser.print_help()


def plan_parser() -> Parser:
    parser = Parser("plan", plan)
    parser.add_argument("--config", help="a config: NAME, NAME:PRESET, or a file of your own")
    parser.add_argument(
        "--device",
        default="cpu",
        help="what it is to run on: h100, v5e, v6e, v5p, a slice such as v5e:2x4, or cpu (default)",
    )
    return parser


def plan(argv: Sequence[str]) -> None:
    """Say what a run would take, before anything starts: parameters, memory, time, disk.

        styledrop plan --config styledrop:sd15 --device h100
        styledrop plan --config lora:amused-512 --config.round_1.train.batch_size 16 --device v5e

    No device and no weights are needed: the programs are built from shapes, and compiled by the
    device's own compiler where the extra `compilers` is installed, which takes minutes for a large
    model. Without it operations and arguments are counted, and temporaries are not known. Of the
    base model its config files are enough; those of the presets are known by name.
    """
    parser = plan_parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return
    # Nothing runs on what it is planned for.
    os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    from styledrop_jax import config_files, spec

    config, rest = config_files.from_arguments(argv)
    flags = parser.read(rest)
    from styledrop_jax.planning import devices, run, words
    from styledrop_jax.stages.read import read

    value = spec.from_config(spec.absolute(config))
    device = devices.find(flags.device, value.mesh)
    for line in words.lines(run.planned(value, read(value)), device):
        print(line, flush=True)


def extend_parser() -> Parser:
    parser = Parser("extend", extend)
    parser.add_argument("--run", type=Path, required=True, help="a finished run folder")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of feedback to add")
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps to add, on the same images"
    )
    parser.add_argument(
        "--prompts", type=Path, help="a text file of other prompts to sample, one a line"
    )
    parser.add_argument("--base", default="", help="where the base model is now, if it has moved")
    return parser


def extend(argv: Sequence[str]) -> None:
    """Go on with a finished run: more rounds, more steps, other prompts.

        styledrop extend --run runs/mine --rounds 1
        styledrop extend --run runs/mine --steps 200
        styledrop extend --run runs/mine --prompts other.txt

    --rounds adds the rounds that the run has settings for and left out, then rounds like the last
    one, on what was chosen before. --steps adds a round that goes on training the last adapter on
    the images that it trained on. --prompts alone samples
    other prompts with the last adapter. What was there stays, and manifest.json records what was
    added.
    """
    flags = extend_parser().read(argv)
    for name in ("rounds", "steps"):
        if getattr(flags, name) < 0:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least 1")
    from styledrop_jax.feedback.select import Paused
    from styledrop_jax.rounds import extend as run

    try:
        path = run(
            flags.run,
            rounds=flags.rounds,
            steps=flags.steps,
            prompts=str(flags.prompts.absolute()) if flags.prompts else "",
            base=flags.base,
            command="styledrop extend " + shlex.join(argv),
        )
    except Paused as waiting:
        print(waiting)
        return
    print(f"report: {path}")


def runs_parser() -> Parser:
    parser = Parser("runs", runs)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="where the runs are: runs/"
    )
    return parser


def runs(argv: Sequence[str]) -> None:
    """List the runs of a folder: their state, the mean scores of the round taken, and sizes.

        styledrop runs
        styledrop runs experiments/

    Waiting and stopped runs say what they wait for, and where they stopped.
    """
    flags = runs_parser().read(argv)
    from styledrop_jax.runs import list_runs, table

    print(table(list_runs(flags.folder)))
