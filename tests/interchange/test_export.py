"""Every format is opened by the tool it is for, and samples the same latents there as here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import worlds
from diffusers import AmusedPipeline, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.numpy import load_file
from worlds import WHAT, follow_card, of_base, ours, reference, theirs, trained

from styledrop_jax import trainable
from styledrop_jax.adapters import lora, styledrop
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import merged
from styledrop_jax.interchange.embeddings import file_names
from styledrop_jax.interchange.export import EXPORTS, Trained, possible
from styledrop_jax.pipelines.load import load

pytestmark = pytest.mark.filterwarnings("ignore")


def _same(latents, name, tolerance=1e-4):
    assert np.abs(ours(name) - of_base()).max() > 1, "what trained is seen"
    np.testing.assert_allclose(latents, ours(name), atol=tolerance)


def _metadata(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def _names(files):
    return [path.name for path in files]


def test_the_base_itself_agrees():
    np.testing.assert_allclose(theirs(reference()), of_base(), atol=1e-4)


@pytest.mark.parametrize(
    "name", ["lora", "lora everywhere", "words", "lora and words", "custom_diffusion"]
)
def test_diffusers_loads_its_files(name, tmp_path):
    """By the lines of the model card."""
    files = EXPORTS["diffusers"](trained(name), tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    _same(theirs(follow_card(tmp_path, reference())), name)


def test_diffusers_files_have_its_names(tmp_path):
    files = EXPORTS["diffusers"](trained("lora and words"), tmp_path / "a")
    lora_file = "pytorch_lora_weights.safetensors"
    assert _names(files) == [lora_file, "hut.safetensors", "cat.safetensors", "README.md"]
    assert {name.split(".")[0] for name in load_file(files[0])} == {"unet", "text_encoder"}
    assert load_file(files[1])["<hut>"].shape == (2, 16)
    files = EXPORTS["diffusers"](trained("custom_diffusion"), tmp_path / "b")
    assert files[0].name == "pytorch_custom_diffusion_weights.safetensors"


def test_every_word_has_a_file_of_its_own():
    words = ["<hut>", "hut", "HUT", "<>", "a/b", "猫"]
    names = [name.removesuffix(".safetensors") for name in file_names(words).values()]
    assert names == ["hut", "hut_2", "HUT_3", "word", "ab", "猫"]


@pytest.mark.parametrize("name", ["lora", "lora everywhere"])
def test_peft_loads_its_folders(name, tmp_path):
    files = EXPORTS["peft"](trained(name), tmp_path)
    parts = ["unet"] if name == "lora" else ["unet", "text_encoder"]
    expected = [tmp_path / "README.md"]
    for part in parts:
        expected.append(tmp_path / part / "adapter_config.json")
        expected.append(tmp_path / part / "adapter_model.safetensors")
    assert sorted(files) == sorted(expected)
    config = json.loads((tmp_path / "unet" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == WHAT[name].denoiser.alpha
    assert config["base_model_name_or_path"] == "tiny"
    _same(theirs(follow_card(tmp_path, reference())), name)


@pytest.mark.parametrize("kind", ["kohya", "a1111"])
def test_kohyas_and_a1111s_files_are_the_same_model(kind, tmp_path):
    files = EXPORTS[kind](trained("lora and words"), tmp_path)
    embeddings = tmp_path / "embeddings"
    hut = embeddings / "hut.safetensors"
    assert files == [tmp_path / "mine.safetensors", hut, embeddings / "cat.safetensors"]
    pipeline = reference()
    pipeline.load_lora_weights(tmp_path, weight_name="mine.safetensors")
    for path in files[1:]:
        assert load_file(path).keys() == {"emb_params"}
        pipeline.load_textual_inversion(path, token=f"<{path.stem}>")
    _same(theirs(pipeline), "lora and words")


def test_a_kohya_lora_of_every_layer_is_the_same_model(tmp_path):
    EXPORTS["kohya"](trained("lora everywhere"), tmp_path)
    pipeline = reference()
    pipeline.load_lora_weights(tmp_path, weight_name="mine.safetensors")
    _same(theirs(pipeline), "lora everywhere")


def test_kohyas_metadata_is_there(tmp_path):
    (path,) = EXPORTS["kohya"](trained("lora everywhere"), tmp_path)
    metadata = _metadata(path)
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "1.5",
        "ss_base_model_version": "sd_v1_v",
        "ss_v2": "False",
        "ss_sd_model_name": "tiny",
        "ss_output_name": "mine",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "v",
        "modelspec.trigger_phrase": "in watercolor",
    }
    assert metadata.items() >= expected.items()


MERGED = ["lora everywhere", "lora and words", "custom_diffusion", "svdiff", "full"]


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_folder_is_the_same_model(name, tmp_path):
    files = EXPORTS["pipeline"](trained(name), tmp_path)
    assert set(files) == {path for path in tmp_path.rglob("*") if path.is_file()}
    _same(theirs(follow_card(tmp_path, None)), name)
    again = load(str(tmp_path))
    if trained(name).what.words is not None:
        again = dataclasses.replace(again, expand=trained(name).model.expand)
    _same(worlds.sampled(again), name)


def test_merging_leaves_the_model_as_it_is(tmp_path):
    model = trained("lora and words").model
    before = worlds.sampled(model)
    merged.merged(model, WHAT["lora and words"])
    np.testing.assert_array_equal(worlds.sampled(model), before)


def test_full_training_has_a_folder_for_diffusers(tmp_path):
    EXPORTS["diffusers"](trained("full"), tmp_path)
    assert (tmp_path / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["lora everywhere", "custom_diffusion", "svdiff", "full"])
def test_a_single_file_is_the_same_model(name, tmp_path):
    files = EXPORTS["single_file"](trained(name), tmp_path)
    pipeline = StableDiffusionPipeline.from_single_file(
        str(files[0]),
        config=str(worlds.reference_folder()),
        local_files_only=True,
        safety_checker=None,
    )
    for path in files[1:]:  # new words are no part of it
        pipeline.load_textual_inversion(path, token=f"<{path.stem}>")
    _same(theirs(pipeline), name)
    metadata = _metadata(files[0])
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["modelspec.resolution"] == "16x16"


@pytest.mark.parametrize("name", WHAT)
def test_our_own_file_comes_back(name, tmp_path):
    (path,) = EXPORTS["styledrop"](trained(name), tmp_path)
    model, what = trainable.load(worlds.base(), path)
    assert what == WHAT[name]
    np.testing.assert_allclose(worlds.sampled(model), ours(name), atol=1e-6)


def test_half_precision_is_close_and_half_as_large(tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        files = EXPORTS["diffusers"](trained("lora and words"), tmp_path / dtype, dtype=dtype)
        tensors = load_file(files[0]) | load_file(files[1])
        assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
        sizes[dtype] = sum(tensor.nbytes for tensor in tensors.values())
    assert sizes["float32"] == 2 * sizes["float16"]
    pipeline = follow_card(tmp_path / "float16", reference())
    _same(theirs(pipeline), "lora and words", tolerance=0.1)
    for kind in ("peft", "kohya", "pipeline", "single_file", "styledrop"):
        files = EXPORTS[kind](trained("lora"), tmp_path / kind, dtype="float16")
        for path in files:
            if path.suffix == ".safetensors":
                assert {str(tensor.dtype) for tensor in load_file(path).values()} == {"float16"}


REFUSED = {
    (
        "styledrop",
        "pipeline",
    ): "bottlenecks are not linear, so it cannot be merged into the weights",
    ("styledrop", "single_file"): "bottlenecks are not linear",
    ("styledrop", "diffusers"): "no such file for styledrop",
    ("styledrop", "kohya"): "no such file for styledrop, only for lora and textual_inversion",
    ("svdiff", "peft"): "no such file for svdiff, only for lora",
    ("svdiff", "a1111"): "no such file for svdiff",
    ("svdiff", "diffusers"): "no such file for svdiff",
    ("words", "single_file"): "new words alone leave the base's weights as they are",
    ("words", "peft"): "no such file for textual_inversion, only for lora",
    ("custom_diffusion", "kohya"): "no such file for custom_diffusion and textual_inversion",
    ("full", "peft"): "no such file for full",
}


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_has_no_such_file_says_so_in_one_line(name, kind, tmp_path):
    reasons = possible(trained(name))
    with pytest.raises(UserError) as error:
        EXPORTS[kind](trained(name), tmp_path / "out")
    message = str(error.value)
    assert message.startswith(f"export {kind}: {reasons[kind]}; possible: --format ")
    assert REFUSED[name, kind] in message and "\n" not in message and len(message) < 300
    offered = message.rpartition("--format ")[2].split(" or ")
    assert offered == [each for each, reason in reasons.items() if not reason]
    assert "styledrop" in offered and not (tmp_path / "out").exists()


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype: found 'float61', expected float32 or float16; did"):
        EXPORTS["diffusers"](trained("lora"), tmp_path, dtype="float61")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("emoji128-muse", "emoji128-muse"),
        ("/home/me/models/mine", "mine"),
        ("~/tuned.safetensors", "tuned.safetensors"),
        ("models/tuned.safetensors", "tuned.safetensors"),
    ],
)
def test_files_for_others_do_not_name_folders_of_this_machine(name, title):
    assert dataclasses.replace(trained("lora"), base_name=name).base_title == title


def test_the_card_says_how_to_use_it(tmp_path):
    EXPORTS["diffusers"](trained("lora"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    for words in (
        'base_model: "tiny"',
        "- lora",
        'instance_prompt: "in watercolor"',
        "Trained on tiny with styledrop_jax.",
        "- a cat in watercolor",
    ):
        assert words in card
    EXPORTS["diffusers"](trained("words"), tmp_path)
    assert "<hut> <cat>" in (tmp_path / "README.md").read_text(), "our own card is replaced"
    (tmp_path / "README.md").write_text("my project")
    files = EXPORTS["diffusers"](trained("lora"), tmp_path)
    assert _names(files) == ["pytorch_lora_weights.safetensors"]
    assert (tmp_path / "README.md").read_text() == "my project"


EVERY = lora.Config(rank=2, alpha=6.0, targets="all")


def _muse(tiny_muse, what):
    model = worlds.with_state(tiny_muse, what)
    return Trained(base=tiny_muse, model=model, what=what, base_name="tiny", info={})


def _logits(model, prompt="a red house"):
    """Of the transformer, for one grid of tokens, [4, 4, v]."""
    tokens = np.arange(16, dtype=np.int32).reshape(1, 4, 4)
    text = model.encode_text([prompt])
    return np.asarray(model.denoiser(tokens, text.states, text.pooled, model.micro[None]))[0]


@torch.no_grad()
def _their_logits(pipeline, model, prompt="a red house"):
    ids = torch.from_numpy(np.asarray(model.text_ids([prompt]))).long()
    out = pipeline.text_encoder(ids, output_hidden_states=True)
    tokens = torch.arange(16).reshape(1, 4, 4)
    logits = pipeline.transformer(
        tokens,
        encoder_hidden_states=out.hidden_states[-2],
        pooled_text_emb=out.text_embeds,
        micro_conds=torch.from_numpy(np.asarray(model.micro)[None].copy()),
    )
    return logits.permute(0, 2, 3, 1).numpy()[0]


def _amused(folder: Path):
    return AmusedPipeline.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def amused_folder(tiny_muse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("amused")
    merged.save(folder, tiny_muse, dtype="float32")
    return folder


@pytest.mark.parametrize("kind", ["diffusers", "peft"])
def test_a_muse_lora_is_loaded_by_the_reference(kind, tiny_muse, amused_folder, tmp_path):
    exported = _muse(tiny_muse, Trainable(denoiser=EVERY))
    EXPORTS[kind](exported, tmp_path)
    pipeline = follow_card(tmp_path, _amused(amused_folder))
    expected = _logits(exported.model)
    assert np.abs(expected - _logits(tiny_muse)).max() > 0.1
    np.testing.assert_allclose(_their_logits(pipeline, exported.model), expected, atol=1e-3)


def test_a_merged_muse_is_the_same_model(tiny_muse, tmp_path):
    what = Trainable(denoiser=EVERY, text=EVERY, words=worlds.WORDS)
    config = dataclasses.replace(tiny_muse.text.config, eos_token_id=2)  # as in old configs
    text = trainable.copy(tiny_muse.text)
    text.config = config
    exported = _muse(dataclasses.replace(tiny_muse, text=text), what)
    EXPORTS["pipeline"](exported, tmp_path)
    pipeline = follow_card(tmp_path, None)
    prompt = "a <hut> of <cat>"
    expected = _logits(exported.model, prompt)
    theirs = _their_logits(pipeline, exported.model, prompt)
    np.testing.assert_allclose(theirs, expected, atol=1e-3)
    again = dataclasses.replace(load(str(tmp_path)), expand=exported.model.expand)
    np.testing.assert_allclose(_logits(again, prompt), expected, atol=1e-3)


def test_a_muse_refuses_conventions_of_stable_diffusion(tiny_muse):
    reasons = possible(_muse(tiny_muse, Trainable(denoiser=EVERY)))
    assert reasons["kohya"] == reasons["a1111"] == "there is no such convention for a Muse"
    assert reasons["single_file"] == "a Muse has no such file"
    assert not reasons["diffusers"] and not reasons["pipeline"] and not reasons["peft"]
    reasons = possible(_muse(tiny_muse, Trainable(denoiser=EVERY, text=EVERY)))
    assert "its Muse pipeline reads no other file" in reasons["diffusers"]
    reasons = possible(_muse(tiny_muse, Trainable(denoiser=styledrop.Config())))
    assert [kind for kind, reason in reasons.items() if not reason] == ["styledrop"]
