"""CLIP against transformers: names, shapes, values, configs and export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from reference_models import channels_first, close, loaded_whole, randomize, shapes

from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.clip import RULES, Clip, ClipText, ClipVision, normalize
from styledrop_jax.models.clip_config import ClipConfig, TextConfig, VisionConfig

SMALL = {"hidden_size": 32, "intermediate_size": 48, "projection_dim": 24}
TEXTS = {
    "quick_gelu, highest id": {
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,
        "num_attention_heads": 4,
    },
    "gelu, first eos": {
        "hidden_act": "gelu",
        "eos_token_id": 98,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-4,
    },
    "quick_gelu, first eos": {
        "hidden_act": "quick_gelu",
        "eos_token_id": 98,
        "num_attention_heads": 8,
    },
}
VISIONS = {
    "quick_gelu": {
        "hidden_act": "quick_gelu",
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    },
    "gelu": {"hidden_act": "gelu", "num_attention_heads": 2, "image_size": 24, "patch_size": 4},
    "deep": {
        "hidden_act": "quick_gelu",
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "image_size": 30,
        "patch_size": 10,
    },
}
# BOS, words, EOS and two kinds of padding; row 2 holds an added token above EOS, which only the
# highest id looks at.
IDS = np.array(
    [[97, 5, 6, 98, 98, 98], [97, 7, 8, 9, 98, 1], [97, 99, 4, 98, 0, 0], [97, 98, 98, 98, 98, 98]]
)


def _text_dict(**changes) -> dict:
    sizes = {
        "vocab_size": 100,
        "num_hidden_layers": 3,
        "max_position_embeddings": 6,
        "bos_token_id": 97,
    }
    return SMALL | sizes | changes


def _vision_dict(**changes) -> dict:
    return SMALL | {"num_hidden_layers": 2} | changes


def _noisy(model: torch.nn.Module) -> torch.nn.Module:
    return randomize(model, 0.1)


def _load(reference: torch.nn.Module, build, folder):
    """Our model from the files and config that the reference saves."""
    reference.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    tensors = pretrained.Tensors(pretrained.weight_files(folder, "model"), RULES)
    return pretrained.load(lambda: build(values), tensors, RULES, source=str(folder))


def _text(values: dict) -> ClipText:
    return ClipText(TextConfig.from_dict(values), rngs=pretrained.ONE_KEY)


def _vision(values: dict) -> ClipVision:
    return ClipVision(VisionConfig.from_dict(values), rngs=nnx.Rngs(0))


def _clip(values: dict) -> Clip:
    return Clip(ClipConfig.from_dict(values), rngs=pretrained.ONE_KEY)


def _images(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 3), np.float32)


def _pixels(images: np.ndarray) -> torch.Tensor:
    return channels_first(normalize(images))


def _public_config(**changes) -> transformers.CLIPConfig:
    """openai/clip-vit-large-patch14's config.json."""
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    }
    return transformers.CLIPConfig(
        text_config=text | {"projection_dim": 768, "eos_token_id": 2, "bos_token_id": 0} | changes,
        vision_config=vision | {"projection_dim": 768, "image_size": 224, "patch_size": 14},
        projection_dim=768,
    )


@pytest.mark.parametrize("kind", ["whole", "text", "text with projection"])
def test_vit_l_14_has_the_public_names_and_shapes(kind):
    public = _public_config()
    text = public.text_config
    if kind == "whole":
        theirs = shapes(lambda: transformers.CLIPModel(public))
        abstract = nnx.eval_shape(lambda: Clip(ClipConfig.vit_l_14(), rngs=pretrained.ONE_KEY))
    elif kind == "text with projection":
        theirs = shapes(lambda: transformers.CLIPTextModelWithProjection(text))
        abstract = nnx.eval_shape(lambda: ClipText(TextConfig.vit_l_14(), rngs=pretrained.ONE_KEY))
    else:
        # transformers 5 leaves the prefix out; released files have it, and both read it.
        bare = shapes(lambda: transformers.CLIPTextModel(text))
        theirs = {f"text_model.{name}": shape for name, shape in bare.items()}
        config = TextConfig.vit_l_14(projection=False)
        abstract = nnx.eval_shape(lambda: ClipText(config, rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(abstract, RULES) == theirs


def test_presets_read_as_the_public_configs():
    assert ClipConfig.from_dict(_public_config().to_dict()) == ClipConfig.vit_l_14()
    text = _public_config().text_config.to_dict() | {"architectures": ["CLIPTextModel"]}
    assert TextConfig.from_dict(text) == TextConfig.vit_l_14(projection=False)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_text_tower_agrees_and_returns(name, projection, tmp_path):
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    reference = _noisy(kind(transformers.CLIPTextConfig(**_text_dict(**TEXTS[name]))))
    model = _load(reference, _text, tmp_path / "in")
    ids = torch.from_numpy(IDS)
    theirs = reference(ids, output_hidden_states=True)
    ours = model(jnp.asarray(IDS))
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for our_state, their_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        close(our_state, their_state)
    close(ours.last_hidden_state, theirs.last_hidden_state)
    if projection:
        close(ours.embeds, theirs.text_embeds)
        close(ours.pooled, reference.text_model(ids).pooler_output)
    else:
        assert ours.embeds is None
        close(ours.pooled, theirs.pooler_output)

    pretrained.save(tmp_path / "out" / "model.safetensors", pretrained.export(model, RULES))
    (tmp_path / "out" / "config.json").write_text(json.dumps(model.config.to_dict()))
    again, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded_whole(info)
    assert torch.equal(again(ids).last_hidden_state, theirs.last_hidden_state)


def test_text_layers_agree(tmp_path):
    config = transformers.CLIPTextConfig(**_text_dict(**TEXTS["gelu, first eos"]))
    reference = _noisy(transformers.CLIPTextModel(config))
    model = _load(reference, _text, tmp_path).text_model
    embedded = reference.embeddings(torch.from_numpy(IDS))
    close(model.embeddings(jnp.asarray(IDS)), embedded)
    x = embedded.detach()
    layer = model.encoder.layers[1]
    their_layer = reference.encoder.layers[1]
    close(layer.mlp(x.numpy()), their_layer.mlp(x))
    close(layer.self_attn(x.numpy(), mask=None), their_layer.self_attn(x)[0])
    close(layer(x.numpy(), mask=None), their_layer(x, None))


@pytest.mark.parametrize("name", VISIONS)
def test_vision_tower_agrees_and_returns(name, tmp_path):
    kind = transformers.CLIPVisionModelWithProjection
    reference = _noisy(kind(transformers.CLIPVisionConfig(**_vision_dict(**VISIONS[name]))))
    model = _load(reference, _vision, tmp_path / "in")
    images = _images(model.config.image_size)
    pixels = _pixels(images)
    embedded = reference.vision_model.embeddings(pixels)
    close(model.vision_model.embeddings(normalize(images)), embedded)
    theirs = reference(pixels).image_embeds
    close(model(images), theirs)

    pretrained.save(tmp_path / "out" / "model.safetensors", pretrained.export(model, RULES))
    (tmp_path / "out" / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert torch.equal(kind.from_pretrained(tmp_path / "out")(pixels).image_embeds, theirs)


@pytest.mark.parametrize(("text", "vision"), list(zip(TEXTS, VISIONS, strict=True)))
def test_clip_agrees_and_returns(text, vision, tmp_path):
    values = {
        "text_config": _text_dict(**TEXTS[text]),
        "vision_config": _vision_dict(**VISIONS[vision]),
    }
    # Its projection_dim is not that of the towers, and wins.
    reference = _noisy(transformers.CLIPModel(transformers.CLIPConfig(**values, projection_dim=20)))
    model = _load(reference, _clip, tmp_path / "in")
    images = _images(model.config.vision.image_size)
    inputs = {"input_ids": torch.from_numpy(IDS), "pixel_values": _pixels(images)}
    theirs = reference(**inputs)
    close(model(jnp.asarray(IDS), images), theirs.logits_per_image)

    pretrained.save(tmp_path / "out" / "model.safetensors", pretrained.export(model, RULES))
    (tmp_path / "out" / "config.json").write_text(json.dumps(model.config.to_dict()))
    again = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    assert torch.equal(again(**inputs).logits_per_image, theirs.logits_per_image)


def test_the_text_half_of_a_whole_model_is_a_text_encoder(tmp_path):
    config = ClipConfig.emoji64(vocab_size=600, width=32, text_layers=2, vision_layers=1)
    model = Clip(config, rngs=nnx.Rngs(0))
    pretrained.save(tmp_path / "model.safetensors", pretrained.export(model.text, RULES))
    (tmp_path / "config.json").write_text(json.dumps(config.text.to_dict()))
    reference = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    ids = np.array([[598, 3, 4, 599], [598, 599, 599, 599]])
    close(model.text(jnp.asarray(ids)).embeds, reference(torch.from_numpy(ids)).text_embeds)


def test_old_files_with_position_ids_load(tmp_path):
    config = transformers.CLIPTextConfig(**_text_dict(**TEXTS["gelu, first eos"]))
    reference = _noisy(transformers.CLIPTextModel(config))
    tensors = {"text_model.embeddings.position_ids": np.arange(6)[None]}
    for name, tensor in reference.state_dict().items():
        tensors[f"text_model.{name}"] = tensor.numpy()
    pretrained.save(tmp_path / "model.safetensors", tensors)
    values = reference.config.to_dict() | {"architectures": ["CLIPTextModel"]}
    old = pretrained.Tensors([tmp_path / "model.safetensors"], RULES)
    model = pretrained.load(lambda: _text(values), old, RULES, source="old")
    close(model(jnp.asarray(IDS)).pooled, reference(torch.from_numpy(IDS)).pooler_output)


def test_shorter_padding_leaves_the_pooled_features_alone():
    config = TextConfig(**_text_dict(**TEXTS["gelu, first eos"]))
    model = ClipText(config, rngs=nnx.Rngs(0))
    ids = jnp.array([[97, 5, 6, 98, 98, 98]])
    np.testing.assert_allclose(model(ids).embeds, model(ids[:, :4]).embeds, atol=1e-6)
    with pytest.raises(ValueError, match="at most"):
        model(jnp.zeros((1, 7), int))


def test_vision_may_look_at_some_patches_alone():
    model = _vision(_vision_dict(**VISIONS["gelu"]))
    images = _images(24)
    every = np.tile(np.arange(36), (3, 1))
    np.testing.assert_allclose(model(images, every), model(images), atol=1e-6)
    some = every[:, ::2]  # columns 0, 2 and 4 of every row
    changed = images.copy().reshape(3, 24, 6, 4, 3)
    changed[:, :, 1::2] = 0
    seen = model(images, some)
    np.testing.assert_allclose(model(changed.reshape(images.shape), some[:, ::-1]), seen, atol=1e-6)
    assert np.abs(seen - model(images)).max() > 1e-3


def test_old_config_dicts_win_as_in_transformers():
    values = {
        "text_config": {"eos_token_id": 2, "hidden_size": 32, "num_attention_heads": 4},
        "text_config_dict": {"hidden_size": 64, "num_attention_heads": 4},
        "vision_config": _vision_dict(**VISIONS["gelu"]),
    }
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(values))).text_config
    ours = ClipConfig.from_dict(values).text
    assert ours.hidden_size == theirs.hidden_size == 64
    assert ours.eos_token_id == theirs.eos_token_id == 49407


@pytest.mark.parametrize(
    ("cls", "changes", "words"),
    [
        (
            TextConfig,
            {"hidden_act": "relu"},
            "hidden_act is 'relu', expected one of quick_gelu, gelu",
        ),
        (TextConfig, {"model_type": "siglip"}, "model_type is 'siglip'"),
        (
            TextConfig,
            {"num_attention_heads": 5},
            "hidden_size is 512, expected a multiple of num_attention_heads 5",
        ),
        (VisionConfig, {"num_channels": 4}, "num_channels is 4, expected 3"),
        (VisionConfig, {"image_size": [16, 32]}, "image_size"),
        (
            VisionConfig,
            {"image_size": 20, "patch_size": 8},
            "image_size is 20, expected a multiple of patch_size 8",
        ),
    ],
)
def test_unsupported_configs_are_refused(cls, changes, words):
    with pytest.raises(UserError, match=words):
        cls.from_dict(changes)


def test_bfloat16_computes_near_float32():
    config = ClipConfig.emoji64(vocab_size=600, width=32, text_layers=1, vision_layers=1)
    wide = Clip(config, rngs=nnx.Rngs(0))
    narrow = Clip(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(nnx.state(narrow, nnx.Param)):
        assert leaf.dtype == jnp.float32
    ids, images = jnp.array([[598, 3, 599]]), _images(64, 2)
    assert narrow.vision(images).dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow(ids, images), wide(ids, images), atol=0.3)


def test_config_survives_its_own_json():
    config = dataclasses.replace(ClipConfig.emoji64(), logit_scale_init_value=1.5)
    assert ClipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
