"""The T5 encoder against transformers: names, shapes, values, configs and export."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from reference_models import close, loaded_whole, randomize, shapes
from transformers.models.t5.modeling_t5 import T5Attention

from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.t5 import RULES, Config, T5Encoder, position_buckets

SMALL = {"vocab_size": 60, "d_model": 32, "d_ff": 48, "num_layers": 3}
CONFIGS = {
    "v1.0": {"feed_forward_proj": "relu", "num_heads": 4, "d_kv": 8},
    "v1.1": {"feed_forward_proj": "gated-gelu", "num_heads": 4, "d_kv": 16},
    "few buckets": {
        "feed_forward_proj": "gated-gelu",
        "num_heads": 2,
        "d_kv": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-4,
    },
}
IDS = np.random.default_rng(0).integers(2, 60, (3, 20))
MASK = np.arange(20)[None] < np.array([[20], [13], [1]])


def _reference(name: str) -> transformers.T5EncoderModel:
    return randomize(transformers.T5EncoderModel(transformers.T5Config(**SMALL, **CONFIGS[name])))


def _load(folder) -> T5Encoder:
    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    tensors = pretrained.Tensors(pretrained.weight_files(folder, "model"), RULES)
    return pretrained.load(
        lambda: T5Encoder(config, rngs=pretrained.ONE_KEY), tensors, RULES, source="t5"
    )


@pytest.mark.parametrize(
    ("preset", "public"),
    [
        (Config.t5_base(), {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
        (
            Config.t5_xxl(),
            {
                "d_model": 4096,
                "d_ff": 10240,
                "num_layers": 24,
                "num_heads": 64,
                "feed_forward_proj": "gated-gelu",
            },
        ),
    ],
    ids=["t5-base", "t5-v1_1-xxl"],
)
def test_presets_have_the_public_names_and_shapes(preset, public):
    config = transformers.T5Config(**public, d_kv=64, vocab_size=32128)
    theirs = shapes(lambda: transformers.T5EncoderModel(config))
    tied = theirs.pop("encoder.embed_tokens.weight")  # and saved once
    assert tied == theirs["shared.weight"]
    abstract = nnx.eval_shape(lambda: T5Encoder(preset, rngs=pretrained.ONE_KEY))
    assert pretrained.shapes(abstract, RULES) == theirs
    assert Config.from_dict(config.to_dict()) == preset


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_agrees_and_returns(name, tmp_path):
    reference = _reference(name)
    reference.save_pretrained(tmp_path / "in")
    model = _load(tmp_path / "in")
    ids = torch.from_numpy(IDS)
    mask = torch.from_numpy(MASK)
    theirs = reference(ids, attention_mask=mask.long()).last_hidden_state
    close(model(jnp.asarray(IDS)), reference(ids).last_hidden_state)
    close(model(jnp.asarray(IDS), mask=jnp.asarray(MASK)), theirs)

    pretrained.save(tmp_path / "out" / "model.safetensors", pretrained.export(model, RULES))
    (tmp_path / "out" / "config.json").write_text(json.dumps(model.config.to_dict()))
    again, info = transformers.T5EncoderModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert loaded_whole(info)
    assert torch.equal(again(ids, attention_mask=mask.long()).last_hidden_state, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_agree(name, tmp_path):
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    block = _load(tmp_path).encoder.block[0]
    theirs = reference.encoder.block[0]
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 20, 32)).astype(np.float32))
    close(block.layer[1](x.numpy()), theirs.layer[1](x))
    attend = block.layer[0].SelfAttention
    their_attend = theirs.layer[0].SelfAttention
    bias = their_attend.compute_bias(20, 20)
    close(attend.position_bias(20), bias)
    ours = attend(x.numpy(), bias=bias.detach().numpy(), mask=None)
    close(ours, their_attend(x, position_bias=bias)[0])


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (64, 300)])
def test_buckets_round_as_in_the_reference(buckets, max_distance):
    distance = torch.arange(400)[None] - torch.arange(400)[:, None]
    theirs = T5Attention._relative_position_bucket(
        distance, num_buckets=buckets, max_distance=max_distance
    )
    ours = position_buckets(400, buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_the_encoder_of_a_whole_model_loads(tmp_path):
    config = transformers.T5Config(**SMALL, **CONFIGS["v1.1"])
    torch.manual_seed(0)
    whole = transformers.T5ForConditionalGeneration(config).train(False)
    whole.save_pretrained(tmp_path)
    theirs = whole.encoder(torch.from_numpy(IDS)).last_hidden_state
    close(_load(tmp_path)(jnp.asarray(IDS)), theirs)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"feed_forward_proj": "gated-silu"}, "'gated-silu', expected 'relu'"),
        ({"model_type": "mt5"}, "is 'mt5'"),
    ],
)
def test_unsupported_configs_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        Config.from_dict(values)
