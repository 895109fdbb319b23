"""The U-ViT against diffusers' UVit2DModel: names, shapes, values, export and gradients."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
import torch
from diffusers import UVit2DModel
from flax import nnx

from styledrop_jax import tree
from styledrop_jax.errors import UserError
from styledrop_jax.io import pretrained
from styledrop_jax.models.uvit import RULES, UVit
from styledrop_jax.models.uvit_config import Config

PUBLIC = {  # transformer/config.json of amused/amused-256; -512 differs in three fields
    "_class_name": "UVit2DModel",
    "_diffusers_version": "0.25.0.dev0",
    "attention_dropout": 0.0,
    "block_num_heads": 12,
    "block_out_channels": 768,
    "codebook_size": 8192,
    "cond_embed_dim": 768,
    "downsample": False,
    "encoder_hidden_size": 768,
    "hidden_dropout": 0.0,
    "hidden_size": 1024,
    "in_channels": 768,
    "intermediate_size": 2816,
    "layer_norm_eps": 1e-06,
    "ln_elementwise_affine": True,
    "micro_cond_embed_dim": 1280,
    "micro_cond_encode_dim": 256,
    "num_attention_heads": 16,
    "num_hidden_layers": 22,
    "num_res_blocks": 3,
    "sample_size": 16,
    "upsample": False,
    "use_bias": False,
    "vocab_size": 8256,
}
PUBLIC_512 = PUBLIC | {"downsample": True, "upsample": True, "sample_size": 32}
SMALL = Config(
    hidden_size=24,
    cond_embed_dim=10,
    micro_cond_encode_dim=6,
    micro_cond_embed_dim=30,
    encoder_hidden_size=14,
    vocab_size=40,
    codebook_size=32,
    in_channels=20,
    block_out_channels=16,
    num_res_blocks=1,
    block_num_heads=2,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    sample_size=4,
)
CONFIGS = {
    "two blocks, odd grid": dataclasses.replace(SMALL, num_res_blocks=2),
    "resampled, biases, equal widths": dataclasses.replace(
        SMALL, downsample=True, upsample=True, use_bias=True, hidden_size=16, num_attention_heads=4
    ),
    "resampled, norms without scales": dataclasses.replace(
        SMALL,
        downsample=True,
        upsample=True,
        ln_elementwise_affine=False,
        layer_norm_eps=1e-3,
        block_num_heads=4,
    ),
}
GRIDS = dict(zip(CONFIGS, [(3, 5), (6, 4), (4, 8)], strict=True))  # height and width in tokens
RESAMPLED = "resampled, biases, equal widths"
PARTS = ("embed", "cond_embed", "down_block", "transformer_layers.1", "up_block", "mlm_layer")


def _reference(name: str) -> UVit2DModel:
    return reference_models.randomize(UVit2DModel.from_config(CONFIGS[name].to_dict()))


def _ours(reference: UVit2DModel, config: Config, dtype=jnp.float32) -> UVit:
    def build() -> UVit:
        return UVit(config, rngs=pretrained.ONE_KEY, dtype=dtype)

    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    return pretrained.load(build, tensors, RULES, source="reference")


def _check_shapes(config: Config, reference: dict) -> None:
    """Asserts that our tensors are those of the reference with the config `reference`."""
    expected = reference_models.shapes(lambda: UVit2DModel.from_config(reference))
    model = nnx.eval_shape(lambda: UVit(config, rngs=pretrained.ONE_KEY))
    assert tree.differences(pretrained.shapes(model, RULES), expected) == []


def _inputs(name: str) -> tuple[np.ndarray, ...]:
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (2, *GRIDS[name])).astype(np.int32)
    text = rng.standard_normal((2, 7, config.encoder_hidden_size), np.float32)
    pooled = rng.standard_normal((2, config.cond_embed_dim), np.float32)
    micro = np.array([[64, 48, 0, 3, 6], [512, 512, 7, 0, 5.5]], np.float32)
    return tokens, text, pooled, micro


def _last(x: torch.Tensor) -> np.ndarray:
    """Channels last."""
    return x.detach().numpy().transpose(0, 2, 3, 1) if x.ndim == 4 else x.detach().numpy()


@torch.no_grad()
def _run_reference(
    model: UVit2DModel, inputs: tuple[np.ndarray, ...]
) -> tuple[dict[str, tuple], np.ndarray]:
    """{submodule: (its inputs as ours takes them, its output)}, and the logits."""
    calls = {}

    def record(path):
        def hook(_, args, kwargs, output):
            cond = kwargs.get("added_cond_kwargs", kwargs).get("pooled_text_emb")
            inputs = [_last(args[0])]
            if cond is not None:
                inputs.append(_last(kwargs["encoder_hidden_states"]))
                inputs.append(_last(torch.nn.functional.silu(cond)))
            calls[path] = (tuple(inputs), _last(output))

        return hook

    handles = []
    for path in PARTS:
        part = model.get_submodule(path)
        handles.append(part.register_forward_hook(record(path), with_kwargs=True))
    logits = _last(model(torch.from_numpy(inputs[0]).long(), *map(torch.from_numpy, inputs[1:])))
    for handle in handles:
        handle.remove()
    return calls, logits


@nnx.jit
def _run_ours(
    model: UVit, calls: dict[str, tuple], inputs: tuple[jax.Array, ...]
) -> dict[str, jax.Array]:
    outputs = {"whole": model(*inputs)}
    for path in PARTS:
        part = model
        for name in path.split("."):
            part = part[int(name)] if name.isdigit() else getattr(part, name)
        outputs[path] = part(*calls[path])
    return outputs


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_match_the_reference(name: str):
    reference = _reference(name)
    inputs = _inputs(name)
    calls, logits = _run_reference(reference, inputs)
    arguments = {}
    expected = {"whole": logits}
    for path, (given, output) in calls.items():
        arguments[path] = given
        expected[path] = output
    found = _run_ours(_ours(reference, CONFIGS[name]), arguments, inputs)
    assert found["whole"].shape == (2, *GRIDS[name], CONFIGS[name].codebook_size)
    assert float(np.abs(logits).max()) > 0.1
    for path in ("whole", *PARTS):
        print(f"\nmax abs error, {name}, {path}: {np.abs(found[path] - expected[path]).max():.1e}")
        np.testing.assert_allclose(found[path], expected[path], atol=1e-4, rtol=1e-4, err_msg=path)


@pytest.mark.parametrize("public", [PUBLIC, PUBLIC_512], ids=["256", "512"])
def test_every_tensor_of_the_public_checkpoints_has_a_place(public: dict):
    _check_shapes(Config.from_dict(public), public)


def test_presets_are_the_public_configs():
    assert Config.from_dict(PUBLIC) == Config.amused_256()
    assert Config.from_dict(PUBLIC_512) == Config.amused_512()


def test_export_reloads_in_the_reference(tmp_path):
    reference = _reference(RESAMPLED)
    inputs = _inputs(RESAMPLED)
    config = CONFIGS[RESAMPLED]
    tensors = pretrained.export(_ours(reference, config), RULES)
    pretrained.save(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    reloaded = UVit2DModel.from_pretrained(tmp_path)
    expected = _run_reference(reference, inputs)[1]
    np.testing.assert_array_equal(_run_reference(reloaded, inputs)[1], expected)
    assert Config.from_dict(dict(reloaded.config)) == config


def test_the_shipped_preset_is_one_the_reference_builds():
    _check_shapes(Config.emoji(), Config.emoji().to_dict())


@pytest.mark.parametrize("fresh", [False, True], ids=["trained", "fresh"])
def test_gradients_reach_every_parameter(fresh: bool):
    """Except where it is zero by construction.

    That is the gradient of a key's bias, which moves all logits of a softmax alike, and at first
    that of whatever acts only through the modulations, which are zero then.
    """
    config = CONFIGS[RESAMPLED]
    # One program, which is faster than a hundred small ones.
    build = nnx.jit(lambda: UVit(config, rngs=nnx.Rngs(0)))
    model = build() if fresh else _ours(_reference(RESAMPLED), config)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    inputs = _inputs(RESAMPLED)
    targets = np.random.default_rng(1).integers(0, config.codebook_size, inputs[0].shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            log_p = jax.nn.log_softmax(nnx.merge(graphdef, params, rest)(*inputs))
            return -jnp.mean(jnp.take_along_axis(log_p, targets[..., None], axis=-1))

        return jax.grad(loss)(params)

    for path, leaf in tree.flatten(gradient(params)).items():
        assert np.isfinite(leaf).all(), path
        zero = path.endswith("to_k.bias") or (fresh and path.startswith("cond_embed."))
        assert zero or jnp.abs(leaf).max() > 1e-9, path


class _Double(nnx.Module):
    def __call__(self, y: jax.Array) -> jax.Array:
        return 2 * y


@nnx.jit
def _logits(model: UVit, inputs: tuple[jax.Array, ...]) -> jax.Array:
    return model(*inputs)


def test_adapter_slots_act_on_the_branch_before_it_is_added():
    # Its linear layers have no bias, so doubling a kernel doubles the branch.
    name = "two blocks, odd grid"
    adapted = _ours(_reference(name), CONFIGS[name])
    for layer in adapted.transformer_layers:
        layer.attn_adapter = _Double()
        layer.mlp_adapter = _Double()
    scaled = _ours(_reference(name), CONFIGS[name])
    for layer in scaled.transformer_layers:
        for last in (layer.attn2.to_out[0], layer.ff.net[2]):
            last.kernel[...] = 2 * last.kernel[...]
    expected = _logits(scaled, _inputs(name))
    np.testing.assert_allclose(_logits(adapted, _inputs(name)), expected, atol=1e-5)


def test_bfloat16_compute_stays_close_and_returns_float32():
    reference = _reference(RESAMPLED)
    inputs = _inputs(RESAMPLED)
    found = _logits(_ours(reference, CONFIGS[RESAMPLED], jnp.bfloat16), inputs)
    expected = _run_reference(reference, inputs)[1]
    assert found.dtype == jnp.float32
    assert float(jnp.abs(found - expected).mean()) < 0.03 * float(np.abs(expected).mean())


def test_unsupported_configs_name_the_field():
    for change, field in (
        ({"hidden_dropout": 0.1}, "hidden_dropout"),
        ({"hidden_size": 1000}, "hidden_size"),
        ({"upsample": True}, "upsample"),
        ({"vocab_size": 8192}, "vocab_size"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
    ):
        with pytest.raises(UserError, match=field):
            Config.from_dict(PUBLIC | change)


def test_an_odd_grid_is_refused_when_it_would_be_halved():
    model = nnx.eval_shape(lambda: UVit(CONFIGS[RESAMPLED], rngs=pretrained.ONE_KEY))
    _, text, pooled, micro = _inputs(RESAMPLED)
    with pytest.raises(ValueError, match="even grid"):
        model(jnp.zeros((2, 3, 4), jnp.int32), text, pooled, micro)


def test_positional_masks_say_where_a_masked_token_is():
    """The mask token is embedded as the token of its place, which one may also give outright."""
    plain = CONFIGS[RESAMPLED]
    size = plain.codebook_size + 16 + 1
    config = dataclasses.replace(plain, positional_masks=True, vocab_size=size, sample_size=4)
    build = nnx.jit(lambda: UVit(config, rngs=nnx.Rngs(0)))  # one program, as above
    model = build()
    _, *rest = _inputs(RESAMPLED)

    def logits(tokens):
        return _logits(model, (tokens, *rest))

    masked = np.full((2, 4, 4), config.mask_token_id, np.int32)
    grid = np.arange(16, dtype=np.int32).reshape(4, 4)
    places = np.broadcast_to(config.codebook_size + grid, masked.shape)
    np.testing.assert_array_equal(logits(masked), logits(places))
    half = np.where(np.arange(4) < 2, masked, 5)
    placed = np.where(np.arange(4) < 2, places, 5)
    np.testing.assert_array_equal(logits(half), logits(placed))
    wide = np.full((2, 4, 8), config.mask_token_id, np.int32)
    np.testing.assert_array_equal(logits(wide), logits(np.repeat(places, 2, axis=2)))
    reference = UVit2DModel.from_config(config.to_dict())
    assert reference.embed.embeddings.num_embeddings == config.vocab_size


def test_positional_masks_need_room_in_the_vocabulary():
    with pytest.raises(UserError, match="vocab_size is 40, expected at least 49"):
        dataclasses.replace(SMALL, positional_masks=True)
