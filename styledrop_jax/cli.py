"""`styledrop <command>`: one thin function a command."""

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
from typing import NoReturn

from styledrop_jax.errors import UserError, did_you_mean

_USAGE = """styledrop teaches a text-to-image model your style or your subject.

    styledrop COMMAND [flags]        styledrop COMMAND --help

commands:
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, with a close match for a mistyped flag."""

    def __init__(self, **kwargs):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        found, rest = self.parse_known_args(argv)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(
                f"{self.prog}: unknown argument {rest[0]!r}{did_you_mean(rest[0].split('=')[0], flags)}"
            )
        return found


def personalize(argv: Sequence[str]) -> None:
    """Teach a style from images, in rounds of training, drawing, scoring and selecting.

    styledrop personalize --config configs/styledrop.py --workdir runs/first
    styledrop personalize --config configs/styledrop.py --config.reference.image my.png \\
        --config.reference.content "a house" --config.reference.descriptor "in watercolor painting style" \\
        --workdir runs/mine

    Leaves adapters, drawings, scores and report.html in the run folder. The same command continues a run that was
    stopped. `--config configs/styledrop.py:amused-256` takes another base model; `--config.FIELD VALUE` overrides
    a field. The fields, with the values that this command gives them:
    """
    from styledrop_jax import config as schema

    parser = _parser("personalize", personalize)
    parser.add_argument(
        "--config", default="configs/styledrop.py", help="config file, FILE or FILE:PRESET"
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="the run folder: new, or one to continue"
    )
    if asked := {"-h", "--help"} & set(argv):
        try:
            words = [word for word in argv if word not in asked]
            config, _ = schema.parse(words, default="configs/styledrop.py")
            file = parser.parse_known_args(["--workdir", "", *words])[0].config.partition(":")[0]
            about = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
            if about:  # in place of the examples, before what holds of every config
                parser.description = "\n\n".join([about, parser.description.rpartition("\n\n")[2]])
            parser.epilog = "\n".join(
                f"  --config.{line}"
                for line in schema.describe(config, schema.personalize_schema(config))
            )
        except UserError as error:  # run from a folder without the config files
            parser.epilog = f"  (not shown: {error})"
        parser.print_help()
        return
    config, rest = schema.parse(argv, default="configs/styledrop.py")
    flags = parser.read(rest)
    from styledrop_jax.personalize import Paused
    from styledrop_jax.personalize import personalize as run

    try:
        path = run(config, flags.workdir, command="styledrop personalize " + shlex.join(argv))
    except Paused as waiting:
        print(waiting)
        return
    print(f"report: {path}")


def sample(argv: Sequence[str]) -> None:
    """Draw prompts in the style of a run.

    styledrop sample --run runs/mine --prompt "a cat" --prompt "a red car" --num 8 --seed 0

    Writes a PNG for each image, grid.png, and a line in images.jsonl with everything that reproduces it bit for bit.
    Image i of a prompt has seed SEED + i. The run's style descriptor is added to every prompt.
    """
    parser = _parser("sample", sample)
    _add_prompts(parser, folder="drawn")
    _add_sampling(parser)
    _add_run(parser)
    flags = parser.read(argv)
    from styledrop_jax import style

    print(f"images: {style.sample(flags)}")


def mix(argv: Sequence[str]) -> None:
    """Draw my object in my style: the guided logits of two runs on one base model, mixed.

    styledrop mix --style runs/watercolor --subject runs/my_dog --gamma 0.6 --prompt "a dog on a beach"

    The style's run sees the prompt with its descriptor, the subject's run the prompt alone (StyleDrop 2306.00983).
    """
    parser = _parser("mix", mix)
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
        "--round", type=int, help="the round of both runs; default the last of each"
    )
    flags = parser.read(argv)
    from styledrop_jax import style

    print(f"images: {style.mix(flags)}")


def edit(argv: Sequence[str]) -> None:
    """Redraw the masked part of an image, or all of it in part, in the style of a run.

    styledrop edit --run runs/mine --image in.png --mask mask.png --prompt "a cat"
    styledrop edit --run runs/mine --image in.png --strength 0.5 --prompt "a cat"

    White in the mask is drawn anew, all else keeps its pixels. Without a mask the whole image is the start, as in
    `styledrop stylize`, which is for folders and for pictures beside what they were. Stable Diffusion keeps the image's
    aspect, Muse draws its middle square; the image is resized to what the model draws.
    """
    parser = _parser("edit", edit)
    _add_prompts(parser, folder="edited")
    _add_sampling(parser)
    _add_run(parser)
    parser.add_argument("--image", type=Path, required=True, help="the image to change")
    parser.add_argument(
        "--mask",
        type=Path,
        help="an image of its size, white where to draw anew; default all of it",
    )
    parser.add_argument(
        "--strength",
        type=float,
        help="how much is drawn anew, to 1: default all of a mask, else 0.5",
    )
    flags = parser.read(argv)
    from styledrop_jax import style

    print(f"images: {style.edit(flags)}")


def stylize(argv: Sequence[str]) -> None:
    """Turn a picture, or every picture of a folder, into the style of a run.

    styledrop stylize --run runs/mine --image photo.jpg --prompt "a house" --strength 0.5
    styledrop stylize --run runs/mine --image photos/ --strength 0.3 --strength 0.5 --strength 0.7

    Say what a picture shows, or let the name of its file say it (red_house-2.jpg is "red house"). The strength is how
    much is drawn anew: near 0 the picture comes back, at 1 nothing of it is left; 0.3 to 0.7 is usual. Stable Diffusion
    starts from the noised picture (SDEdit, 2108.01073), Muse masks that share of the picture's own tokens.

    Stable Diffusion keeps the aspect of a picture, sides rounded to what its codec divides; Muse draws its middle
    square. Writes a PNG for each picture, strength and seed; grid.png, a row for each picture with it as it was before
    what it became; and a line each in images.jsonl with everything that reproduces it.
    """
    parser = _parser("stylize", stylize)
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
        help="how much is drawn anew, above 0 to 1 (default 0.5); may be given several times",
    )
    flags = parser.read(argv)
    from styledrop_jax import style

    print(f"images: {style.stylize(flags)}")


def pretrain(argv: Sequence[str]) -> None:
    """Train one of the shipped base models from the corpus (launch/fetch_corpus.sh).

    styledrop pretrain --config configs/pretrain_vq.py --workdir pretrain/vq
    styledrop pretrain --config configs/pretrain_clip.py --workdir pretrain/clip
    styledrop pretrain --config configs/pretrain_muse.py --workdir pretrain/muse

    Resumable by the same command. Leaves the model in WORKDIR/export and pictures of its progress in WORKDIR/pictures.
    """
    parser = _parser("pretrain", pretrain)
    parser.add_argument("--config", help="required: configs/pretrain_{vq,clip,muse,vae,unet}.py")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="the training folder: new, or one to continue"
    )
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return
    from styledrop_jax import config as schema

    found, rest = schema.parse(argv, schema=schema.pretrain_schema)
    flags = parser.read(rest)
    from styledrop_jax.emoji.pretrain import pretrain as run

    run(found, flags.workdir)


def rare_tokens(argv: Sequence[str]) -> None:
    """Print rare words that can stand for your subject or style.

    styledrop rare-tokens --base emoji64 --num 5

    Drawn as DreamBooth does (2208.12242): short words that the model's tokenizer knows but has seldom seen. Take one as
    --config.words.identifier. The small vocabulary of emoji64 has real words among them: pass over those.
    """
    parser = _parser("rare-tokens", rare_tokens)
    parser.add_argument(
        "--base", default="emoji64", help="the model: a name or a local folder (default emoji64)"
    )
    parser.add_argument("--num", type=int, default=10, help="how many words (default 10)")
    parser.add_argument(
        "--tokens", type=int, default=1, choices=(1, 2, 3), help="tokens in a word (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other words (default 0)")
    flags = parser.read(argv)
    if flags.num < 1:
        raise UserError(f"--num: found {flags.num}, expected at least 1")
    from styledrop_jax.io import hub
    from styledrop_jax.methods.identifiers import rare_words
    from styledrop_jax.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        hub.resolve(flags.base, [hub.PIPELINE_TOKENIZER], field="base") / "tokenizer"
    )
    print("\n".join(rare_words(tokenizer, flags.num, seed=flags.seed, tokens=flags.tokens)))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__.replace("_", "-"): command
    for command in (personalize, sample, mix, edit, stylize, rare_tokens, pretrain)
}


def main() -> None:
    """The entry point: exit code 2 and one line on standard error for what the user can mend."""
    name, *argv = sys.argv[1:] or ["--help"]
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # it tells every user that torch is missing
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        if name in ("-h", "--help"):
            lines = (
                f"    {name:12} {inspect.getdoc(command).splitlines()[0]}"
                for name, command in COMMANDS.items()
            )
            print(_USAGE + "\n".join(lines), flush=True)
            return
        if name not in COMMANDS:
            raise UserError(
                f"styledrop: unknown command {name!r}{did_you_mean(name, COMMANDS)}; see styledrop --help"
            )
        COMMANDS[name](argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(name: str, command: Callable, epilog: str = "") -> _Parser:
    return _Parser(prog=f"styledrop {name}", description=inspect.getdoc(command), epilog=epilog)


def _add_prompts(parser: _Parser, *, folder: str) -> None:
    parser.add_argument(
        "--prompt", action="append", default=[], help="what to draw; may be given several times"
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
        help="the round whose adapter draws; default the last; 0: the base model",
    )


def _add_sampling(parser: _Parser) -> None:
    group = parser.add_argument_group("sampling (defaults: the run's own)")
    group.add_argument("--lambda-a", type=float, help="guidance towards the style")
    group.add_argument("--lambda-b", type=float, help="guidance towards the text")
    group.add_argument("--steps", type=int, help="decoding steps")
    group.add_argument("--temperature", type=float, help="choice temperature")
    group.add_argument("--negative-prompt", help="what not to draw")
    group.add_argument("--batch-size", type=int, help="images drawn at once")
