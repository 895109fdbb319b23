"""Muse: prompts and pictures in and out, and a folder of the reference library's, number for
number."""

import copy
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from flax import nnx
from references import noisy
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.models import reading
from styledrop_jax.pipelines import muse
from styledrop_jax.pipelines.load import load

PROMPTS = [
    "a cat in watercolor painting style",
    "猫の絵、水彩",
    "قطة في الثلج",
    "🦊👩‍👩‍👧",
    "naïve café",
    "",
]


@pytest.fixture(scope="module")
def pipeline(tiny_muse) -> AmusedPipeline:
    """The reference pipeline, tiny and random, with the down- and upsampling of amused-512."""
    torch.manual_seed(0)
    tokenizer = tiny_muse.tokenizer
    sizes = {
        "hidden_size": 32,
        "cond_embed_dim": 16,
        "micro_cond_encode_dim": 8,
        "micro_cond_embed_dim": 40,
    }
    heads = {
        "block_num_heads": 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_res_blocks": 1,
    }
    transformer = UVit2DModel(
        **sizes,
        **heads,
        encoder_hidden_size=24,
        vocab_size=72,
        codebook_size=64,
        in_channels=16,
        block_out_channels=16,
        intermediate_size=48,
        downsample=True,
        upsample=True,
        sample_size=4,
    )
    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    pipeline = AmusedPipeline(
        vqvae=noisy(vqvae),
        tokenizer=tokenizer,
        text_encoder=noisy(CLIPTextModelWithProjection(text)),
        transformer=noisy(transformer),
        scheduler=AmusedScheduler(mask_token_id=71),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("amused")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder) -> muse.Muse:
    found = load(str(folder))
    assert isinstance(found, muse.Muse)
    return found


def _close(ours, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=1e-4, rtol=1e-4)


def test_a_diffusers_folder_is_loaded(loaded, folder):
    assert (loaded.name, loaded.grid, loaded.resolution, loaded.mask_id) == (str(folder), 4, 8, 71)
    assert len(loaded.base_hash) == 64


@pytest.mark.parametrize("part", ["transformer", "vqvae", "text_encoder"])
def test_the_weights_of_every_part_are_in_the_hash(part, loaded, folder, pipeline, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "model")
    assert load(str(changed)).base_hash == loaded.base_hash
    module = copy.deepcopy(getattr(pipeline, part))
    next(module.parameters()).data.view(-1)[0] += 1e-3
    module.save_pretrained(changed / part)
    assert load(str(changed)).base_hash != loaded.base_hash


def test_every_step_of_the_reference_pipeline_has_our_logits(loaded, pipeline):
    calls = []
    hook = pipeline.transformer.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((args[0], kwargs, out)), with_kwargs=True
    )
    tokens = pipeline(
        PROMPTS[:3],
        negative_prompt=["a dog", "", ""],
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    hook.remove()
    text = loaded.encode_text(["a dog", "", "", *PROMPTS[:3]])
    micro = jnp.tile(loaded.micro, (6, 1))
    forward = nnx.jit(lambda denoiser, *inputs: denoiser(*inputs))
    assert len(calls) == 3
    for inputs, kwargs, logits in calls:
        _close(text.states, kwargs["encoder_hidden_states"])
        _close(text.pooled, kwargs["pooled_text_emb"])
        _close(micro, kwargs["micro_conds"])
        ours = forward(loaded.denoiser, jnp.asarray(inputs.numpy()), *text, micro)  # [b, h, w, v]
        _close(ours, logits.permute(0, 2, 3, 1))
    assert logits.std() > 0.1 and (logits[0] - logits[3]).abs().max() > 0.01, "the prompt matters"

    shape = (3, 4, 4, 4)
    with torch.no_grad():
        pictures = pipeline.vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample.clip(
            0, 1
        )
    _close(loaded.decode_tokens(tokens.numpy()), pictures.permute(0, 2, 3, 1))


def test_the_shipped_model_opens_in_the_reference_library_and_agrees():
    pipeline = AmusedPipeline.from_pretrained(hub.SHIPPED / "emoji128-muse").to(torch.float32)
    model = load("emoji128-muse")
    assert isinstance(model, muse.Muse)
    prompts = ["a cat in pencil sketch style", ""]
    n = model.grid
    ids = pipeline.tokenizer(
        prompts,
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=pipeline.tokenizer.model_max_length,
    ).input_ids
    codes = model.denoiser.config.codebook_size
    tokens = np.random.default_rng(0).integers(0, codes, (2, n, n)).astype(np.int32)
    places = codes + np.arange(n * n, dtype=np.int32).reshape(
        n, n
    )  # the masked tokens' own, see `positional_masks`
    upper = np.arange(n)[:, None] < n // 2
    micro = jnp.tile(model.micro, (2, 1))
    with torch.no_grad():
        text = pipeline.text_encoder(ids, output_hidden_states=True)
        logits = pipeline.transformer(
            torch.from_numpy(np.where(upper, places, tokens)).long(),
            micro_conds=torch.from_numpy(np.asarray(micro).copy()),
            pooled_text_emb=text.text_embeds,
            encoder_hidden_states=text.hidden_states[-2],
        )
    ours = nnx.jit(lambda denoiser, *inputs: denoiser(*inputs))(
        model.denoiser, np.where(upper, model.mask_id, tokens), *model.encode_text(prompts), micro
    )
    _close(ours, logits.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("transformer/config.json", r"transformer/config\.json: missing"),
        (
            "vqvae/diffusion_pytorch_model.safetensors",
            r"vqvae: expected diffusion_pytorch_model\.safetensors",
        ),
        ("text_encoder/model.safetensors", r"text_encoder: expected model\.safetensors"),
        ("tokenizer", r"tokenizer: no tokenizer"),
    ],
)
def test_a_missing_part_is_named(part, words, folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "model")
    path = changed / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=words):
        load(str(changed))


def test_a_text_tower_without_projection_is_refused(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "model")
    path = changed / "text_encoder/config.json"
    config = json.loads(path.read_text()) | {"architectures": ["CLIPTextModel"]}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="found CLIPTextModel, expected CLIPTextModelWithProj"):
        load(str(changed))


def test_a_tokenizer_of_another_text_tower_is_refused(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "model")
    path = changed / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 3}))
    with pytest.raises(UserError, match=r"tokenizer: the tokenizer's end token is \d+, expected 3"):
        load(str(changed))


def test_each_distinct_prompt_is_encoded_once_and_order_is_kept(tiny_muse, monkeypatch):
    asked = []
    original = reading.tokenize

    def counting(tokenizer, prompts, length):
        asked.append(list(prompts))
        return original(tokenizer, prompts, length)

    monkeypatch.setattr(reading, "tokenize", counting)
    prompts = [PROMPTS[i] for i in (2, 0, 2, 5, 1, 0, 3, 4)]
    text = tiny_muse.encode_text(prompts)
    assert asked == [[PROMPTS[i] for i in (2, 0, 5, 1, 3, 4)]]
    assert text.states.shape == (8, 12, 24) and text.pooled.shape == (8, 16)
    for row, prompt in enumerate(prompts):
        alone = tiny_muse.encode_text([prompt])
        np.testing.assert_array_equal(text.states[row], alone.states[0])
        np.testing.assert_array_equal(text.pooled[row], alone.pooled[0])


def test_prompts_of_any_script_are_told_apart(tiny_muse):
    pooled = np.asarray(tiny_muse.encode_text(PROMPTS).pooled)
    assert np.isfinite(pooled).all()
    distances = np.abs(pooled[:, None] - pooled[None]).max(-1) + np.eye(len(PROMPTS))
    assert distances.min() > 1e-3


def test_more_prompts_than_a_batch(tiny_muse):
    prompts = [f"a cat {i}" for i in range(19)]
    text = tiny_muse.encode_text(prompts)
    assert text.pooled.shape == (19, 16)
    np.testing.assert_array_equal(text.pooled[18], tiny_muse.encode_text(prompts[18:]).pooled[0])


def test_images_become_tokens_and_images_again(tiny_muse):
    images = np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3), np.uint8)
    tokens = tiny_muse.encode_images(images)
    assert tokens.shape == (18, 4, 4) and tokens.dtype == np.int32 and len(np.unique(tokens)) > 8
    np.testing.assert_array_equal(tokens, tiny_muse.encode_images(images.astype(np.float32) / 255))
    pictures = tiny_muse.decode_tokens(tokens)
    assert pictures.shape == (18, 8, 8, 3) and pictures.dtype == np.float32
    assert 0 <= pictures.min() < pictures.max() <= 1
    np.testing.assert_array_equal(pictures[17], tiny_muse.decode_tokens(tokens[17:])[0])
    np.testing.assert_allclose(pictures, tiny_muse.decode_tokens(tokens, batch_size=3), atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_what_was_masked(tiny_muse):
    """Logits that know the answer at the first 8 positions: what is left is log 64 for the masked
    of the others."""
    tokens = np.random.default_rng(0).integers(0, 64, (6, 4, 4)).astype(np.int32)
    seen = {}

    class Knowing:
        config = tiny_muse.denoiser.config

        def __call__(self, inputs, states, pooled, micro, *, remat):
            seen.update(inputs=inputs, micro=micro)
            known = jnp.arange(16).reshape(4, 4, 1) < 8
            return 50.0 * jax.nn.one_hot(tokens, 64) * known

    text = tiny_muse.encode_text(PROMPTS)
    keys = jax.random.split(jax.random.key(0), 6)
    loss, metrics = muse.token_loss(Knowing(), jnp.asarray(tokens), text, tiny_muse.micro, keys)
    masked = np.asarray(seen["inputs"]).reshape(6, 16) == tiny_muse.mask_id
    np.testing.assert_array_equal(
        np.asarray(seen["inputs"]).reshape(6, 16)[~masked], tokens.reshape(6, 16)[~masked]
    )
    assert len(set(masked.sum(1))) > 1 and masked.any(1).all(), "each example has its own rate"
    np.testing.assert_allclose(loss, masked[:, 8:].sum(1) / masked.sum(1) * np.log(64), rtol=1e-4)
    np.testing.assert_allclose(metrics["mask_rate"], masked.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(seen["micro"], np.tile([8.0, 8, 0, 0, 6], (6, 1)))
