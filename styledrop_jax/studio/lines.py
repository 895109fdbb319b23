"""From what a page asks for to the words of an ordinary command.

Flag and value are one word, so that no prompt is ever taken for a flag.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from styledrop_jax.errors import UserError
from styledrop_jax.io.files import write_jsonl
from styledrop_jax.studio import fields, pictures
from styledrop_jax.studio.folders import Studio

METHODS = {
    "styledrop": "StyleDrop: a style; a second round learns from the best of the first",
    "lora": "LoRA: a style in one round, with more of the reference's shapes",
    "svdiff": "SVDiff: less of the style than LoRA",
    "custom_diffusion": "Custom Diffusion: a tint of the style",
    "textual_inversion": "Textual Inversion: a new word, a tint of the style",
    "hard_prompt": "Hard prompt: words found from the picture draw, nothing trains",
    "dreambooth": "DreamBooth: a subject, such as my dog, from some photos",
    "debug": "a trial of everything in seconds; the pictures are poor",
}
BASES = {
    "emoji128": "shipped Stable Diffusion, 128 pixels: minutes on two cores",
    "emoji128-muse": "shipped Muse, 128 pixels, coarser, one round: minutes on two cores",
    "amused-256": "aMUSEd, 256 pixels: for a GPU or TPU; needs its weights",
    "amused-512": "aMUSEd, 512 pixels: for a GPU or TPU; needs its weights",
    "sd15": "Stable Diffusion 1.5, 512 pixels: for a GPU or TPU; needs its weights",
    "sd21": "Stable Diffusion 2.1, 768 pixels: for a GPU or TPU; needs its weights",
    "sdxl": "Stable Diffusion XL 1.0, 1024 pixels: for a GPU or TPU; needs its weights",
}
FORMATS = ("styledrop", "diffusers", "peft", "kohya", "a1111", "pipeline", "single_file")
_MOST_PICTURES = 20
_MOST_LAMBDAS = 9  # combinations of one request: a command each
_PREVIEW = 50  # training steps between pictures of a run that is watched
_OF_ROUNDS = ("styledrop", "debug")


def new_run(studio: Studio, body: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Keeps the pictures of a new run in its folder; returns its name and the command that begins
    it.

    Raises:
        UserError: a field that cannot be.
    """
    name = fields.text(body, "name", "")
    folder = studio.new(name)
    words = _config(studio, body, folder / "given")
    return name, ["personalize", *words, f"--workdir={folder}"]


def plan(studio: Studio, body: Mapping[str, Any]) -> list[str]:
    """The command line of a new run that is only counted."""
    return _config(studio, body, studio.state / "planned")


def _config(studio: Studio, body: Mapping[str, Any], given: Path) -> list[str]:
    method = fields.one_of(body, "method", list(METHODS))
    base = fields.one_of(body, "base", list(BASES))
    words = [f"--config={method}:{base}"]
    descriptor = fields.text(body, "descriptor", "")
    if method == "dreambooth":
        for field, example in (("identifier", "sks"), ("noun", "dog")):
            words.append(f"--config.words.{field}={fields.needed(body, field, example)}")
    elif not descriptor and method != "hard_prompt":
        raise UserError("descriptor: empty; expected words like 'in watercolor painting style'")
    rows = []
    for picture in fields.listed(body, "pictures", _MOST_PICTURES):
        if not isinstance(picture, Mapping):
            raise UserError("pictures: expected an upload and its content each")
        found = pictures.upload(studio, fields.text(picture, "upload"))
        if method == "dreambooth":
            content = fields.text(picture, "content", "")
        else:
            content = fields.needed(picture, "content", "a house")
        rows.append((found, content))
    lines = []
    given.mkdir(parents=True, exist_ok=True)
    for count, (found, content) in enumerate(rows):
        shutil.copyfile(found, given / f"{count:03d}.png")
        lines.append({"image": f"{count:03d}.png", "content": content, "descriptor": descriptor})
    write_jsonl(given / "images.jsonl", lines)
    words.append(f"--config.reference.image={given / 'images.jsonl'}")
    if descriptor:
        words.append(f"--config.reference.descriptor={descriptor}")
    if method != "debug":
        words.append(f"--config.round_1.preview_every={_PREVIEW}")
    if method == "styledrop":
        words.append(f"--config.round_2.preview_every={_PREVIEW}")
    if method in _OF_ROUNDS and fields.truth(body, "choose"):
        words += ["--config.rounds=2", "--config.round_1.select.by=human"]
    return words


def go_on(studio: Studio, name: str) -> list[str]:
    """The command that continues a run: what it was told, as its config."""
    workdir = studio.run(name)
    studio.config(name)
    return ["personalize", f"--config={workdir}", f"--workdir={workdir}"]


def extend(studio: Studio, name: str, body: Mapping[str, Any]) -> list[str]:
    """The command that adds rounds or steps to a finished run."""
    rounds = fields.whole(body, "rounds", 0, 0, 3)
    steps = fields.whole(body, "steps", 0, 0, 10_000)
    if not rounds and not steps:
        raise UserError("extend: nothing to add; expected rounds or steps")
    words = ["extend", f"--run={studio.run(name)}"]
    words += [f"--rounds={rounds}"] if rounds else []
    return words + ([f"--steps={steps}"] if steps else [])


# -------------------------------------------------------------- using a run


def use(studio: Studio, name: str, body: Mapping[str, Any]) -> list[list[str]]:
    """The commands that use a run: one, or one for each pair of strengths.

    Raises:
        UserError: a field that cannot be.
    """
    workdir = studio.run(name)
    command = fields.one_of(body, "command", ("sample", "mix", "edit", "stylize", "export"))
    if command == "export":
        words = ["export", f"--run={workdir}"]
        words.append(f"--format={fields.one_of(body, 'format', FORMATS)}")
        return [words + _round(body)]
    words = [command, f"--style={workdir}" if command == "mix" else f"--run={workdir}"]
    words += _round(body)
    if command == "mix":
        words.append(f"--subject={studio.run(fields.text(body, 'subject'))}")
        words.append(f"--gamma={fields.number(body.get('gamma', 0.6), 'gamma', 0, 1):g}")
    if command in ("edit", "stylize"):
        words += _pictures(studio, workdir, body, command)
    words += _prompts(body, command)
    words.append(f"--num={fields.whole(body, 'num', 4, 1, 64)}")
    words.append(f"--seed={fields.whole(body, 'seed', 0, 0, 2**31)}")
    if "descriptor" in body:
        words.append(f"--descriptor={fields.text(body, 'descriptor')}")
    for name in ("prompt_weights", "long_prompts"):
        if fields.truth(body, name):
            words.append(f"--{name.replace('_', '-')}")
    return [words + strengths for strengths in _lambdas(body)]


def _round(body: Mapping[str, Any]) -> list[str]:
    if body.get("round") is None:
        return []
    return [f"--round={fields.whole(body, 'round', 0, 0, 100)}"]


def _prompts(body: Mapping[str, Any], command: str) -> list[str]:
    if command == "stylize":
        return [f"--prompt={fields.needed(body, 'prompt', 'a house')}"]
    words = []
    for prompt in fields.listed(body, "prompts", 32):
        words.append(f"--prompt={fields.needed({'prompt': prompt}, 'prompt', 'a cat')}")
    return words


def _pictures(studio: Studio, workdir: Path, body: Mapping[str, Any], command: str) -> list[str]:
    """The user's picture and mask, kept in the run folder beside what becomes of them."""
    words = []
    for field in ("image", "mask"):
        if field == "mask" and (command == "stylize" or not body.get("mask")):
            continue
        found = pictures.upload(studio, fields.text(body, field))
        kept = workdir / "given" / f"{field}-{found.name}"
        if (workdir / "given").is_symlink() or kept.is_symlink():
            raise UserError("given/: found a link; expected a folder of the run's own")
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(found, kept)
        words.append(f"--{field}={kept}")
    if body.get("strength") is not None:
        words.append(f"--strength={fields.number(body['strength'], 'strength', 0.01, 1):g}")
    return words


def _lambdas(body: Mapping[str, Any]) -> list[list[str]]:
    """Flags for each pair of the strengths that are asked for; one empty list if none is."""
    found: list[list[str]] = [[]]
    for name in ("lambda_a", "lambda_b"):
        if body.get(name) is None:
            continue
        values = fields.listed(body, name, _MOST_LAMBDAS)
        more = []
        for words in found:
            for value in values:
                strength = fields.number(value, name, 0, 100)
                more.append([*words, f"--{name.replace('_', '-')}={strength:g}"])
        found = more
    if len(found) > _MOST_LAMBDAS:
        raise UserError(f"lambda: found {len(found)} pairs, expected at most {_MOST_LAMBDAS}")
    return found
