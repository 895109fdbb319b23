"""What is exported, and what its files say of it: metadata, and a model card."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from styledrop_jax.adapters.base import Trainable
from styledrop_jax.interchange import single_file
from styledrop_jax.io.files import write_bytes
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

_TAG = "styledrop_jax"


class Beneath(NamedTuple):
    """A file that was put into a base model.

    Attributes:
        name: without its folder; one of a folder has its path in that.
        what: "autoencoder", or "LoRA" with its weight.
        sha256: of its bytes.
    """

    name: str
    what: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What is exported.

    Attributes:
        base: the pipeline without what trained.
        model: the pipeline with it: `trainable.attach` and `trainable.load` give both.
        what: what trained.
        base_name: the base model's name, as the user gave it.
        info: what metadata and the model card say, all of it optional: "descriptor" and "content"
            (of the reference), "prompts" (a list of examples), "method", "version" (of this
            package), "name" (of files that are known by it), "round", and "beneath" (a list of
            `Beneath`: files that were put into the base).
    """

    base: Pipeline
    model: Pipeline
    what: Trainable
    base_name: str
    info: Mapping[str, Any]

    @property
    def kinds(self) -> list[str]:
        """The different kinds of adapter of the denoiser and the text tower."""
        found = []
        for part in (self.what.denoiser, self.what.text):
            if part is not None and part.kind not in found:
                found.append(part.kind)
        return found

    @property
    def name(self) -> str:
        """What files are called that other tools know by their name."""
        return str(self.info.get("name") or "styledrop")

    @property
    def base_title(self) -> str:
        """The base model's name for other people, without the folders of this machine."""
        name = self.base_name
        local = name.startswith(("/", ".", "~")) or name.endswith(".safetensors")
        return Path(name).name if local else name.partition("@")[0]

    @property
    def trigger(self) -> str:
        """What a prompt must say for the style or subject to appear; empty if that is unknown."""
        if self.what.words is not None:
            return " ".join(token.word for token in self.what.words.tokens)
        return str(self.info.get("descriptor") or "")


def modelspec(trained: Trained, base: StableDiffusion, *, kind: str = "") -> dict[str, str]:
    """Metadata of a safetensors file, by the names of Stability AI's model specification 1.0.0.

    Args:
        trained: what is exported.
        base: its base.
        kind: "lora" or "textual-inversion"; empty for a whole model.
    """
    version = single_file.version(base)
    predicts_v = base.schedule.prediction_type == "v_prediction"
    architecture = "stable-diffusion-v1"
    if version == 2:
        architecture = "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"
    elif base.is_xl:
        architecture = "stable-diffusion-xl-v1-base"
    implementation = "https://github.com/Stability-AI/generative-models"
    found = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "diffusers" if kind else implementation,
        "modelspec.title": trained.name,
        "modelspec.description": sentence(trained),
        "modelspec.resolution": f"{base.resolution}x{base.resolution}",
        "modelspec.prediction_type": "v" if predicts_v else "epsilon",
    }
    if trained.trigger:
        found["modelspec.trigger_phrase"] = trained.trigger
    return found


def base_version(base: StableDiffusion) -> dict[str, str]:
    """What kohya's scripts say of the base model in a file's metadata."""
    version = single_file.version(base)
    predicts_v = base.schedule.prediction_type == "v_prediction"
    name = "sdxl_base_v1-0" if base.is_xl else f"sd_v{version}{'_v' if predicts_v else ''}"
    return {"ss_base_model_version": name, "ss_v2": str(version == 2)}


def write_card(folder: Path, trained: Trained, *, tags: Sequence[str], usage: str) -> list[Path]:
    """Writes README.md, a model card as the Hugging Face hub reads it, unless another is there.

    Args:
        folder: of the export.
        trained: what is exported.
        tags: of the card.
        usage: Python that opens the export, `folder` standing for its path.

    Returns:
        The file, or nothing.
    """
    path = folder / "README.md"
    if path.exists() and _TAG not in path.read_text(encoding="utf-8", errors="replace"):
        return []
    lines = ["---", f"base_model: {_quoted(trained.base_title)}", "tags:"]
    for tag in ("text-to-image", *tags, _TAG):
        lines.append(f"- {tag}")
    if trained.trigger:
        lines.append(f"instance_prompt: {_quoted(trained.trigger)}")
    lines.extend(["---", "", f"# {trained.name}", "", sentence(trained), ""])
    lines.extend(table_beneath(trained))
    lines.extend(["```python", usage.strip(), "```"])
    prompts = trained.info.get("prompts") or ()
    if prompts:
        lines.extend(["", "Prompts:", ""])
        for prompt in prompts:
            lines.append(f"- {prompt}")
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return [path]


def table_beneath(trained: Trained) -> list[str]:
    """Markdown that names the files that were put into the base model, if there were any."""
    files = trained.info.get("beneath") or ()
    if not files:
        return []
    lines = [
        "These files were in the base model. A whole model has them in its weights; what trained "
        "alone needs them:",
        "",
        "| file | what it is | SHA-256 |",
        "|---|---|---|",
    ]
    for file in files:
        lines.append(f"| {plain(file.name)} | {file.what} | `{file.sha256}` |")
    return [*lines, ""]


def plain(text: str) -> str:
    """Text that means nothing to Markdown, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def sentence(trained: Trained) -> str:
    """What it is, on what it was trained, and what prompts say."""
    method = trained.info.get("method")
    version = trained.info.get("version")
    text = f"Trained on {trained.base_title}"
    if files := trained.info.get("beneath"):
        text += f" with {', '.join(file.name for file in files)} in it,"
    if method:
        text += f" by the method {method}"
        if trained.kinds and trained.kinds != [method]:
            text += f" (adapter {', '.join(trained.kinds)})"
    text += f" with styledrop_jax{f' {version}' if version else ''}."
    if trained.trigger:
        text += f" Prompts say: {trained.trigger}."
    return text


def _quoted(text: str) -> str:
    """A YAML string; every string of JSON is one."""
    return json.dumps(text, ensure_ascii=False)
