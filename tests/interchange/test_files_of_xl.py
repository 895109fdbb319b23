"""Files of Stable Diffusion XL: what trained in it goes out to the reference's readers, and comes
back."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from worlds import (
    base_xl,
    follow_card,
    ours_xl,
    reference_folder_xl,
    reference_xl,
    sampled,
    started,
    theirs,
    trained_xl,
)

from styledrop_jax import trainable, tree
from styledrop_jax.adapters import textual_inversion
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import merged, single_file
from styledrop_jax.interchange.export import EXPORTS
from styledrop_jax.interchange.read import Initial, read_init
from styledrop_jax.io.single_file import split
from styledrop_jax.models import clip
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.filterwarnings("ignore")


def _same(latents: np.ndarray) -> None:
    error = np.abs(latents - ours_xl()).max()
    assert error < 1e-4 * np.abs(ours_xl()).max()


def _state(model: Pipeline, what: Trainable) -> dict[str, np.ndarray]:
    _, state, _ = nnx.split(trainable.parts(model, what), trainable.trained(what), ...)
    return tree.flatten(jax.tree.map(np.asarray, nnx.as_pure(state)))


def _is_back(initial: Initial, name: str, *, folded: bool = False) -> None:
    """A LoRA that was read is the one that trained, α/r in B if `folded`."""
    trained = trained_xl(name)
    found = tree.flatten(initial.state)
    for key, leaf in _state(trained.model, trained.what).items():
        # The first tower's projection is not used, and in no file.
        if ".adapter." in key and "embeddings" not in key and "first.text_proj" not in key:
            scale = 0.5 if folded and key.endswith(".up") else 1.0
            np.testing.assert_allclose(found[key], leaf * scale, rtol=1e-6, err_msg=key)


def test_what_trained_is_seen_and_the_base_is_the_reference():
    plain = sampled(base_xl())
    assert np.abs(ours_xl() - plain).max() > 1
    np.testing.assert_allclose(theirs(reference_xl()), plain, atol=1e-4, rtol=1e-4)


def test_diffusers_loads_its_files_and_they_come_back(tmp_path):
    """By the lines of the model card."""
    path, *_ = EXPORTS["diffusers"](trained_xl(), tmp_path)
    prefixes = {name.split(".")[0] for name in load_file(path)}
    assert prefixes == {"unet", "text_encoder", "text_encoder_2"}
    hut = load_file(tmp_path / "hut.safetensors")
    assert {key: rows.shape for key, rows in hut.items()} == {"clip_l": (2, 16), "clip_g": (2, 12)}
    _same(theirs(follow_card(tmp_path, reference_xl())))
    _is_back(read_init(path, base_xl()), "lora everywhere and words", folded=True)


def test_peft_folders_come_back(tmp_path):
    EXPORTS["peft"](trained_xl("lora everywhere"), tmp_path)
    _is_back(read_init(tmp_path, base_xl()), "lora everywhere")
    alone = tmp_path / "text_encoder" / "adapter_model.safetensors"
    with pytest.raises(UserError, match="unexpected base_model"):  # of which tower?
        read_init(alone, base_xl())


def test_kohyas_files_are_the_same_model_and_come_back(tmp_path):
    """The U-Net goes by the names of the latent-diffusion code, as kohya's scripts write XL's."""
    path, *words = EXPORTS["kohya"](trained_xl(), tmp_path)
    names = set(load_file(path))
    prefixes = {name.partition("_")[2].split("_")[0] for name in names}
    assert prefixes == {"unet", "te1", "te2"}
    stem = "lora_unet_output_blocks_0_1_transformer_blocks_1_attn2_to_k"
    assert f"{stem}.lora_down.weight" in names and not any("up_blocks" in name for name in names)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    _is_back(read_init(path, base_xl()), "lora everywhere and words")

    assert [word.stem for word in words] == ["hut", "cat"]
    initial = read_init(words[0], base_xl())
    (token,) = initial.what.words.tokens
    assert (token.word, token.vectors) == ("<hut>", 2)
    model = started(initial, base_xl())
    for key, tower in (("clip_l", model.text.first), ("clip_g", model.text.second)):
        rows = textual_inversion.trained_rows(tower, initial.what.words)["<hut>"]
        np.testing.assert_allclose(rows, load_file(words[0])[key], atol=1e-6)


def test_other_embeddings_are_refused(tmp_path):
    expected = "the rows of one word in SDXL's two text towers, clip_l .* and clip_g"
    for tensors in (
        {"emb_params": np.ones((1, 16), "f")},
        {"clip_l": np.ones((1, 16), "f")},
        {"clip_l": np.ones((1, 16), "f"), "clip_g": np.ones((2, 12), "f")},
        {"clip_l": np.ones((1, 12), "f"), "clip_g": np.ones((1, 12), "f")},
    ):
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=expected):
            read_init(tmp_path / "other.safetensors", base_xl())


def test_a_whole_folder_with_new_words_is_the_same_model(tmp_path):
    EXPORTS["pipeline"](trained_xl(), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    pipeline = reference_xl(tmp_path)
    assert pipeline.tokenizer_2.pad_token_id == 0 != pipeline.tokenizer.pad_token_id
    _same(theirs(pipeline))
    again = load(str(tmp_path))
    assert isinstance(again, StableDiffusion) and again.is_xl


def test_a_single_file_is_the_same_model(tmp_path, monkeypatch):
    """In the reference, with the new words, and read here."""
    path, *words = EXPORTS["single_file"](trained_xl(), tmp_path)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(reference_folder_xl()), local_files_only=True
    )
    for word in words:
        rows = load_file(word)
        for key, end in (("clip_l", ""), ("clip_g", "_2")):
            pipeline.load_textual_inversion(
                torch.from_numpy(rows[key]),
                token=f"<{word.stem}>",
                text_encoder=getattr(pipeline, f"text_encoder{end}"),
                tokenizer=getattr(pipeline, f"tokenizer{end}"),
            )
    _same(theirs(pipeline))

    names = set(load_file(path))
    stem = "conditioner.embedders.1.model"
    assert f"{stem}.transformer.resblocks.2.attn.in_proj_weight" in names
    assert {f"{stem}.text_projection", "model.diffusion_model.label_emb.0.0.weight"} < names
    base = base_xl()
    assert isinstance(base.text, clip.TextPair)
    configs = {"unet": base.denoiser.config, "vae": base.autoencoder.config}
    configs["text_encoder"] = dataclasses.replace(base.text.first.config, projection=False)
    configs["text_encoder_2"] = base.text.second.config
    monkeypatch.setitem(stable_diffusion_files.PRESETS, "xl", configs)
    shutil.copytree(reference_folder_xl(), path.with_suffix(""))  # its tokenizer and its schedule
    again = load(str(path))
    assert isinstance(again, StableDiffusion) and again.is_xl
    whole = merged.merged(trained_xl().model, trained_xl().what, words=False)
    assert isinstance(whole, StableDiffusion)
    expected = single_file.tensors(whole, dtype="float32")
    found = single_file.tensors(again, dtype="float32")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_other_single_files_are_refused_by_name():
    refiner = [
        "model.diffusion_model.label_emb.0.0.bias",
        "conditioner.embedders.0.model.ln_final.bias",
    ]
    with pytest.raises(UserError, match="found SDXL's refiner, expected SDXL's base model"):
        split(refiner, source="file")
    part = ["model.diffusion_model.out.0.bias", "conditioner.embedders.1.model.ln_final.bias"]
    with pytest.raises(UserError, match="whole Stable Diffusion XL .*: .*embedders.0"):
        split(part, source="file")
