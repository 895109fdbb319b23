"""What comes from the Hugging Face hub and goes to it: fetch, push."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from styledrop_jax.commands import use
from styledrop_jax.commands.parser import Parser


def fetch_parser() -> Parser:
    parser = Parser("fetch", fetch)
    parser.add_argument("name", help="OWNER/NAME of a model on the Hugging Face hub")
    parser.add_argument("--revision", default="", help="a branch, a tag or a commit; default main")
    return parser


def fetch(argv: Sequence[str]) -> None:
    """Download a base model ahead of time: what a run opens of it, and no more.

        styledrop fetch amused/amused-512
        styledrop fetch stable-diffusion-v1-5/stable-diffusion-v1-5 --revision main

    One variant of the weights is taken, the plain one before fp16, safetensors alone. Sizes are
    said before it starts. What is in the Hugging Face cache is not downloaded again; after a
    download that broke off the same command goes on. Without a network it says whether the cache is
    enough. `--config.base OWNER/NAME` then takes the model from the cache, and
    `--config.base OWNER/NAME@REVISION` another revision of it.

    HF_HOME says where the cache is, HF_TOKEN opens models that ask for a login, HF_ENDPOINT names
    another hub.
    """
    flags = fetch_parser().read(argv)
    from styledrop_jax.io import hub
    from styledrop_jax.pipelines.load import layouts

    print(hub.fetch(flags.name, [hub.CLIP, *layouts()], revision=flags.revision))


def push_parser() -> Parser:
    parser = Parser("push", push)
    use.add_run(parser)
    parser.add_argument("--to", required=True, help="OWNER/NAME: the model on the hub")
    parser.add_argument("--private", action="store_true", help="for you alone, if it is new")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, upload nothing")
    parser.add_argument(
        "--out", type=Path, help="a new folder (default: export/hub in the run folder)"
    )
    return parser


def push(argv: Sequence[str]) -> None:
    """Publish what a run learnt on the Hugging Face hub, with a model card.

        styledrop push --run runs/mine --to me/watercolor --dry-run
        styledrop push --run runs/mine --to me/watercolor --private

    Makes a folder: README.md, the model card, with the base model and its licence, the words that
    prompts must say, how to load it, and pictures; what was learnt in every format that holds it
    (see `styledrop export`), but not the whole merged model; and a small run folder that
    `styledrop sample` takes. Your reference images and the paths of this machine are not in it.
    Look at it with --dry-run first.

    The token is that of `hf auth login` or HF_TOKEN. Pushing again replaces the files.
    """
    flags = push_parser().read(argv)
    from styledrop_jax import publish
    from styledrop_jax.io.files import guard
    from styledrop_jax.io.paths import expanded

    publish.check_name(flags.to)
    style = use.loaded(flags)
    if not flags.dry_run:
        publish.check_token()
    folder = expanded(flags.out or flags.run / "export" / "hub")
    if flags.out is None and folder.exists():
        with guard(folder):
            shutil.rmtree(folder)
    for path in publish.write(style, folder, flags.to):
        print(folder / path)
    if not flags.dry_run:
        print(publish.upload(folder, flags.to, private=flags.private))
