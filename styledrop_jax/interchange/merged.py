"""A pipeline with what trained in it as plain weights, and its folder in the diffusers layout."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from styledrop_jax import trainable
from styledrop_jax.adapters import slots, textual_inversion
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.io import hub, pretrained
from styledrop_jax.io.files import write_json
from styledrop_jax.models import clip
from styledrop_jax.models.rules import Rules
from styledrop_jax.models.tokenizer import save_tokenizer
from styledrop_jax.pipelines import muse_files, stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.components import Component
from styledrop_jax.pipelines.muse import Muse
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

_BROKEN_EOS = 2  # old configs hold it in error; it then means the highest id, which a new word has

_WRITTEN_FOR = "0.42.1"  # which the reference's inpainting pipelines compare with old releases


class Layout(NamedTuple):
    """How a kind of pipeline lies in a diffusers folder.

    Attributes:
        pipeline: the reference's class.
        denoiser, autoencoder: its components.
        towers: those of its text towers, by their paths in `clip.towers`.
        parts: {folder: (library, class)}, the entries of `model_index.json`.
    """

    pipeline: str
    denoiser: Component[Any]
    autoencoder: Component[Any]
    towers: dict[str, Component[Any]]
    parts: dict[str, tuple[str, str]]

    def projects(self, tower: Component[Any]) -> bool:
        """Whether a text tower has its projection."""
        return self.parts[tower.folder] == _PROJECTED


_BARE = ("transformers", "CLIPTextModel")
_PROJECTED = ("transformers", "CLIPTextModelWithProjection")
_TOKENIZER = ("transformers", "CLIPTokenizer")
_STABLE_DIFFUSION = Layout(
    pipeline="StableDiffusionPipeline",
    denoiser=stable_diffusion_files.UNET,
    autoencoder=stable_diffusion_files.VAE,
    towers={"": stable_diffusion_files.TEXT},
    parts={
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": _BARE,
        "tokenizer": _TOKENIZER,
        "scheduler": ("diffusers", "DDIMScheduler"),
    },
)
_STABLE_DIFFUSION_XL = _STABLE_DIFFUSION._replace(
    pipeline="StableDiffusionXLPipeline",
    towers={"first": stable_diffusion_files.TEXT, "second": stable_diffusion_files.TEXT_2},
    parts=_STABLE_DIFFUSION.parts | {"text_encoder_2": _PROJECTED, "tokenizer_2": _TOKENIZER},
)
_MUSE = Layout(
    pipeline="AmusedPipeline",
    denoiser=muse_files.TRANSFORMER,
    autoencoder=muse_files.VQVAE,
    towers={"": muse_files.TEXT},
    parts={
        "transformer": ("diffusers", "UVit2DModel"),
        "vqvae": ("diffusers", "VQModel"),
        "text_encoder": _PROJECTED,
        "tokenizer": _TOKENIZER,
        "scheduler": ("diffusers", "AmusedScheduler"),
    },
)


def layout(pipeline: Pipeline) -> Layout:
    """The layout of a Stable Diffusion or a Muse."""
    if not isinstance(pipeline, StableDiffusion):
        return _MUSE
    found = _STABLE_DIFFUSION_XL if pipeline.is_xl else _STABLE_DIFFUSION
    if not pipeline.inpaints:
        return found
    return found._replace(pipeline=found.pipeline.replace("Pipeline", "InpaintPipeline"))


def merged(model: Pipeline, what: Trainable, *, words: bool = True) -> Pipeline:
    """The pipeline with what trained merged into its weights: the same outputs, no adapters.

    New words become rows of the token embedding, under the ids that the model's tokenizer gives
    them. `model` stays as it is.

    Args:
        model: carries what trained.
        what: what trained; its adapters must be `slots.LayerAdapter`s or full training.
        words: whether to take the new words along.
    """
    denoiser = trainable.copy(model.denoiser)
    slots.merge(denoiser)
    text: Any = trainable.copy(model.text)
    slots.merge(text)
    if what.words is not None:
        for tower in clip.towers(text).values():
            rows = textual_inversion.trained_rows(tower, what.words)
            tower.text_model.embeddings.adapter = nnx.data(None)
            if words:
                _append(tower, np.concatenate(list(rows.values())), model.tokenizer)
    return dataclasses.replace(model, denoiser=denoiser, text=text)


def _append(text: Any, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    """Puts rows behind the token embedding's."""
    embedding = text.text_model.embeddings.token_embedding
    table = embedding.embedding[...]
    longer = jnp.concatenate([table, jnp.asarray(rows, table.dtype)])
    embedding.embedding = nnx.Param(longer)
    embedding.num_embeddings = len(longer)
    changes: dict[str, Any] = {"vocab_size": embedding.num_embeddings}
    if text.config.eos_token_id == _BROKEN_EOS:
        changes["eos_token_id"] = tokenizer.eos_token_id
    text.config = dataclasses.replace(text.config, **changes)


def tensors(module: nnx.Module, rules: Rules, *, dtype: str) -> dict[str, np.ndarray]:
    """A component's tensors in the reference library's names, float32 or float16."""
    kind: Any = np.dtype(dtype)
    return pretrained.export(module, rules, dtype=kind)


def text_tensors(pipeline: Pipeline, path: str, *, dtype: str) -> dict[str, np.ndarray]:
    """The tensors of the text tower at a path of `clip.towers`, in transformers' names, without a
    projection that is not used."""
    names = layout(pipeline)
    component = names.towers[path]
    found = tensors(clip.towers(pipeline.text)[path], component.rules, dtype=dtype)
    if not names.projects(component):
        found.pop("text_projection.weight", None)
    return found


def save(folder: Path, pipeline: Pipeline, *, dtype: str) -> list[Path]:
    """Writes a pipeline without adapters as a diffusers folder.

    Args:
        folder: made if it is not there.
        pipeline: a Stable Diffusion or a Muse.
        dtype: of the weights, "float32" or "float16".

    Returns:
        The files.
    """
    names = layout(pipeline)
    for component, module in (
        (names.denoiser, pipeline.denoiser),
        (names.autoencoder, pipeline.autoencoder),
    ):
        found = tensors(module, component.rules, dtype=dtype)
        hub.save_component(folder / component.folder, module.config.to_dict(), found)
    for path, tower in clip.towers(pipeline.text).items():
        component = names.towers[path]
        config = dataclasses.replace(tower.config, projection=names.projects(component))
        found = text_tensors(pipeline, path, dtype=dtype)
        hub.save_component(folder / component.folder, config.to_dict(), found)
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    tokenizer.model_max_length = pipeline.prompt_length
    save_tokenizer(tokenizer, folder / "tokenizer")
    settings: dict[str, Any] = {}
    if pipeline.inpaints:
        settings["_diffusers_version"] = _WRITTEN_FOR
    if isinstance(pipeline.text, clip.TextPair):
        pair = pipeline.text.config
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pair.second_padding)
        save_tokenizer(tokenizer, folder / "tokenizer_2")
        settings["force_zeros_for_empty_prompt"] = pair.zero_empty
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(pipeline))
    hub.save_index(folder, names.pipeline, names.parts, settings)
    files = [folder / "model_index.json"]
    for name in names.parts:
        files.extend(sorted((folder / name).iterdir()))
    return files


def _scheduler(pipeline: Pipeline) -> dict[str, Any]:
    if isinstance(pipeline, StableDiffusion):
        return pipeline.schedule.to_dict()
    assert isinstance(pipeline, Muse)
    return {
        "_class_name": "AmusedScheduler",
        "masking_schedule": "cosine",
        "mask_token_id": pipeline.mask_id,
    }
