"""Stable Diffusion's text towers: `CLIPTextModel`s without projection, after the final norm."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from reference_models import close, loaded_whole, randomize, shapes

from styledrop_jax.io import hub, pretrained
from styledrop_jax.models.clip import RULES, ClipText
from styledrop_jax.models.clip_config import TextConfig
from styledrop_jax.pipelines import stable_diffusion_files

PUBLIC = {  # text_encoder/config.json
    "1.5": {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
}
PUBLIC["2.1"] = PUBLIC["1.5"] | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 8,
    "projection_dim": 20,
}
# BOS, words, EOS, and the padding of 1.x, which is EOS, and of 2.x, which is the token 0
IDS = np.array(
    [[98, 5, 6, 99, 99, 99, 99, 99], [98, 7, 8, 9, 99, 0, 0, 0], [98, 99, 0, 0, 0, 0, 0, 0]]
)


def _released(version: str) -> tuple[transformers.CLIPTextModel, dict[str, np.ndarray]]:
    """A small model of random weights and its tensors as released files name them."""
    config = transformers.CLIPTextConfig(**PUBLIC[version] | SMALL)
    reference = randomize(transformers.CLIPTextModel(config), 0.15)
    tensors = {"text_model.embeddings.position_ids": np.arange(8)[None]}
    for name, tensor in reference.state_dict().items():
        tensors[f"text_model.{name}"] = tensor.numpy()
    return reference, tensors


def _load(folder) -> ClipText:
    config = TextConfig.from_dict(hub.read_config(folder))
    tensors = pretrained.Tensors(pretrained.weight_files(folder, "model"), RULES)

    def build() -> ClipText:
        return ClipText(config, rngs=pretrained.ONE_KEY)

    return pretrained.load(build, tensors, RULES, source=str(folder))


@pytest.mark.parametrize("version", PUBLIC)
def test_public_configs_have_the_reference_names_and_shapes(version):
    config = TextConfig.from_dict(PUBLIC[version])
    public = transformers.CLIPTextConfig(**PUBLIC[version])
    bare = shapes(lambda: transformers.CLIPTextModel(public))
    theirs = {f"text_model.{name}": shape for name, shape in bare.items()}
    abstract = nnx.eval_shape(lambda: ClipText(config, rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(abstract, RULES) == theirs
    assert TextConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config == TextConfig.vit_l_14(projection=False)) == (version == "1.5")


@pytest.mark.parametrize("version", PUBLIC)
def test_the_conditioning_agrees_and_the_tower_returns(version, tmp_path):
    reference, tensors = _released(version)
    hub.save_component(tmp_path / "in", PUBLIC[version] | SMALL, tensors)
    model = _load(tmp_path / "in")
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        theirs = reference(ids)
    ours = model(jnp.asarray(IDS))
    close(ours.last_hidden_state, theirs.last_hidden_state)
    close(ours.pooled, theirs.pooler_output)
    assert ours.embeds is None
    normalized = np.abs(ours.last_hidden_state - ours.hidden_states[-1])
    assert normalized.max() > 0.1, "the final norm would not show"

    hub.save_component(tmp_path / "out", model.config.to_dict(), pretrained.export(model, RULES))
    read = transformers.CLIPTextModel.from_pretrained
    again, info = read(tmp_path / "out", output_loading_info=True)
    assert loaded_whole(info)
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, theirs.last_hidden_state)


def test_the_two_activations_differ(tmp_path):
    _, tensors = _released("1.5")

    def states(version):
        hub.save_component(tmp_path / version, PUBLIC[version] | SMALL, tensors)
        return _load(tmp_path / version)(jnp.asarray(IDS)).last_hidden_state

    quick = states("1.5")
    exact = states("2.1")
    assert float(jnp.abs(quick - exact).max()) > 1e-3, "agreement to 1e-4 says which one is used"


def test_the_text_tower_of_2_is_the_public_one():
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 2, "projection_dim": 768}
    public = {"architectures": ["CLIPTextModel"], "hidden_act": "gelu", **sizes, **ends}
    assert stable_diffusion_files.PRESETS[2]["text_encoder"] == TextConfig.from_dict(public)
