"""What comes before a run: configs to edit, words for a picture or a subject, a base model of one's
own.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from styledrop_jax.commands.parser import Parser
from styledrop_jax.errors import UserError

_MOST_WORDS = 1000


def configs(argv: Sequence[str]) -> None:
    """Copy the configs that ship into a folder, to be edited.

        styledrop configs my_configs/
        styledrop personalize --config my_configs/styledrop.py --workdir runs/mine

    A copy is a file of your own: edit it, and pass its path. Files that are there stay.
    """
    flags = configs_parser().read(argv)
    from styledrop_jax import config_files
    from styledrop_jax.io.paths import expanded

    if flags.folder is None:
        print("\n".join(config_files.names()))
        return
    print(f"configs: {config_files.copy(expanded(flags.folder))}")


def configs_parser() -> Parser:
    parser = Parser("configs", configs)
    parser.add_argument("folder", nargs="?", type=Path, help="where to; without it their names")
    return parser


def describe_parser() -> Parser:
    parser = Parser("describe", describe)
    parser.add_argument("--image", required=True, help="the picture")
    parser.add_argument("--content", default="", help="what it shows, if you say it: 'a house'")
    parser.add_argument(
        "--clip",
        default="emoji64/clip",
        help="the CLIP that finds the words: a name or a local folder (default emoji64/clip)",
    )
    parser.add_argument("--num", type=int, default=5, help="how many proposals (default 5)")
    parser.add_argument("--hard", action="store_true", help="search for a hard prompt too (PEZ)")
    return parser


def describe(argv: Sequence[str]) -> None:
    """Propose words for a picture: what it shows, and how it is drawn.

        styledrop describe --image my.png --content "a house"

    Names its colours, puts them into phrases for a style, and prints those that CLIP finds likest,
    with their cosines. The words are half of what one picture can teach: take those that you find
    true, in your own order. Without --content it is guessed among 30 everyday things.
    --hard searches CLIP's vocabulary for words that fit better still (PEZ, 2302.03668): they
    often make no sentence, and draw all the same.
    """
    flags = describe_parser().read(argv)
    from styledrop_jax.library import describe as find

    found = find(
        flags.image, content=flags.content, clip=flags.clip, number=flags.num, hard=flags.hard
    )
    guessed = ", guessed: --content says it better" if found.guessed else ""
    print(f"{flags.image}: {found.content}{guessed}")
    hard_prompts = [found.hard_prompt] if found.hard_prompt else []
    for words in sorted([*found.descriptors, *hard_prompts], key=lambda words: -words[1]):
        descriptor, likeness = words
        print(f"    {likeness:.2f}  {descriptor}{'  (hard prompt)' * (words in hard_prompts)}")
    begin = "to begin"
    if found.guessed:
        begin += f", with what it shows in place of {found.content!r}"
    line = (
        f"styledrop personalize --config styledrop --config.reference.image {quote(flags.image)} "
        f"--config.reference.content {quote(found.content)} "
        f"--config.reference.descriptor {quote(found.descriptors[0][0])} --workdir runs/mine"
    )
    print(f"{begin}:\n    {line}")


def rare_tokens_parser() -> Parser:
    parser = Parser("rare-tokens", rare_tokens)
    parser.add_argument(
        "--base",
        default="emoji128",
        help="the model: a name or a local folder (default emoji128)",
    )
    parser.add_argument("--num", type=int, default=10, help="how many words (default 10)")
    parser.add_argument(
        "--tokens", type=int, default=1, choices=(1, 2, 3), help="tokens in a word (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other words (default 0)")
    return parser


def rare_tokens(argv: Sequence[str]) -> None:
    """Print rare words that can stand for your subject or style.

        styledrop rare-tokens --base emoji128 --num 5

    Chosen as DreamBooth does (2208.12242): short words that the model's tokenizer knows but has
    seldom seen. Take one as --config.words.identifier. The small vocabulary of the shipped models
    has real words among them: pass over those.
    """
    flags = rare_tokens_parser().read(argv)
    if not 1 <= flags.num <= _MOST_WORDS:
        raise UserError(f"--num: found {flags.num}, expected 1 to {_MOST_WORDS}")
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed: found {flags.seed}, expected 0 to {2**32 - 1}")
    from styledrop_jax.io import hub
    from styledrop_jax.methods.identifiers import rare_words
    from styledrop_jax.models.tokenizer import load_tokenizer

    folder = hub.resolve(flags.base, [hub.PIPELINE_TOKENIZER], field="base")
    tokenizer = load_tokenizer(folder / "tokenizer")
    print("\n".join(rare_words(tokenizer, flags.num, seed=flags.seed, tokens=flags.tokens)))


def pretrain_parser() -> Parser:
    parser = Parser("pretrain", pretrain)
    parser.add_argument("--config", help="required: pretrain_vq, _clip, _muse, _vae, _unet, _start")
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
    WORKDIR/images.
    """
    parser = pretrain_parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return
    from styledrop_jax import config_files
    from styledrop_jax.emoji import settings
    from styledrop_jax.emoji.pretrain import pretrain as run

    config, rest = config_files.from_arguments(argv, settings.complete)
    flags = parser.read(rest)
    run(settings.from_config(config), flags.workdir)
