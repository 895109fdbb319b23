"""What was trained, as the files of other tools."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from styledrop_jax import trainable
from styledrop_jax.adapters import custom_diffusion, full, lora, styledrop, textual_inversion
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.errors import UserError, did_you_mean, shown
from styledrop_jax.interchange import attention, embeddings, lora_write, merged, single_file
from styledrop_jax.interchange.trained import Trained, base_version, modelspec, write_card
from styledrop_jax.io import pretrained
from styledrop_jax.io.files import write_json
from styledrop_jax.models import clip
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

DTYPES = ("float32", "float16")
_LORA = "pytorch_lora_weights.safetensors"
_CUSTOM = "pytorch_custom_diffusion_weights.safetensors"
_WHOLE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(folder)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One format, called to export into it.

    Attributes:
        name: its name on the command line.
        refusal: what was trained → why it has no such file, or "" if it has.
        write: (what was trained, folder, dtype) → the files.
    """

    name: str
    refusal: Callable[[Trained], str]
    write: Callable[[Trained, Path, str], list[Path]]

    def __call__(self, trained: Trained, out: Path, *, dtype: str = "float32") -> list[Path]:
        """Writes into the folder `out`, which is made if it is not there.

        Args:
            trained: what is exported.
            out: the folder.
            dtype: of the weights, one of `DTYPES`.

        Returns:
            The files.

        Raises:
            UserError: what was trained has no such file, or the disk refuses it.
        """
        if dtype not in DTYPES:
            expected = f"{' or '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}"
            raise UserError(f"dtype: found {shown(dtype)}, expected {expected}")
        reason = self.refusal(trained)
        if reason:
            others = [name for name, why in possible(trained).items() if not why]
            raise UserError(
                f"export {self.name}: {reason}; possible: --format {' or '.join(others)}"
            )
        return self.write(trained, out, dtype)


def possible(trained: Trained) -> dict[str, str]:
    """{format: why what was trained has no such file, or "" if it has}."""
    return {name: each.refusal(trained) for name, each in EXPORTS.items()}


def _names(trained: Trained) -> str:
    """Everything that trained, in words."""
    words = [] if trained.what.words is None else [textual_inversion.Config.kind]
    return " and ".join(trained.kinds + words)


def _only_lora(trained: Trained) -> bool:
    return set(trained.kinds) <= {lora.Config.kind}


def _stable_diffusion(trained: Trained) -> StableDiffusion | None:
    return trained.base if isinstance(trained.base, StableDiffusion) else None


def _refuses_pipeline(trained: Trained) -> str:
    if styledrop.Config.kind in trained.kinds:
        return (
            "a StyleDrop adapter has no such format, and its bottlenecks are not linear, "
            "so it cannot be merged into the weights"
        )
    return ""


def _write_pipeline(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """A whole folder in the diffusers layout, what trained merged into the weights."""
    pipeline = merged.merged(trained.model, trained.what)
    files = merged.save(out, pipeline, dtype=dtype)
    return files + write_card(out, trained, tags=("diffusers",), usage=_WHOLE)


def _refuses_single_file(trained: Trained) -> str:
    if _stable_diffusion(trained) is None:
        return "a Muse has no such file"
    if not trained.kinds:
        return "new words alone leave the base's weights as they are"
    return _refuses_pipeline(trained)


def _write_single_file(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """One file, what trained merged into the weights, and the new words beside it.

    The tools that read such a file know the vocabulary of CLIP alone.
    """
    base = _stable_diffusion(trained)
    assert base is not None
    pipeline = merged.merged(trained.model, trained.what, words=False)
    assert isinstance(pipeline, StableDiffusion)
    tensors = single_file.tensors(pipeline, dtype=dtype)
    path = out / f"{trained.name}.safetensors"
    pretrained.save(path, tensors, modelspec(trained, base))
    return [path, *_write_nameless(trained, out, dtype)]


def _refuses_kohya(trained: Trained) -> str:
    if _stable_diffusion(trained) is None:
        return "there is no such convention for a Muse"
    if not _only_lora(trained):
        return f"no such file for {_names(trained)}, only for lora and textual_inversion"
    return ""


def _write_kohya(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """A LoRA in kohya's naming, and an embedding for each new word."""
    base = _stable_diffusion(trained)
    assert base is not None
    files = []
    parts = _lora_parts(trained)
    if parts:
        metadata = modelspec(trained, base, kind="lora") | base_version(base)
        metadata |= lora_write.kohya_metadata(parts)
        metadata["ss_sd_model_name"] = trained.base_title
        metadata["ss_output_name"] = trained.name
        path = out / f"{trained.name}.safetensors"
        xl = base.denoiser.config if base.is_xl else None
        _save(path, lora_write.kohya(parts, xl=xl), dtype, metadata)
        files.append(path)
    return files + _write_nameless(trained, out, dtype)


def _write_nameless(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """A file for each new word, as A1111 reads it, in the folder `embeddings`."""
    base = _stable_diffusion(trained)
    assert base is not None
    files = []
    rows = _rows(trained)
    for word, name in embeddings.file_names(rows).items():
        tensors, metadata = embeddings.nameless(word, rows[word])
        path = out / "embeddings" / name
        _save(path, tensors, dtype, modelspec(trained, base, kind="textual-inversion") | metadata)
        files.append(path)
    return files


def _refuses_peft(trained: Trained) -> str:
    if trained.what.words is not None or not _only_lora(trained):
        return f"no such file for {_names(trained)}, only for lora"
    return ""


def _write_peft(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """An adapter folder for each component that has a LoRA, in a folder of the component's name."""
    library = merged.layout(trained.base).parts
    files = []
    usage = ["from peft import PeftModel", ""]
    for part in _lora_parts(trained):
        flat_text = library[part.prefix][1] == "CLIPTextModel"
        tensors, config = lora_write.peft(part, flat_text=flat_text)
        folder = out / part.prefix
        _save(folder / "adapter_model.safetensors", tensors, dtype)
        config["base_model_name_or_path"] = trained.base_title
        write_json(folder / "adapter_config.json", config)
        files.extend([folder / "adapter_config.json", folder / "adapter_model.safetensors"])
        usage.append(
            f"pipeline.{part.prefix} = "
            f'PeftModel.from_pretrained(pipeline.{part.prefix}, f"{{folder}}/{part.prefix}")'
        )
    return files + write_card(out, trained, tags=("lora", "peft"), usage="\n".join(usage))


def _refuses_diffusers(trained: Trained) -> str:
    kinds = trained.kinds
    if full.Config.kind in kinds:
        return _refuses_pipeline(trained)
    if _stable_diffusion(trained) is None:
        if trained.what.trains_text or not _only_lora(trained):
            return "its Muse pipeline reads no other file than a lora of the transformer"
        return ""
    if set(kinds) <= {lora.Config.kind, custom_diffusion.Config.kind}:
        return ""
    return f"no such file for {' and '.join(kinds)}"


def _write_diffusers(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """The files that diffusers' own trainers leave; after full training a whole folder."""
    if full.Config.kind in trained.kinds:
        return _write_pipeline(trained, out, dtype)
    files = []
    parts = _lora_parts(trained)
    if parts:
        tensors, metadata = lora_write.diffusers(parts)
        _save(out / _LORA, tensors, dtype, metadata)
        files.append(out / _LORA)
    if isinstance(trained.what.denoiser, custom_diffusion.Config):
        rules = merged.layout(trained.base).denoiser.rules
        _save(out / _CUSTOM, attention.tensors(trained.model.denoiser, rules), dtype)
        files.append(out / _CUSTOM)
    rows = _rows(trained)
    for word, name in embeddings.file_names(rows).items():
        if len(rows[word]) > 1:
            tensors, _ = embeddings.nameless(word, rows[word])
        else:
            tensors = {word: rows[word][""]}
        _save(out / name, tensors, dtype)
        files.append(out / name)
    tags, usage = in_diffusers(trained)
    return files + write_card(out, trained, tags=tags, usage=usage)


def in_diffusers(trained: Trained) -> tuple[list[str], str]:
    """The tags of the format "diffusers", and the Python that loads its files from `folder` into a
    `pipeline` of the base; of a whole folder, that makes the pipeline.
    """
    if full.Config.kind in trained.kinds:
        return ["diffusers"], _WHOLE
    tags = ["diffusers"]
    usage = []
    if _lora_parts(trained):
        tags.append("lora")
        loader = "pipeline.load_lora_weights(folder"
        if _stable_diffusion(trained) is None:
            loader = 'pipeline.transformer.load_lora_adapter(folder, prefix="transformer"'
        usage.append(f'{loader}, weight_name="{_LORA}")')
    if isinstance(trained.what.denoiser, custom_diffusion.Config):
        tags.append("custom-diffusion")
        usage.append(
            f'pipeline.unet.load_attn_procs(folder, weight_name="{_CUSTOM}", _pipeline=pipeline)'
        )
    rows = _rows(trained)
    if rows:
        tags.append("textual_inversion")
    for word, name in embeddings.file_names(rows).items():
        whole = f'pipeline.load_textual_inversion(folder, weight_name="{name}")'
        usage.append(whole if len(rows[word]) == 1 else _word_of_xl(word, name))
    return tags, "\n".join(usage)


def _word_of_xl(word: str, file: str) -> str:
    """The Python by which the reference's pipeline loads a word from a file with two tensors."""
    lines = [
        "from safetensors.torch import load_file",
        f'rows = load_file(f"{{folder}}/{file}")',
    ]
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        tower = f"text_encoder=pipeline.text_encoder{end}, tokenizer=pipeline.tokenizer{end}"
        lines.append(f'pipeline.load_textual_inversion(rows["{key}"], token={word!r}, {tower})')
    return "\n".join(lines)


def _write_styledrop(trained: Trained, out: Path, dtype: str) -> list[Path]:
    """The adapter file of this package, which holds whatever trained."""
    whole = trainable.parts(trained.model, trained.what)
    _, state, _ = nnx.split(whole, trainable.trained(trained.what), ...)
    extra = {}
    for name in ("descriptor", "content"):
        if name in trained.info:
            extra[name] = trained.info[name]
    path = out / "adapter.safetensors"
    save_adapter(
        path,
        _cast(nnx.to_pure_dict(state), dtype),
        base_name=trained.base_name,
        base_hash=trained.base.base_hash,
        config=trained.what.to_dict(),
        round=int(trained.info.get("round", 1)),
        extra=extra,
    )
    return [path]


def _lora_parts(trained: Trained) -> list[lora_write.Part]:
    """The LoRA of each component that has one."""
    names = merged.layout(trained.base)
    what = trained.what
    parts = []
    if isinstance(what.denoiser, lora.Config):
        parts.append(lora_write.part(trained.model.denoiser, what.denoiser, names.denoiser))
    if isinstance(what.text, lora.Config):
        for name, tower in clip.towers(trained.model.text).items():
            component = names.towers[name]
            part = lora_write.part(tower, what.text, component)
            halves = dict(part.halves)
            if not names.projects(component):
                halves.pop("text_projection", None)
            parts.append(dataclasses.replace(part, halves=halves))
    return parts


def _rows(trained: Trained) -> dict[str, dict[str, np.ndarray]]:
    """{new word: {path of a text tower: its rows}}."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if trained.what.words is None:
        return found
    for name, tower in clip.towers(trained.model.text).items():
        for word, rows in textual_inversion.trained_rows(tower, trained.what.words).items():
            found.setdefault(word, {})[name] = rows
    return found


def _cast(state: Any, dtype: str) -> Any:
    if isinstance(state, Mapping):
        return {name: _cast(value, dtype) for name, value in state.items()}
    return np.asarray(state, np.dtype(dtype))


def _save(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    pretrained.save(path, _cast(tensors, dtype), metadata)


_FORMATS = (
    Format(name="diffusers", refusal=_refuses_diffusers, write=_write_diffusers),
    Format(name="peft", refusal=_refuses_peft, write=_write_peft),
    Format(name="kohya", refusal=_refuses_kohya, write=_write_kohya),
    Format(name="a1111", refusal=_refuses_kohya, write=_write_kohya),
    Format(name="pipeline", refusal=_refuses_pipeline, write=_write_pipeline),
    Format(name="single_file", refusal=_refuses_single_file, write=_write_single_file),
    Format(name="styledrop", refusal=lambda trained: "", write=_write_styledrop),
)
EXPORTS: dict[str, Format] = {each.name: each for each in _FORMATS}
"""Every format by its name on the command line."""
