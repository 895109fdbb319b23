"""Stable Diffusion XL as a pipeline: the reference's samples, what trains in it, its folder."""

import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionXLPipeline
from flax import nnx

from styledrop_jax import trainable, tree
from styledrop_jax.adapters import custom_diffusion, lora, styledrop, svdiff
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.adapters.textual_inversion import Config, Token
from styledrop_jax.errors import UserError
from styledrop_jax.interchange import merged
from styledrop_jax.io.files import read_json, write_json
from styledrop_jax.models.tokenizer import save_tokenizer, train_tokenizer
from styledrop_jax.pipelines.base import Group, TrainSettings
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3
SCALE = 4.0
PROMPT = "a red house"
EVERY = lora.Config(rank=2, alpha=2.0, targets="all")
WORDS = Config(tokens=(Token(word="<hut>", initializer="a", vectors=2),))
WHAT = {
    "lora": Trainable(denoiser=EVERY, text=EVERY),
    "custom_diffusion": Trainable(denoiser=custom_diffusion.Config(), words=WORDS),
    "styledrop, svdiff": Trainable(denoiser=styledrop.Config(shared=False), text=svdiff.Config()),
}


@functools.cache
def base() -> StableDiffusion:
    loaded = load(str(tiny.stable_diffusion_xl()))
    assert isinstance(loaded, StableDiffusion) and loaded.is_xl
    return loaded


@functools.cache
def reference() -> Any:
    folder = tiny.home() / "reference_xl"
    merged.save(folder, base(), dtype="float32")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _copy(folder: Path) -> Path:
    return shutil.copytree(tiny.stable_diffusion_xl(), folder)


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1, *shape, 4), np.float32)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12)], ids=["square", "wide"])
def test_a_guided_sample_is_the_reference(shape):
    """Whose sizes are those of the image, and whose empty prompt is zeros."""
    noise = _noise(shape)
    graphdef, frozen = nnx.split(base().denoiser, ...)
    text = jax.tree.map(lambda x: x[:, None], base().encode_text([PROMPT, ""]))
    weights = jnp.tile(jnp.array([SCALE, 1 - SCALE]), (STEPS, 1))
    group = Group(graphdef, {}, nnx.as_pure(frozen), text, weights)
    found = base().sample([group], [0], sampler="ddim", steps=STEPS, latents=noise)
    with torch.no_grad():
        out = reference()(
            PROMPT,
            height=2 * shape[0],
            width=2 * shape[1],
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="latent",
        )
    expected = out.images.numpy().transpose(0, 2, 3, 1)
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_the_references(caplog):
    prompts = [PROMPT, "a dog", "a cat " * 40]
    with torch.no_grad():
        states, _, pooled, _ = reference().encode_prompt(prompts, device="cpu")
    found = base().encode_text([*prompts, ""])
    assert "cut:" in caplog.text
    np.testing.assert_allclose(found.states[:3], states, atol=1e-4)
    np.testing.assert_allclose(found.pooled[:3], pooled, atol=1e-4)
    assert not found.states[3].any() and not found.pooled[3].any()


def test_an_empty_prompt_is_zeros_unless_the_model_says_otherwise(tmp_path):
    folder = _copy(tmp_path / "xl")
    write_json(folder / "model_index.json", {"force_zeros_for_empty_prompt": False})
    other = load(str(folder))
    with torch.no_grad():
        states, _, pooled, _ = reference().encode_prompt([""], device="cpu")
    found = other.encode_text([""])
    np.testing.assert_allclose(found.states, states, atol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4)
    assert other.base_hash != base().base_hash
    write_json(folder / "model_index.json", {"force_zeros_for_empty_prompt": "yes"})
    with pytest.raises(UserError, match="force_zeros_for_empty_prompt is 'yes', expected true or"):
        load(str(folder))


def _gradient(what: Trainable) -> dict[str, jax.Array]:
    """Of one training step's loss, by dotted path."""
    model = trainable.attach(base(), what, rngs=nnx.Rngs(0))
    graphdef, state, rest = nnx.split(trainable.parts(model, what), trainable.trained(what), ...)
    noise = np.random.default_rng(0)
    # What starts as nothing lets no gradient through what feeds it.
    state = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape, np.float32), state)
    targets = model.encode_images(noise.random((1, 16, 16, 3), np.float32))
    tokens = model.text_tokens(["a red house in <hut> style"])
    keys = jax.random.split(jax.random.key(0), 1)

    def loss(state: Any, rest: Any, tokens: Any) -> jax.Array:
        parts = nnx.merge(graphdef, state, rest)
        text = model.text_features(parts.text if what.trains_text else model.text, tokens)
        each, _ = model.loss(TrainSettings())(parts.denoiser, targets, text, keys)
        return each.sum()

    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    gradient = jax.jit(jax.grad(loss), compiler_options=options)
    return tree.flatten(nnx.as_pure(gradient(nnx.as_pure(state), nnx.as_pure(rest), tokens)))


@pytest.mark.parametrize("kind", WHAT)
def test_every_trainable_trains_in_the_denoiser_and_in_both_towers(kind):
    what = WHAT[kind]
    gradient = _gradient(what)
    reached = {name for name, each in gradient.items() if np.asarray(each).any()}
    of = {name.split(".text_model")[0].split(".")[0:2][-1] for name in reached if "text" in name}
    assert of == ({"first", "second"} if what.trains_text else set())
    # The last layer of each tower and the final norms: nothing reads what the first's give.
    idle = r"text.first.text_model.encoder.layers.1", "text.first.text_model.final_layer_norm"
    for name in set(gradient) - reached:
        unread = name.startswith((*idle, "text.first.text_projection"))
        assert unread or "embedding" in name or name.endswith("k_proj.bias"), name
    assert any("add_embedding" in name for name in reached) == (kind == "lora")


def _moved(folder: Path, name: str, **change: Any) -> Path:
    path = folder / name / "config.json"
    write_json(path, read_json(path) | change)
    return folder


def test_the_refiner_is_refused_by_name(tmp_path):
    folder = _copy(tmp_path / "refiner")
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    _moved(folder, "unet", cross_attention_dim=12, projection_class_embeddings_input_dim=32)
    with pytest.raises(UserError, match=r"unet/config\.json: .*this is SDXL's refiner"):
        load(str(folder))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"cross_attention_dim": 30}, "expected the hidden_size 28 of text_encoder and"),
        (
            "unet",
            {"projection_class_embeddings_input_dim": 34},
            "a pooled text of width 10, expected 8, as text_encoder_2 gives it",
        ),
        ("text_encoder_2", {"architectures": ["CLIPTextModel"]}, "expected CLIPTextModelWith"),
        ("unet", {"in_channels": 7}, "unet has in_channels 7"),
    ],
)
def test_parts_that_do_not_fit_are_named(part, change, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        load(str(_moved(_copy(tmp_path / "xl"), part, **change)))
    assert "\n" not in str(error.value)


def test_a_single_tower_beside_the_unet_of_two_is_named(tmp_path):
    folder = _copy(tmp_path / "xl")
    for name in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(folder / name)
    with pytest.raises(UserError, match="expected 0, as there is no text_encoder_2"):
        load(str(folder))


def test_another_vocabulary_of_the_second_tower_is_named(tmp_path):
    folder = _copy(tmp_path / "xl")
    save_tokenizer(train_tokenizer(["a green cow"], 542, 64), folder / "tokenizer_2")
    with pytest.raises(UserError, match="tokenizer_2: found another vocabulary"):
        load(str(folder))
