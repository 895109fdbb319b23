"""The loops of the reference's trainers and pipelines."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn
from transformers import CLIPTokenizer

from sides.job import LEARNING_RATE, Job

for library in (diffusers, transformers):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()

LOCAL: dict[str, Any] = dict(local_files_only=True)
WHOLE: dict[str, Any] = dict(low_cpu_mem_usage=False, **LOCAL)  # anything else asks for accelerate


def setup(job: Job) -> str:
    """Sets the threads; returns the device's name in torch."""
    torch.set_num_threads(job.torch_threads)
    return "cuda" if job.device == "gpu" else "cpu"


def token_ids(folder: Path, prompts: Sequence[str], length: int) -> torch.Tensor:
    """[b, length] with the model's own tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", **LOCAL)
    return torch.tensor(
        tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length)[
            "input_ids"
        ]
    )


def training(
    job: Job, parameters: Iterable[nn.Parameter], loss: Callable[[], torch.Tensor]
) -> Callable[[], int]:
    """One turn of training: `loss` of the next batch, its gradient, Adam."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def run() -> int:
        for _ in range(job.train_steps):
            value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert np.isfinite(value.item())
        if job.device == "gpu":
            torch.cuda.synchronize()
        return job.train_steps

    return run


def sampling(
    job: Job, pipeline: diffusers.DiffusionPipeline, *, guidance: float
) -> Callable[[], int]:
    """One turn of drawing."""
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = dict(
        num_inference_steps=job.steps, guidance_scale=guidance, output_type="pt"
    )

    def run() -> int:
        for _ in range(job.batches):
            images = pipeline(list(job.prompts), **settings).images
            assert np.isfinite(images.float().cpu().numpy()).all()
        return job.batches * job.batch

    return run


def peak() -> float:
    """MiB that the allocator of the device had in use at most."""
    return torch.cuda.max_memory_allocated() / 2**20


def set_values(parameters: dict[str, nn.Parameter], file: Path) -> None:
    """Gives the parameters the values that our side wrote.

    Raises:
        ValueError: the file's names are others.
    """
    values = np.load(file)
    if set(values) != set(parameters):
        raise ValueError(f"the adapters' tensors differ: {sorted(set(values) ^ set(parameters))}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))


def flat_gradient(loss: torch.Tensor, parameters: dict[str, nn.Parameter]) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def numpy(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


@torch.no_grad()
def enliven(*modules: nn.Module) -> None:
    """Makes every constant parameter of fresh modules, a norm's or a bias, random, so that it counts."""
    for parameter in (p for module in modules for p in module.parameters()):
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
