"""What uses a finished run: sample, mix, edit, stylize, export, and the flags that they share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from styledrop_jax import hosts
from styledrop_jax.commands.parser import Parser
from styledrop_jax.errors import UserError, check_words, few, shown

_SAMPLING = (
    *("lambda_a", "lambda_b", "steps", "sampler"),
    *("temperature", "negative_prompt", "batch_size"),
)


def sample_parser() -> Parser:
    parser = Parser("sample", sample)
    _add_prompts(parser, folder="drawn")
    _add_sampling(parser)
    add_run(parser)
    return parser


def sample(argv: Sequence[str]) -> None:
    """Sample prompts in the style of a run.

        styledrop sample --run runs/mine --prompt "a cat" --prompt "a red car" --num 8 --seed 0

    Writes a PNG for each image, grid.png, and a line in images.jsonl with everything that
    reproduces it bit for bit. Image i of a prompt has seed SEED + i. The run's style descriptor is
    added to every prompt.
    """
    flags = sample_parser().read(argv)
    prompts = _prompts(flags)
    common = _common(flags, "drawn")
    style = loaded(flags)
    _tell(style.sample(prompts, **common), prompts, common["out"])


def mix_parser() -> Parser:
    parser = Parser("mix", mix)
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
    flags = mix_parser().read(argv)
    if not 0 <= flags.gamma <= 1:
        raise UserError(f"--gamma: found {flags.gamma}, expected a number from 0 to 1")
    prompts = _prompts(flags)
    common = _common(flags, "mixed")
    from styledrop_jax.style import Style

    style = loaded(flags)
    subject = Style.load(
        flags.subject, round=flags.round, pipeline=style.pipeline, **_reading(flags)
    )
    made = style.mix(subject, prompts, gamma=flags.gamma, **common)
    _tell(made, prompts, common["out"])


def edit_parser() -> Parser:
    parser = Parser("edit", edit)
    _add_prompts(parser, folder="edited")
    _add_sampling(parser)
    add_run(parser)
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
    flags = edit_parser().read(argv)
    if flags.strength is not None:
        _check_strength(flags.strength)
    prompts = _prompts(flags)
    common = _common(flags, "edited")
    from styledrop_jax.io import image_files

    picture = image_files.read_image(flags.image)  # before the model, which takes seconds
    if flags.mask is not None:
        image_files.read_mask(flags.mask, picture.shape[:2])
    style = loaded(flags)
    how = {"mask": flags.mask, "strength": flags.strength, **common}
    _tell(style.edit(flags.image, prompts, **how), prompts, common["out"])


def stylize_parser() -> Parser:
    parser = Parser("stylize", stylize)
    _add_drawing(parser, folder="stylized", num=1)
    _add_sampling(parser)
    add_run(parser)
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
    flags = stylize_parser().read(argv)
    given = {"strength": flags.strength} if flags.strength else {}
    for strength in flags.strength or []:
        _check_strength(strength)
    common = _common(flags, "stylized")
    from styledrop_jax.io import captions, image_files, paths

    image = paths.expanded(flags.image)
    if image.is_dir():
        names = [path.name for path in captions.images_in(image)]  # before the model loads
    else:
        names = [image.name]
        if not image.exists():
            image_files.read_image(image)
    style = loaded(flags)
    _tell(style.stylize(image, prompt=flags.prompt, **given, **common), names, common["out"])


def export_parser() -> Parser:
    parser = Parser("export", export)
    add_run(parser)
    parser.add_argument(
        "--format",
        default="diffusers",
        help="diffusers (default), peft, kohya, a1111, pipeline, single_file or styledrop",
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
    flags = export_parser().read(argv)
    style = loaded(flags)
    out = flags.out or flags.run / "export" / flags.format
    for path in style.export(out, format=flags.format, dtype=flags.dtype):
        print(path)


# -------------------------------------------------------------- what they share


def _add_prompts(parser: Parser, *, folder: str) -> None:
    parser.add_argument(
        "--prompt", action="append", default=[], help="what to sample; may be given several times"
    )
    parser.add_argument("--prompt-file", type=Path, help="a text file of prompts, one a line")
    _add_drawing(parser, folder=folder, num=4)


def _add_drawing(parser: Parser, *, folder: str, num: int) -> None:
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


def add_run(parser: Parser) -> None:
    """The flags that `loaded` reads."""
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


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling (defaults: the run's own)")
    group.add_argument("--lambda-a", type=float, help="guidance towards the style")
    group.add_argument("--lambda-b", type=float, help="guidance towards the text")
    group.add_argument("--steps", type=int, help="decoding or denoising steps")
    group.add_argument(
        "--sampler",
        help="how noise is removed (diffusion): ddim, ddpm, dpm_solver, dpm_solver_karras, euler, "
        "euler_ancestral, heun, deis, unipc or lcm",
    )
    group.add_argument("--temperature", type=float, help="choice temperature")
    group.add_argument("--negative-prompt", help="what to move away from")
    group.add_argument("--batch-size", type=int, help="images sampled at once")
    group.add_argument(
        "--prompt-weights",
        action=argparse.BooleanOptionalAction,
        help="read (word:1.3), (word), which is 1.1, [word], which is 1/1.1, and BREAK in prompts "
        "as A1111's web UI does; a backslash before a bracket makes it a bracket",
    )
    group.add_argument(
        "--long-prompts",
        action=argparse.BooleanOptionalAction,
        help="read all of a prompt longer than what the text tower reads at once (77 tokens; 32 of "
        "the shipped models), in chunks",
    )


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
        check_words(prompt, "--prompt")
    return prompts


def _common(flags: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What every command that samples hands to the library, checked under the names of the
    flags.
    """
    from styledrop_jax.pipelines.base import SampleSettings
    from styledrop_jax.settings import changed
    from styledrop_jax.style import MOST_IMAGES

    if not 1 <= flags.num <= MOST_IMAGES:
        raise UserError(f"--num: found {flags.num}, expected 1 to {MOST_IMAGES}")
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


def _tell(made: Sequence[Any], of: Sequence[str], out: Path) -> None:
    """Says how many images were made, where, and of what; of several processes the first does."""
    if not hosts.first():
        return
    print(f"images: {len(made)} in {out}, of {few([shown(name) for name in of], joint=', ')}")


def loaded(flags: argparse.Namespace) -> Any:
    """The `Style` of the flags, on the devices of all processes."""
    from styledrop_jax.style import Style

    hosts.join()
    return Style.load(
        flags.run,
        round=flags.round,
        step=flags.step,
        base=flags.base,
        keep=True,
        **_reading(flags),
    )


def _reading(flags: argparse.Namespace) -> dict[str, Any]:
    """How the prompts are read; None is the run's own."""
    found = {}
    for name in ("prompt_weights", "long_prompts"):
        found[name] = getattr(flags, name, None)
    return found
