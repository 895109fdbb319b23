"""What a run learnt, for other people: a folder with files for every tool that can hold it,
pictures and a model card, which goes to the Hugging Face hub.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from styledrop_jax.errors import UserError, shown
from styledrop_jax.interchange.export import EXPORTS, in_diffusers, possible
from styledrop_jax.interchange.trained import Trained, plain, sentence, table_beneath
from styledrop_jax.io import hub
from styledrop_jax.io.files import guard, write_bytes, write_json
from styledrop_jax.spec import portable, to_config
from styledrop_jax.stages.samples import read_samples
from styledrop_jax.style import Style

_FOLDERS = {"diffusers": "", "peft": "peft", "kohya": "kohya"}
"""The formats of what trained alone, and their folders; no merged model is among them."""
_RUN = "styledrop"  # the folder of a run that holds the adapter alone
_PICTURES = 8
_LICENCE = ("license", "license_name", "license_link")


class _Picture(NamedTuple):
    """A picture beside the card, and the prompt that it was made of."""

    file: str
    prompt: str


def check_name(name: str) -> None:
    """UserError if a model cannot be pushed by that name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise UserError("--to: expected OWNER/NAME, of letters, digits, '-', '_' and '.'")


def check_token() -> None:
    """UserError if nobody is logged in to the hub."""
    if get_token() is None:
        raise UserError(
            "--to: no token of the hub; set HF_TOKEN to one that may write, or run `hf auth login`"
        )


def write(style: Style, folder: Path, name: str) -> list[str]:
    """Writes what goes to the hub's model `name` into a new or empty folder.

    Returns:
        The paths of all files in it.

    Raises:
        UserError: the folder holds something, or the disk refuses it.
    """
    with guard(folder):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; expected a new folder")
    trained = style.trained()
    trained = dataclasses.replace(trained, base_name=trained.base_title)  # none of its folders
    formats = [each for each in _FOLDERS if not possible(trained)[each]]
    for each in formats:
        EXPORTS[each](trained, folder / _FOLDERS[each])
    _write_run(style, trained, folder / _RUN)
    pictures = _pictures(style, folder)
    write_bytes(folder / "README.md", _card(style, trained, name, formats, pictures).encode())
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path.as_posix() for path in sorted(files)]


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Uploads the folder as the model `name`, which is made if it is not there.

    Returns:
        Its address.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    try:
        address = HfApi().create_repo(name, private=private or None, exist_ok=True)
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message="Trained with styledrop_jax"
        )
        return str(address)
    except OfflineModeIsEnabled:
        why = "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        why = f"the hub refuses it ({shown(error.server_message or str(error), 100)})"
        if error.response.status_code in (401, 403):
            why += "; expected HF_TOKEN, or `hf auth login`, with a token that may write there"
    except Exception:  # the hub's client also raises the types of its HTTP library
        why = "the hub cannot be reached, or the upload broke off; the same command goes on with it"
    raise UserError(f"--to {name}: {why}")


def _write_run(style: Style, trained: Trained, folder: Path) -> None:
    """The smallest run folder that `styledrop sample` takes, without paths of this machine."""
    spec = dataclasses.replace(
        style.spec,
        rounds=1,
        round_settings=(style.spec.round(style.number),),
        base=trained.base_title,
        init="",
        prompts="",
        truth="",
    )
    base = {"name": trained.base_title, "hash": trained.base.base_hash}
    if style.pipeline.revision:
        base["revision"] = style.pipeline.revision
    manifest = {
        "references": [{"content": style.content, "descriptor": style.descriptor}],
        "prompts": list(style.prompts),
        "base": base,
    }
    write_json(folder / "config.json", portable(to_config(spec)))
    write_json(folder / "manifest.json", manifest)
    EXPORTS["styledrop"](trained, folder / "round_1")


def _pictures(style: Style, folder: Path) -> list[_Picture]:
    """The best sample of each of the run's first prompts, copied beside the card; of prompts with
    weights the words, which every tool reads.
    """
    stage = style.run / f"round_{style.number}"
    if not (stage / "scores.jsonl").is_file():
        return []
    best: dict[int, Any] = {}
    for sample in read_samples(stage / "scores.jsonl"):
        other = best.get(sample.prompt)
        if other is None or sample.score > other.score:
            best[sample.prompt] = sample
    found = []
    for number in sorted(best)[:_PICTURES]:
        file = f"images/{len(found):02d}.png"
        picture = stage / best[number].file
        if not picture.is_file():
            continue
        with guard(folder / file):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, folder / file)
        found.append(_Picture(file, style.spec.reading.plain(best[number].text)))
    return found


def _card(
    style: Style,
    trained: Trained,
    name: str,
    formats: Sequence[str],
    pictures: Sequence[_Picture],
) -> str:
    """The model card: YAML for the hub, then Markdown."""
    tags, loads = in_diffusers(trained) if "diffusers" in formats else ([], "")
    facts: dict[str, Any] = {"tags": ["text-to-image", *tags, "styledrop_jax"]}
    if hub.is_of_hub(style.spec.base):
        facts["base_model"] = trained.base_title
        facts |= _licence(hub.card(style.spec.base, revision=style.pipeline.revision))
    if loads:
        facts["library_name"] = "diffusers"
    if trained.trigger:
        facts["instance_prompt"] = trained.trigger
    if pictures:
        facts["widget"] = [{"text": each.prompt, "output": {"url": each.file}} for each in pictures]
    lines = ["---", ModelCardData(**facts).to_yaml(), "---", "", f"# {trained.name}", ""]
    lines += [plain(sentence(trained)), "", *table_beneath(trained)]
    for picture in pictures:
        lines += [f"![{plain(picture.prompt)}]({picture.file})"]
    prompt = pictures[0].prompt if pictures else trained.trigger
    if loads:
        lines += _with_diffusers(trained, name, loads, prompt)
    lines += _with_others(formats)
    lines += _with_us(trained, name, style)
    return "\n".join(lines) + "\n"


def _licence(facts: Mapping[str, Any]) -> dict[str, str]:
    """What the base's card says of its licence."""
    found = {}
    for key in _LICENCE:
        value = facts.get(key)
        if isinstance(value, str) and len(value) < 500:
            found[key] = value
    return found


def _with_diffusers(trained: Trained, name: str, loads: str, prompt: str) -> list[str]:
    lines = ["", "## With diffusers", "", "```python", "from diffusers import DiffusionPipeline"]
    lines += ["from huggingface_hub import snapshot_download", ""]
    lines.append(f"folder = snapshot_download({name!r})")
    if "from_pretrained" not in loads:
        lines.append(f"pipeline = DiffusionPipeline.from_pretrained({trained.base_title!r})")
        if hub.is_shipped(trained.base_name):
            lines[-1] += "  # ships with styledrop_jax: its folder in styledrop_jax/assets"
        elif not hub.is_of_hub(trained.base_name):
            lines[-1] += "  # the base model's folder"
    lines += [line for line in loads.splitlines() if line and not line.startswith("from diffusers")]
    return [*lines, f"image = pipeline({prompt!r}).images[0]", "```"]


def _with_others(formats: Sequence[str]) -> list[str]:
    lines = []
    if "kohya" in formats:
        lines.append("`kohya/` has files for A1111, ComfyUI and kohya's scripts.")
    if "peft" in formats:
        lines.append("`peft/` has a folder for each part that trained, for peft.")
    return ["", "## In other tools", "", *lines] if lines else []


def _with_us(trained: Trained, name: str, style: Style) -> list[str]:
    folder = name.partition("/")[2]
    base = ""
    if not hub.is_of_hub(style.spec.base) and not hub.is_shipped(style.spec.base):
        base = " --base FOLDER_OF_THE_BASE_MODEL"
    lines = ["", "## With styledrop_jax", "", "```bash", f"hf download {name} --local-dir {folder}"]
    lines.append(f'styledrop sample --run {folder}/{_RUN} --prompt "a cat"{base}')
    lines += ["```", ""]
    if trained.info.get("beneath"):
        lines.append("It looks for the files of the table in the folder in which it is run.")
    if trained.info.get("descriptor"):
        lines.append("It adds the words of the style to every prompt by itself.")
    return lines
