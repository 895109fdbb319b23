"""What all tests share: how JAX compiles for them, and a Muse small enough to draw with in a
test.
"""

import gc
import os
import signal
import tempfile

import pytest

# Tests compile much and run little. Set before JAX is imported, and inherited by the processes that
# tests run in or start: LLVM optimises nothing, in one piece, fused loops are written by the
# emitter that is three times as fast at it, and each program is compiled once for all of them. XLA
# ends a process over a flag that it does not know: one that a later version drops goes from here.
_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = " ".join((*_FLAGS, os.environ.get("XLA_FLAGS", "")))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(
        prefix="styledrop-compiled-"
    )  # lives as long as the session
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
_CACHE = tempfile.TemporaryDirectory(prefix="styledrop-cache-")  # the user's own stays as it is
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# The reference's models are as small: a second thread of torch would wait for work by spinning.
os.environ["OMP_NUM_THREADS"] = "1"


# A shell has what it starts in the background ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files of few tests that take long: begun last, one process would wait for the other's.
_FIRST = ("test_hosts", "test_kills", "test_pretrain", "test_examples", "test_mesh", "test_export")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in _FIRST)


def pytest_collection_finish():
    """Python looks for garbage neither among all that was imported nor at each few new objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def tiny_muse():
    """A Muse of random weights: 4×4 tokens of 64 codes, 8-pixel images, a text tower of 12
    tokens.
    """
    import numpy as np
    from flax import nnx

    from styledrop_jax.io import pretrained
    from styledrop_jax.models import clip, uvit, vqgan
    from styledrop_jax.models.tokenizer import train_tokenizer
    from styledrop_jax.pipelines.muse import Muse

    def noisy(build, rules, seed: int) -> nnx.Module:
        """Every weight random: at their initial zeros, norms and biases would hide what they do."""
        rng = np.random.default_rng(seed)
        shapes = pretrained.shapes(nnx.eval_shape(build), rules)
        tensors = {
            name: rng.normal(
                "norm" in name and name.endswith("weight"),
                1.0 if "quantize" in name else 0.25,
                shape,
            )
            for name, shape in shapes.items()
        }
        return pretrained.load(build, tensors, rules, source="random")

    tokenizer = train_tokenizer(
        ["a cat in watercolor painting style", "a red house", "a dog"], 530, 12
    )
    denoiser = uvit.Config(
        hidden_size=32,
        cond_embed_dim=16,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=24,
        vocab_size=72,
        codebook_size=64,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        sample_size=4,
    )
    codec = vqgan.Config(
        block_out_channels=(8, 8),
        latent_channels=4,
        num_vq_embeddings=64,
        vq_embed_dim=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    text = clip.TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Muse(
        name="tiny",
        base_hash="0" * 64,
        denoiser=noisy(lambda: uvit.UVit(denoiser, rngs=pretrained.ONE_KEY), uvit.RULES, 1),
        autoencoder=noisy(lambda: vqgan.VQModel(codec, rngs=pretrained.ONE_KEY), vqgan.RULES, 2),
        text=noisy(lambda: clip.ClipText(text, rngs=pretrained.ONE_KEY), clip.RULES, 3),
        tokenizer=tokenizer,
    )
