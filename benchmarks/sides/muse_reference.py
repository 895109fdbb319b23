"""The reference's side of muse_vs_reference.py.

Modules of diffusers and transformers run in the loop of diffusers' own trainer. That trainer,
`examples/amused/train_amused.py`, needs torchvision, datasets and wandb, so it cannot be called
here.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.uvit_2d import UVit2DModel
from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline
from diffusers.schedulers.scheduling_amused import AmusedScheduler
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sides import torch_loops
from sides.job import RANK, Job


def prepare(job: Job, task: str, *, cached: bool, guidance_scale: float) -> Callable[[], int]:
    """Loads the model.

    Returns:
        what does one turn's work, to the end, and returns its units.
    """
    if task != "sample":
        return _training(job, task, cached=cached)
    device = torch_loops.setup(job)
    dtype = getattr(torch, job.dtype)
    pipeline = torch_loops.load(AmusedPipeline, job.folder, dtype).to(device)
    return torch_loops.sampling(job, pipeline, guidance_scale=guidance_scale)


def check(job: Job) -> dict[str, np.ndarray]:
    """What both sides must agree on, in float32, with our side's `adapter.npz`."""
    torch.backends.cudnn.allow_tf32 = False
    model = _Model(job)
    adapter = _attach(model.transformer.requires_grad_(False))
    torch_loops.set_values(adapter, job.work / "adapter.npz")
    inputs = np.load(job.work / "check.npz")
    shape = inputs["tokens"].shape
    tokens = torch.from_numpy(inputs["tokens"]).flatten(1).to(model.device)
    mask = torch.from_numpy(inputs["mask"]).flatten(1).to(model.device)
    states, pooled = model.encode_text(model.ids[: shape[0]])
    loss, logits = model.loss(tokens, mask, states, pooled)
    gradient = torch_loops.flat_gradient(loss, adapter)
    with torch.no_grad():
        whole = (*shape, model.autoencoder.config.latent_channels)
        decoded = model.autoencoder.decode(tokens, force_not_quantize=True, shape=whole).sample
    found = {
        "logits": logits,
        "loss": loss,
        "gradient": gradient,
        "images": decoded.clamp(0, 1).permute(0, 2, 3, 1),
        "tokens": model.encode_images(model.pixels[: shape[0]]).reshape(shape),
    }
    return torch_loops.numpy(found)


class _Model:
    """The three parts in float32 on the device, and the batch.

    Attributes:
        transformer, autoencoder, tower: modules; the transformer alone trains.
        ids: token ids of the prompts, [b, t].
        pixels: of the images, [b, 3, r, r], on the host.
        micro: aMUSEd's micro-conditions, [5].
        masks: the mask token, or that of each place, [n].
    """

    def __init__(self, job: Job):
        self.device = torch_loops.setup(job)
        transformer = torch_loops.load(UVit2DModel, job.folder / "transformer")
        codec = torch_loops.load(VQModel, job.folder / "vqvae")
        tower = torch_loops.load(CLIPTextModelWithProjection, job.folder / "text_encoder")
        self.transformer = transformer.to(self.device).train()
        self.autoencoder = codec.to(self.device).requires_grad_(False)
        self.tower = tower.to(self.device).train(False).requires_grad_(False)
        ids = torch_loops.token_ids(job.folder, job.prompts, tower.config.max_position_embeddings)
        self.ids = ids.to(self.device)
        images = torch.from_numpy(job.images() / np.float32(255))
        self.pixels = images.permute(0, 3, 1, 2).contiguous()
        side = float(self.pixels.shape[-1])
        self.micro = torch.tensor([side, side, 0, 0, 6.0], device=self.device)
        config = json.loads((job.folder / "transformer" / "config.json").read_text())
        self.masks = torch.tensor(config["vocab_size"] - 1, device=self.device)
        if config.get("positional_masks"):
            # A field of ours alone: the reference is given each place's own mask token.
            places = torch.arange(config["sample_size"] ** 2, device=self.device)
            self.masks = config["codebook_size"] + places

    @torch.no_grad()
    def encode_text(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [b, t] → states [b, t, c] and pooled features [b, p]."""
        out = self.tower(ids, return_dict=True, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [b, 3, r, r] → tokens [b, n]."""
        latents = self.autoencoder.encode(pixels.to(self.device)).latents
        return self.autoencoder.quantize(latents)[2][2].reshape(len(pixels), -1)

    def loss(
        self, tokens: torch.Tensor, mask: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean cross-entropy of the masked tokens, and logits [b, n, v].

        Args:
            tokens, mask: [b, n].
            states, pooled: of `encode_text`.
        """
        b = len(tokens)
        side = self.transformer.config.sample_size
        grid = torch.where(mask, self.masks, tokens).reshape(b, side, side)
        micro = self.micro.expand(b, -1)
        with torch.autocast("cuda", torch.bfloat16, enabled=states.dtype == torch.bfloat16):
            logits = self.transformer(grid, states, pooled, micro)  # [b, v, h, w]
        logits = logits.float().flatten(2).permute(0, 2, 1)
        labels = torch.where(mask, tokens, -100)
        flat = logits.reshape(-1, logits.shape[-1])
        return functional.cross_entropy(flat, labels.reshape(-1)), logits


def _attach(transformer: Any) -> dict[str, nn.Parameter]:
    """Our adapter's mathematics as hooks; returns {the name in our files: parameter}, sorted."""

    def adapter(site: nn.ParameterDict, index: int, _module, _inputs, out):
        wd = site["down"][0] + site["down_shift"][index]  # [d, H]
        wu = site["up"][0] + site["up_shift"][index]  # [H, d]
        return out + functional.gelu(out @ wd, approximate="tanh") @ wu

    layers = transformer.config.num_hidden_layers
    width = transformer.config.hidden_size
    named = {}
    for slot, module in (("attn_adapter", "attn2"), ("mlp_adapter", "ff")):
        site = nn.ParameterDict(
            {
                "down": torch.zeros(1, width, RANK),
                "up": torch.zeros(1, RANK, width),
                "down_shift": torch.zeros(layers, RANK),
                "up_shift": torch.zeros(layers, width),
            }
        ).to(transformer.device)
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

    def encode(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return model.encode_images(model.pixels[rows]), *model.encode_text(model.ids[rows])

    kept = encode(torch.arange(job.batch)) if cached else ()

    def loss() -> torch.Tensor:
        rows = torch.randperm(job.batch)
        tokens, states, pooled = [x[rows] for x in kept] if cached else encode(rows)
        b, n = tokens.shape
        rate = torch.cos(torch.rand(b, 1, device=model.device) * (torch.pi / 2))
        order = torch.rand(b, n, device=model.device).argsort(-1)
        mask = order < (n * rate).round().clamp(min=1)
        return model.loss(tokens, mask, states, pooled)[0]

    return torch_loops.training(job, parameters, loss)


# ---------------------------------------------------------------------------------- random weights

_RANDOM: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "transformer": dict(
            hidden_size=32, cond_embed_dim=16, micro_cond_encode_dim=8, micro_cond_embed_dim=40,
            encoder_hidden_size=16, vocab_size=72, codebook_size=64, in_channels=16,
            block_out_channels=16, num_res_blocks=1, downsample=True, upsample=True,
            block_num_heads=2, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            sample_size=8,
        ),
        "vqvae": dict(
            block_out_channels=(8, 8), latent_channels=8, num_vq_embeddings=64, norm_num_groups=4,
        ),
        "text": dict(
            hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
            num_attention_heads=2,
        ),
    },
    # The public configs are UVit2DModel's defaults but for what is named here.
    "amused-256": {"transformer": dict(sample_size=16)},
    "amused-512": {"transformer": dict(sample_size=32, downsample=True, upsample=True)},
}  # fmt: skip
_AMUSED: dict[str, dict[str, Any]] = {
    "vqvae": dict(
        block_out_channels=(128, 256, 256, 512, 768), layers_per_block=2, latent_channels=64,
        num_vq_embeddings=8192, force_upcast=True,
    ),
    "text": dict(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12,
    ),
}  # fmt: skip


def write_random(folder: Path, name: str) -> None:
    """Writes a model with random weights, in the diffusers layout.

    Args:
        folder: is made.
        name: of a public config, or "tiny".
    """
    from styledrop_jax.models.tokenizer import train_tokenizer

    torch.manual_seed(0)
    sizes = _AMUSED | _RANDOM[name]
    transformer: Any = UVit2DModel(**sizes["transformer"])
    blocks = len(sizes["vqvae"]["block_out_channels"])
    codec = VQModel(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        **sizes["vqvae"],
    )
    config = CLIPTextConfig(bos_token_id=0, eos_token_id=2, **sizes["text"])
    tower = CLIPTextModelWithProjection(config)
    torch_loops.randomize_constants(transformer, codec, tower)
    # The codes are far apart: which one is nearest is then no matter of rounding.
    nn.init.normal_(codec.quantize.embedding.weight)
    tokenizer: Any = train_tokenizer([], 514, 77)
    pipeline = AmusedPipeline(
        vqvae=codec,
        text_encoder=tower,
        transformer=transformer,
        tokenizer=tokenizer,
        scheduler=AmusedScheduler(mask_token_id=transformer.config.vocab_size - 1),
    )
    pipeline.to(torch.float16).save_pretrained(folder)
