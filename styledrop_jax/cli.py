"""`styledrop <command>`: one thin function a command over the library."""

import argparse
import ast
import inspect
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from styledrop_jax import __version__
from styledrop_jax.errors import UserError, did_you_mean

_USAGE = """styledrop teaches a text-to-image model your style or your subject.

    styledrop COMMAND [flags]        styledrop COMMAND --help

commands:
"""
_START = """styledrop personalize learns from your images; say which, and where the run goes:

    styledrop personalize --config styledrop --workdir runs/mine \\
        --config.reference.image my.png --config.reference.content "a house" \\
        --config.reference.descriptor "in watercolor painting style"

To see it work first, on an image that comes with it:
    styledrop personalize --config styledrop --workdir runs/first

Configs: {configs}. `styledrop configs DIR` copies them out to be edited.
`styledrop personalize --config NAME --help` shows every field."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, with a close match for a mistyped flag."""

    def __init__(self, command: str, function: Callable, **kwargs: Any):
        super().__init__(
            prog=f"styledrop {command}",
            description=inspect.getdoc(function),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message[:200]}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        found, rest = self.parse_known_args(argv)
        if rest:
            flags = []
            for action in self._actions:
                flags += action.option_strings
            hint = did_you_mean(rest[0].split("=")[0], flags)
            raise UserError(f"{self.prog}: unknown argument {rest[0][:80]!r}{hint}")
        return found


# -------------------------------------------------------------- runs


def _personalize_parser() -> _Parser:
    parser = _Parser("personalize", personalize)
    parser.add_argument("--config", help="a config: NAME, NAME:PRESET, or a file of your own")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="the run folder: new, or one to continue"
    )
    parser.add_argument("--base", default="", help="where the base model is now, if it has moved")
    return parser


def personalize(argv: Sequence[str]) -> None:
    """Teach a style from images, in rounds of training, sampling, scoring and selecting.

        styledrop personalize --config styledrop --workdir runs/first
        styledrop personalize --config styledrop --config.reference.image my.png \\
            --config.reference.content "a house" \\
            --config.reference.descriptor "in watercolor painting style" --workdir runs/mine

    Leaves adapters, samples, scores and report.html in the run folder. The same command continues a
    run that was stopped. `--config styledrop:amused-256` takes another base model; `--config.FIELD
    VALUE` overrides a field. The fields, with the values that this command gives them:
    """
    from styledrop_jax import config_files, spec

    parser = _personalize_parser()
    if asked := {"-h", "--help"} & set(argv):
        _help_of_config(parser, [word for word in argv if word not in asked])
        return
    if not any(word.lstrip("-").split("=")[0] == "config" for word in argv):
        raise UserError(_START.format(configs=", ".join(config_files.names())))
    config, rest = config_files.from_arguments(argv)
    flags = parser.read(rest)
    from styledrop_jax.feedback.select import Paused
    from styledrop_jax.rounds import personalize as run

    value = spec.from_config(spec.absolute(config))
    command = "styledrop personalize " + shlex.join(argv)
    try:
        path = run(value, flags.workdir, command=command, base=flags.base)
    except Paused as waiting:
        print(waiting)
        return
    print(f"report: {path}")


def _help_of_config(parser: _Parser, argv: Sequence[str]) -> None:
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
        parser.epilog = "\n".join(f"  --config.{line}" for line in spec.describe(config))
    except UserError as error:
        parser.epilog = f"  (not shown: {error})"
    parser.print_help()


def _extend_parser() -> _Parser:
    parser = _Parser("extend", extend)
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

    --rounds adds rounds like the last one, on what was chosen before. --steps adds a round that
    goes on training the last adapter on the images that it trained on. --prompts alone samples
    other prompts with the last adapter. What was there stays, and manifest.json records what was
    added.
    """
    flags = _extend_parser().read(argv)
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


def _runs_parser() -> _Parser:
    parser = _Parser("runs", runs)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="where the runs are: runs/"
    )
    return parser


def runs(argv: Sequence[str]) -> None:
    """List the runs of a folder: their state, the mean scores of their last round, and sizes.

        styledrop runs
        styledrop runs experiments/

    Waiting and stopped runs say what they wait for, and where they stopped.
    """
    flags = _runs_parser().read(argv)
    from styledrop_jax.runs import list_runs, table

    print(table(list_runs(flags.folder)))


# -------------------------------------------------------------- use


def _sample_parser() -> _Parser:
    parser = _Parser("sample", sample)
    _add_prompts(parser, folder="drawn")
    _add_sampling(parser)
    _add_run(parser)
    return parser


def sample(argv: Sequence[str]) -> None:
    """Sample prompts in the style of a run.

        styledrop sample --run runs/mine --prompt "a cat" --prompt "a red car" --num 8 --seed 0

    Writes a PNG for each image, grid.png, and a line in images.jsonl with everything that
    reproduces it bit for bit. Image i of a prompt has seed SEED + i. The run's style descriptor is
    added to every prompt.
    """
    flags = _sample_parser().read(argv)
    prompts = _prompts(flags)
    common = _common(flags, "drawn")
    style = _style(flags)
    style.sample(prompts, **common)
    print(f"images: {common['out']}")


def _mix_parser() -> _Parser:
    parser = _Parser("mix", mix)
    _add_prompts(parser, folder="mixed")
    _add_sampling(parser)
    parser.add_argument(
        "--style", type=Path, required=True, dest="run", help="the run that knows the style"
    )
    parser.add_argument("--subject", type=Path, required=True, help="the run that knows the object")
    parser.add_argument(
        "--gamma", type=float, default=0.6, help="share of the subject, 0 to 1 (default 0.6)"
    )
    parser.add_argument(
        "--round", type=int, help="the round of both runs; default the best of each"
    )
    parser.add_argument(
        "--step", type=int, help="a step that the style's round kept; default the best of them"
    )
    parser.add_argument("--base", default="", help="where the base model is now, if it has moved")
    return parser


def mix(argv: Sequence[str]) -> None:
    """Sample my object in my style: the guided outputs of two runs on one base model, mixed.

        styledrop mix --style runs/watercolor --subject runs/my_dog --gamma 0.6 --prompt "a dog"

    The style's run sees the prompt with its descriptor, the subject's run the prompt alone
    (StyleDrop 2306.00983).
    """
    flags = _mix_parser().read(argv)
    if not 0 <= flags.gamma <= 1:
        raise UserError(f"--gamma: found {flags.gamma}, expected a number from 0 to 1")
    prompts = _prompts(flags)
    common = _common(flags, "mixed")
    from styledrop_jax.style import Style

    style = _style(flags)
    subject = Style.load(flags.subject, round=flags.round, pipeline=style.pipeline)
    style.mix(subject, prompts, gamma=flags.gamma, **common)
    print(f"images: {common['out']}")


def _edit_parser() -> _Parser:
    parser = _Parser("edit", edit)
    _add_prompts(parser, folder="edited")
    _add_sampling(parser)
    _add_run(parser)
    parser.add_argument("--image", type=Path, required=True, help="the image to change")
    parser.add_argument(
        "--mask", type=Path, help="an image of its size, white where to generate anew; default all"
    )
    parser.add_argument(
        "--strength",
        type=float,
        help="how much is generated anew, to 1: default all of a mask, else 0.7",
    )
    return parser


def edit(argv: Sequence[str]) -> None:
    """Generate the masked part of an image anew, or all of it in part, in the style of a run.

        styledrop edit --run runs/mine --image in.png --mask mask.png --prompt "a cat"
        styledrop edit --run runs/mine --image in.png --strength 0.5 --prompt "a cat"

    White in the mask is generated anew, all else keeps its pixels, and the image its size. The
    model works on a square around the mask, twice as wide as the mask is long and no smaller than
    what it generates, at its own resolution; what it makes is scaled back, so its detail is the
    model's. Along the mask's edge, inside, new is blended into old over 1 % of the image's shorter
    side, at most 8 pixels: paint a little more than the thing.

    Without a mask the whole image is the start, as in `styledrop stylize`, which is for folders and
    for images beside what they were.
    """
    flags = _edit_parser().read(argv)
    if flags.strength is not None:
        _check_strength(flags.strength)
    prompts = _prompts(flags)
    common = _common(flags, "edited")
    from styledrop_jax.io import image_files

    picture = image_files.read_image(flags.image)  # before the model, which takes seconds
    if flags.mask is not None:
        image_files.read_mask(flags.mask, picture.shape[:2])
    style = _style(flags)
    style.edit(flags.image, prompts, mask=flags.mask, strength=flags.strength, **common)
    print(f"images: {common['out']}")


def _stylize_parser() -> _Parser:
    parser = _Parser("stylize", stylize)
    _add_drawing(parser, folder="stylized", num=1)
    _add_sampling(parser)
    _add_run(parser)
    parser.add_argument("--image", type=Path, required=True, help="an image, or a folder of images")
    parser.add_argument(
        "--prompt", default="", help="what they show; default the words of each file's name"
    )
    parser.add_argument(
        "--strength",
        type=float,
        action="append",
        help="how much is generated anew, above 0 to 1; several may be given (default 0.5, 0.7)",
    )
    return parser


def stylize(argv: Sequence[str]) -> None:
    """Turn an image, or every image of a folder, into the style of a run.

        styledrop stylize --run runs/mine --image photo.jpg --prompt "a house" --strength 0.5
        styledrop stylize --run runs/mine --image photos/ --strength 0.5 --strength 0.8

    Say what an image shows, or let the name of its file say it (red_house-2.jpg is "red house").
    The strength is how much is generated anew: near 0 the image comes back, at 1 nothing of it is
    left; 0.5 to 0.8 is usual. Stable Diffusion starts from the noised image (SDEdit, 2108.01073),
    Muse masks that share of the image's own tokens.

    The result has the size of the image: it is scaled to what the model generates and back, so its
    detail is the model's. Stable Diffusion works at the image's aspect, sides rounded to what its
    autoencoder divides; Muse on the image squeezed into a square. Writes a PNG for each image,
    strength and seed; grid.png, a row for each image with it as it was before what it became; and a
    line each in images.jsonl with everything that reproduces it.
    """
    flags = _stylize_parser().read(argv)
    given = {"strength": flags.strength} if flags.strength else {}
    for strength in flags.strength or []:
        _check_strength(strength)
    common = _common(flags, "stylized")
    from styledrop_jax.io import captions, image_files

    image = flags.image.expanduser()
    if image.is_dir():
        captions.images_in(image)  # before the model, which takes seconds
    elif not image.exists():
        image_files.read_image(image)
    style = _style(flags)
    style.stylize(image, prompt=flags.prompt, **given, **common)
    print(f"images: {common['out']}")


def _export_parser() -> _Parser:
    parser = _Parser("export", export)
    _add_run(parser)
    parser.add_argument(
        "--format",
        default="diffusers",
        help="diffusers, peft, kohya, a1111, pipeline, single_file or styledrop",
    )
    parser.add_argument(
        "--out", type=Path, help="a folder (default: export/FORMAT in the run folder)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="of the numbers"
    )
    return parser


def export(argv: Sequence[str]) -> None:
    """Write what a run learnt for another tool.

        styledrop export --run runs/mine --format diffusers
        styledrop export --run runs/mine --format kohya --out loras/

    diffusers, peft, kohya and a1111 are files that those tools load beside the base model; pipeline
    and single_file are the whole model with everything merged in; styledrop is the run's own file.
    What a format cannot hold is said in one line, with the formats that can.
    """
    flags = _export_parser().read(argv)
    style = _style(flags)
    out = flags.out or flags.run / "export" / flags.format
    for path in style.export(out, format=flags.format, dtype=flags.dtype):
        print(path)


# -------------------------------------------------------------- the rest


def configs(argv: Sequence[str]) -> None:
    """Copy the configs that ship into a folder, to be edited.

        styledrop configs my_configs/
        styledrop personalize --config my_configs/styledrop.py --workdir runs/mine

    A copy is a file of your own: edit it, and pass its path. Files that are there stay.
    """
    flags = _configs_parser().read(argv)
    from styledrop_jax import config_files

    if flags.folder is None:
        print("\n".join(config_files.names()))
        return
    print(f"configs: {config_files.copy(flags.folder.expanduser())}")


def _configs_parser() -> _Parser:
    parser = _Parser("configs", configs)
    parser.add_argument("folder", nargs="?", type=Path, help="where to; without it their names")
    return parser


def _rare_tokens_parser() -> _Parser:
    parser = _Parser("rare-tokens", rare_tokens)
    parser.add_argument(
        "--base",
        default="emoji64/sd",
        help="the model: a name or a local folder (default emoji64/sd)",
    )
    parser.add_argument("--num", type=int, default=10, help="how many words (default 10)")
    parser.add_argument(
        "--tokens", type=int, default=1, choices=(1, 2, 3), help="tokens in a word (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other words (default 0)")
    return parser


def rare_tokens(argv: Sequence[str]) -> None:
    """Print rare words that can stand for your subject or style.

        styledrop rare-tokens --base emoji64/sd --num 5

    Chosen as DreamBooth does (2208.12242): short words that the model's tokenizer knows but has
    seldom seen. Take one as
    --config.words.identifier. The small vocabulary of emoji64 has real words among them: pass over
    those.
    """
    flags = _rare_tokens_parser().read(argv)
    if flags.num < 1:
        raise UserError(f"--num: found {flags.num}, expected at least 1")
    from styledrop_jax.io import hub
    from styledrop_jax.methods.identifiers import rare_words
    from styledrop_jax.models.tokenizer import load_tokenizer

    folder = hub.resolve(flags.base, [hub.PIPELINE_TOKENIZER], field="base")
    tokenizer = load_tokenizer(folder / "tokenizer")
    print("\n".join(rare_words(tokenizer, flags.num, seed=flags.seed, tokens=flags.tokens)))


def _pretrain_parser() -> _Parser:
    parser = _Parser("pretrain", pretrain)
    parser.add_argument("--config", help="required: pretrain_vq, _clip, _muse, _vae or _unet")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="the training folder: new, or one to continue"
    )
    return parser


def pretrain(argv: Sequence[str]) -> None:
    """Train one of the shipped base models from the corpus (launch/fetch_corpus.sh).

        styledrop pretrain --config pretrain_vq --workdir pretrain/vq
        styledrop pretrain --config pretrain_clip --workdir pretrain/clip
        styledrop pretrain --config pretrain_muse --workdir pretrain/muse

    Resumable by the same command. Leaves the model in WORKDIR/export and images of its progress in
    WORKDIR/pictures.
    """
    parser = _pretrain_parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return
    from styledrop_jax import config_files
    from styledrop_jax.emoji import settings
    from styledrop_jax.emoji.pretrain import pretrain as run

    config, rest = config_files.from_arguments(argv, settings.complete)
    flags = parser.read(rest)
    run(settings.from_config(config), flags.workdir)


def completion(argv: Sequence[str]) -> None:
    """Print a completion script for your shell.

        styledrop completion bash > ~/.local/share/bash-completion/completions/styledrop
        styledrop completion zsh  > ~/.zfunc/_styledrop

    Put it where your shell looks for completions, and start a new shell.
    """
    flags = _completion_parser().read(argv)
    import shtab

    whole = argparse.ArgumentParser(prog="styledrop", description=_USAGE)
    commands = whole.add_subparsers()
    for name, make in _PARSERS.items():
        parser = make()
        summary = str(parser.description).splitlines()[0]
        commands.add_parser(name, parents=[parser], add_help=False, help=summary)
    print(shtab.complete(whole, shell=flags.shell))


def _completion_parser() -> _Parser:
    parser = _Parser("completion", completion)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "personalize": personalize,
    "extend": extend,
    "runs": runs,
    "sample": sample,
    "mix": mix,
    "edit": edit,
    "stylize": stylize,
    "export": export,
    "configs": configs,
    "rare-tokens": rare_tokens,
    "pretrain": pretrain,
    "completion": completion,
}
_PARSERS: dict[str, Callable[[], _Parser]] = {
    "personalize": _personalize_parser,
    "extend": _extend_parser,
    "runs": _runs_parser,
    "sample": _sample_parser,
    "mix": _mix_parser,
    "edit": _edit_parser,
    "stylize": _stylize_parser,
    "export": _export_parser,
    "configs": _configs_parser,
    "rare-tokens": _rare_tokens_parser,
    "pretrain": _pretrain_parser,
    "completion": _completion_parser,
}


def main() -> None:
    """The entry point: exit code 2 and one line on standard error for what the user can mend."""
    name, *argv = sys.argv[1:] or ["--help"]
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # it tells every user that torch is missing
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        if name in ("-h", "--help"):
            _print_commands()
        elif name in ("-V", "--version"):
            print(f"styledrop {__version__}")
        elif name in COMMANDS:
            COMMANDS[name](argv)
        else:
            hint = did_you_mean(name, COMMANDS)
            raise UserError(f"styledrop: unknown command {name[:80]!r}{hint}; see styledrop --help")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_commands() -> None:
    lines = []
    for name, command in COMMANDS.items():
        summary = str(inspect.getdoc(command)).splitlines()[0]
        lines.append(f"    {name:12} {summary}")
    print(_USAGE + "\n".join(lines), flush=True)


# -------------------------------------------------------------- what commands share


def _add_prompts(parser: _Parser, *, folder: str) -> None:
    parser.add_argument(
        "--prompt", action="append", default=[], help="what to sample; may be given several times"
    )
    parser.add_argument("--prompt-file", type=Path, help="a text file of prompts, one a line")
    _add_drawing(parser, folder=folder, num=4)


def _add_drawing(parser: _Parser, *, folder: str, num: int) -> None:
    parser.add_argument(
        "--descriptor", help="the style's words, in place of the run's own; empty for none"
    )
    parser.add_argument("--num", type=int, default=num, help=f"images of each (default {num})")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image of each (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"where the images go (default: {folder}/ in the run folder)"
    )


def _add_run(parser: _Parser) -> None:
    parser.add_argument(
        "--run", type=Path, required=True, help="a run folder of `styledrop personalize`"
    )
    parser.add_argument(
        "--round",
        type=int,
        help="the round whose adapter is used; default the best by the verdict; 0: the base model",
    )
    parser.add_argument(
        "--step", type=int, help="a step of its training that it kept; default the best of them"
    )
    parser.add_argument("--base", default="", help="where the base model is now, if it has moved")


def _add_sampling(parser: _Parser) -> None:
    group = parser.add_argument_group("sampling (defaults: the run's own)")
    group.add_argument("--lambda-a", type=float, help="guidance towards the style")
    group.add_argument("--lambda-b", type=float, help="guidance towards the text")
    group.add_argument("--steps", type=int, help="decoding or denoising steps")
    group.add_argument("--temperature", type=float, help="choice temperature")
    group.add_argument("--negative-prompt", help="what to move away from")
    group.add_argument("--batch-size", type=int, help="images sampled at once")


_SAMPLING = ("lambda_a", "lambda_b", "steps", "temperature", "negative_prompt", "batch_size")


def _prompts(flags: argparse.Namespace) -> list[str]:
    """The user's prompts."""
    from styledrop_jax.io import captions

    prompts = list(flags.prompt)
    if flags.prompt_file:
        prompts += captions.read_prompts(flags.prompt_file)
    if not prompts:
        raise UserError("--prompt: missing; say what to sample, or give a --prompt-file")
    for prompt in prompts:
        if not prompt.strip():
            raise UserError('--prompt: empty; expected words like "a cat"')
    return prompts


def _common(flags: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What every command that samples hands to the library, checked under the names of the
    flags.
    """
    from styledrop_jax.pipelines.base import SampleSettings
    from styledrop_jax.settings import changed

    if flags.num < 1:
        raise UserError(f"--num: found {flags.num}, expected at least 1")
    if not 0 <= flags.seed <= 2**32 - flags.num:
        raise UserError(
            f"--seed: found {flags.seed}, expected a whole number from 0 to {2**32 - flags.num}"
        )
    sampling = {name: getattr(flags, name) for name in _SAMPLING}
    for name, value in sampling.items():
        try:
            changed(SampleSettings(), {name: value})
        except UserError as error:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}{str(error).removeprefix(name)}") from None
    out = flags.out or flags.run / folder
    shared = {"num": flags.num, "seed": flags.seed, "descriptor": flags.descriptor, "out": out}
    return {**shared, **sampling}


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise UserError(f"--strength: found {strength}, expected a number above 0 and at most 1")


def _style(flags: argparse.Namespace) -> Any:
    from styledrop_jax.style import Style

    return Style.load(flags.run, round=flags.round, step=flags.step, base=flags.base)
