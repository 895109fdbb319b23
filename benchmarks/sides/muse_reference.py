"""The reference's side of muse_vs_reference.py: modules of diffusers and transformers, in the loop of its own trainer.

That trainer, `examples/amused/train_amused.py`, needs torchvision, datasets and wandb, so it cannot be called here.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sides import torch_loops
from sides.job import RANK, Job
from sides.torch_loops import LOCAL, WHOLE


def prepare(job: Job, task: str, *, cached: bool, guidance: float) -> Callable[[], int]:
    """Loads the model; each call of the result does one turn's work, to the end, and returns its units."""
    device = torch_loops.setup(job)
    if task != "sample":
        return _training(job, task, cached=cached)
    dtype = torch.bfloat16 if job.device == "gpu" else torch.float32
    pipeline = AmusedPipeline.from_pretrained(job.folder, dtype=dtype, **WHOLE).to(device)
    return torch_loops.sampling(job, pipeline, guidance=guidance)


def check(job: Job) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32, with our side's `adapter.npz`."""
    torch.backends.cudnn.allow_tf32 = False
    model = _Model(job)
    adapter = _attach(model.transformer.requires_grad_(False))
    torch_loops.set_values(adapter, job.work / "adapter.npz")
    inputs = np.load(job.work / "check.npz")
    shape = inputs["tokens"].shape
    tokens, mask = (
        torch.from_numpy(inputs[name]).flatten(1).to(model.device) for name in ("tokens", "mask")
    )
    text = model.encode_text(model.ids[: shape[0]])
    loss, logits = model.loss(tokens, mask, *text)
    gradient = torch_loops.flat_gradient(loss, adapter)
    with torch.no_grad():
        whole = (*shape, model.autoencoder.config.latent_channels)
        images = model.autoencoder.decode(
            tokens, force_not_quantize=True, shape=whole
        ).sample.clamp(0, 1)
        found = {
            "logits": logits,
            "loss": loss,
            "gradient": gradient,
            "images": images.permute(0, 2, 3, 1),
            "tokens": model.encode_images(model.pixels[: shape[0]]).reshape(shape),
        }
    return torch_loops.numpy(found)


class _Model:
    """The three parts in float32 on the device, and the batch."""

    def __init__(self, job: Job):
        self.device = torch_loops.setup(job)
        transformer = UVit2DModel.from_pretrained(
            job.folder / "transformer", dtype=torch.float32, **WHOLE
        )
        codec = VQModel.from_pretrained(job.folder / "vqvae", dtype=torch.float32, **WHOLE)
        tower = CLIPTextModelWithProjection.from_pretrained(
            job.folder / "text_encoder", dtype=torch.float32, **LOCAL
        )
        self.transformer = transformer.to(self.device).train()
        self.autoencoder = codec.to(self.device).requires_grad_(False)
        self.tower = tower.to(self.device).train(False).requires_grad_(False)
        ids = torch_loops.token_ids(job.folder, job.prompts, tower.config.max_position_embeddings)
        self.ids = ids.to(self.device)  # [b, t]
        self.pixels = (
            torch.from_numpy(job.images()).permute(0, 3, 1, 2).contiguous()
        )  # [b, 3, r, r], on the host
        side = float(self.pixels.shape[-1])
        self.micro = torch.tensor([side, side, 0, 0, 6.0], device=self.device)
        config = json.loads((job.folder / "transformer" / "config.json").read_text())
        self.masks = torch.tensor(config["vocab_size"] - 1, device=self.device)
        if config.get(
            "positional_masks"
        ):  # ours alone: the reference is given each place's own mask token
            self.masks = config["codebook_size"] + torch.arange(
                config["sample_size"] ** 2, device=self.device
            )

    @torch.no_grad()
    def encode_text(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.tower(ids, return_dict=True, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [b, 3, r, r] → tokens [b, n]."""
        latents = self.autoencoder.encode(pixels.to(self.device)).latents
        return self.autoencoder.quantize(latents)[2][2].reshape(len(pixels), -1)

    def loss(self, tokens, mask, states, pooled) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask [b, n] → the mean cross-entropy of the masked tokens, and logits [b, n, v]."""
        b, side = len(tokens), self.transformer.config.sample_size
        grid = torch.where(mask, self.masks, tokens).reshape(b, side, side)
        with torch.autocast("cuda", torch.bfloat16, enabled=states.dtype == torch.bfloat16):
            logits = self.transformer(
                grid, states, pooled, self.micro.expand(b, -1)
            )  # [b, v, h, w]
        logits = logits.float().flatten(2).permute(0, 2, 1)
        labels = torch.where(mask, tokens, -100)
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        ), logits


def _attach(transformer: UVit2DModel) -> dict[str, nn.Parameter]:
    """Our adapter's mathematics as hooks; returns {the name in our files: parameter}, sorted."""

    def adapter(site: nn.ParameterDict, index: int, _module, _inputs, out):
        wd = site["down"][0] + site["down_shift"][index]  # [d, H]
        wu = site["up"][0] + site["up_shift"][index]  # [H, d]
        return out + functional.gelu(out @ wd, approximate="tanh") @ wu

    layers, width = transformer.config.num_hidden_layers, transformer.config.hidden_size
    shapes = {"down": (1, width, RANK), "up": (1, RANK, width)}
    shapes |= {"down_shift": (layers, RANK), "up_shift": (layers, width)}
    named = {}
    for slot, module in (("attn_adapter", "attn2"), ("mlp_adapter", "ff")):
        site = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()}).to(
            transformer.device
        )
        for name, parameter in site.items():
            if name.startswith("down"):
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            named[f"transformer_layers.0.{slot}.generator.{name}"] = parameter
        for index, layer in enumerate(transformer.transformer_layers):
            getattr(layer, module).register_forward_hook(functools.partial(adapter, site, index))
    return dict(sorted(named.items()))


def _training(job: Job, task: str, *, cached: bool) -> Callable[[], int]:
    model = _Model(job)
    if job.device == "gpu":  # what the trainer does under `--mixed_precision bf16`
        model.tower.to(torch.bfloat16)
    if task == "adapter":
        parameters = list(_attach(model.transformer.requires_grad_(False)).values())
    else:
        parameters = list(model.transformer.parameters())

    def encode(rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return model.encode_images(model.pixels[rows]), *model.encode_text(model.ids[rows])

    kept = encode(slice(None)) if cached else ()

    def loss() -> torch.Tensor:
        rows = torch.randperm(job.batch)
        tokens, *text = [x[rows] for x in kept] if cached else encode(rows)
        b, n = tokens.shape
        rate = torch.cos(torch.rand(b, 1, device=model.device) * (torch.pi / 2))
        order = torch.rand(b, n, device=model.device).argsort(-1)
        return model.loss(tokens, order < (n * rate).round().clamp(min=1), *text)[0]

    return torch_loops.training(job, parameters, loss)


# ---------------------------------------------------------------------------------------------------- random weights

_RANDOM: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "transformer": dict(
            hidden_size=32, cond_embed_dim=16, micro_cond_encode_dim=8, micro_cond_embed_dim=40, encoder_hidden_size=16,
            vocab_size=72, codebook_size=64, in_channels=16, block_out_channels=16, num_res_blocks=1, downsample=True,
            upsample=True, block_num_heads=2, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            sample_size=8,
        ),
        "vqvae": dict(block_out_channels=(8, 8), latent_channels=8, num_vq_embeddings=64, norm_num_groups=4),
        "text": dict(
            hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2, num_attention_heads=2,
        ),
    },
    # the public configs are UVit2DModel's defaults but for what is named here
    "amused-256": {"transformer": dict(sample_size=16)},
    "amused-512": {"transformer": dict(sample_size=32, downsample=True, upsample=True)},
}  # fmt: skip
_AMUSED: dict[str, dict[str, Any]] = {
    "vqvae": dict(
        block_out_channels=(128, 256, 256, 512, 768), layers_per_block=2, latent_channels=64, num_vq_embeddings=8192,
        force_upcast=True,
    ),
    "text": dict(hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12),
}  # fmt: skip


def write_random(folder: Path, name: str) -> None:
    """A model of the public config `name`, or of the size "tiny", with random weights, in the diffusers layout."""
    from styledrop_jax.models.tokenizer import train_tokenizer

    torch.manual_seed(0)
    sizes = _AMUSED | _RANDOM[name]
    transformer = UVit2DModel(**sizes["transformer"])
    blocks = len(sizes["vqvae"]["block_out_channels"])
    codec = VQModel(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        **sizes["vqvae"],
    )
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(bos_token_id=0, eos_token_id=2, **sizes["text"])
    )
    torch_loops.enliven(transformer, codec, text)
    nn.init.normal_(
        codec.quantize.embedding.weight
    )  # far apart: which code is nearest is no matter of rounding
    pipeline = AmusedPipeline(
        vqvae=codec,
        text_encoder=text,
        transformer=transformer,
        tokenizer=train_tokenizer([], 514, 77),
        scheduler=AmusedScheduler(mask_token_id=transformer.config.vocab_size - 1),
    )
    pipeline.to(torch.float16).save_pretrained(folder)
