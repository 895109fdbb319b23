"""The smallest whole world: a Muse and a CLIP of random weights on disk, one finished run, and the
command line.

Each is made once a session, on first use. Tests that change a folder copy it.
"""

import dataclasses
import functools
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

ROOT = Path(__file__).parents[1]
PROMPTS = ("a cat", "a red house")
RESOLUTION = 16
_HOME = tempfile.TemporaryDirectory(prefix="styledrop-tiny-")  # lives as long as the session


def home() -> Path:
    """A folder of this process's tests."""
    return Path(_HOME.name)


@functools.cache
def models() -> Path:
    """A folder with `muse` (16-pixel images, 4×4 tokens of 32 codes, texts of 16 tokens) and
    `clip`.
    """
    return build_models(home() / "models", seed=1)


@functools.cache
def other_models() -> Path:
    """The same with other weights."""
    return build_models(home() / "other_models", seed=2)


def build_models(folder: Path, *, seed: int) -> Path:
    from styledrop_jax.models import clip, uvit, vqgan
    from styledrop_jax.models.tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(["a cat", "a red house", "in watercolor painting style"], 600, 16)
    text = clip.TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = clip.VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=RESOLUTION,
        patch_size=8,
    )
    denoiser = uvit.Config(
        hidden_size=16,
        cond_embed_dim=16,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=16,
        vocab_size=40,
        codebook_size=32,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=4,
    )
    codec = vqgan.Config(
        block_out_channels=(4, 4, 8),
        latent_channels=4,
        num_vq_embeddings=32,
        vq_embed_dim=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    whole = clip.ClipConfig(text=text, vision=vision, projection_dim=16)
    parts = (
        ("muse/transformer", uvit.UVit, denoiser, uvit.RULES),
        ("muse/vqvae", vqgan.VQModel, codec, vqgan.RULES),
        ("muse/text_encoder", clip.ClipText, text, clip.RULES),
        ("clip", clip.Clip, whole, clip.RULES),
    )
    _save(folder, parts, 100 * seed)
    save_tokenizer(tokenizer, folder / "muse" / "tokenizer")
    save_tokenizer(tokenizer, folder / "clip")
    return folder


def unet_config(*, sample_size: int, cross_attention_dim: int):
    """The smallest U-Net with both kinds of block."""
    from styledrop_jax.models import unet

    return unet.Config(
        sample_size=sample_size,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 12),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
    )


@functools.cache
def stable_diffusion() -> Path:
    """A folder of a Stable Diffusion: 16-pixel images, 8×8 latents, texts of 64 tokens."""
    from styledrop_jax.io import hub
    from styledrop_jax.io.files import write_json
    from styledrop_jax.models import clip, unet, vae
    from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer

    folder, tokenizer = home() / "stable_diffusion", load_tokenizer(models() / "clip")
    text = clip.ClipConfig.from_dict(hub.read_config(models() / "clip")).text
    text = dataclasses.replace(text, max_position_embeddings=64)
    denoiser = unet_config(sample_size=8, cross_attention_dim=text.hidden_size)
    codec = vae.Config(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, sample_size=16
    )
    parts = (
        ("unet", unet.UNet, denoiser, unet.RULES),
        ("vae", vae.AutoencoderKL, codec, vae.RULES),
        ("text_encoder", clip.ClipText, text, clip.RULES),
    )
    _save(folder, parts, 300)
    save_tokenizer(tokenizer, folder / "tokenizer")
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    return folder


@functools.cache
def stable_diffusion_xl() -> Path:
    """The same as an XL: a second text tower, transformers of two layers, pooled text and sizes."""
    from styledrop_jax.io import hub
    from styledrop_jax.models import clip, unet
    from styledrop_jax.models.tokenizer import load_tokenizer, save_tokenizer

    folder = home() / "stable_diffusion_xl"
    shutil.copytree(stable_diffusion(), folder)
    first = clip.TextConfig.from_dict(hub.read_config(folder / "text_encoder"))
    second = dataclasses.replace(
        first, hidden_size=12, projection_dim=8, num_hidden_layers=3, hidden_act="gelu"
    )
    denoiser = unet.Config(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 12),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=first.hidden_size + second.hidden_size,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=second.projection_dim + 6 * 4,
    )
    parts = (
        ("unet", unet.UNet, denoiser, unet.RULES),
        ("text_encoder_2", clip.ClipText, second, clip.RULES),
    )
    _save(folder, parts, 400)
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.pad_token = "!"
    save_tokenizer(tokenizer, folder / "tokenizer_2")
    return folder


def _save(folder: Path, parts: tuple, seed: int) -> None:
    """Writes models of random weights; each part is (its folder, class, config, naming)."""
    from styledrop_jax.io import hub, pretrained

    for i, (name, model, config, rules) in enumerate(parts):
        module = nnx.eval_shape(functools.partial(model, config, rngs=pretrained.ONE_KEY))
        tensors = _weights(pretrained.shapes(module, rules), seed + i)
        hub.save_component(folder / name, config.to_dict(), tensors)


def _weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random, with scales at which different images are different tokens, and different tokens
    different images.
    """
    rng = np.random.default_rng(seed)

    def weight(name: str) -> np.ndarray:
        noise = rng.normal(0, 1.0 if "quantize" in name else 0.3, shapes[name])
        return noise * (not name.endswith("bias")) + ("norm" in name and name.endswith("weight"))

    return {name: np.asarray(weight(name), np.float32) for name in sorted(shapes)}


def picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 16), **save: object) -> Path:
    """Writes a image of coloured squares, `size` = (width, height), in the format of the path's
    suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path, **save)
    return path


@functools.cache
def reference() -> Path:
    return picture(home() / "reference.png")


@functools.cache
def prompt_file() -> Path:
    path = home() / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


def arguments(workdir: Path, *more: object, image: object = None) -> list[str]:
    """The command line of the smallest run: two rounds of 4 steps, 2 prompts × 2 images, 2 at a
    time.
    """
    config = {
        "base": models() / "muse",
        "clip": models() / "clip",
        "prompts": prompt_file(),
        "reference.image": image or reference(),
        "reference.content": "a house",
        "reference.descriptor": "in watercolor painting style",
        "round_1.sample.batch_size": 2,
    }
    line: list[object] = ["personalize", "--config", "debug:emoji128-muse", "--workdir", workdir]
    for name, value in config.items():
        line += [f"--config.{name}", value]
    line += more
    return [str(word) for word in line]


def styledrop(*words: object) -> int:
    """Runs the command line in this process; returns its exit code."""
    from styledrop_jax import cli

    argv, sys.argv = sys.argv, ["styledrop", *(str(word) for word in words)]
    try:
        cli.run()
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = argv


@functools.cache
def finished() -> Path:
    """A finished run, to be looked at or copied, never changed."""
    workdir = home() / "finished"
    assert styledrop(*arguments(workdir)) == 0
    return workdir
