"""The loops of the reference's trainers and pipelines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn
from transformers import CLIPTokenizer

from sides.job import LEARNING_RATE, Job

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def setup(job: Job) -> str:
    """Sets the threads; returns the device's name in torch."""
    torch.set_num_threads(job.torch_threads)
    return "cuda" if job.device == "gpu" else "cpu"


def load(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A pipeline or a part of one from a folder on this machine.

    Args:
        kind: a class of diffusers or transformers; what it returns is Any since their decorators
            hide the types of their methods.
        folder: in the diffusers layout.
        dtype: of the weights.
        options: of `kind.from_pretrained`.
    """
    if kind.__module__.startswith("diffusers"):
        options["low_cpu_mem_usage"] = False  # anything else asks for accelerate
    return kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)


def token_ids(folder: Path, prompts: Sequence[str], length: int) -> torch.Tensor:
    """[b, length] with the model's own tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoded = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length)
    return torch.tensor(encoded["input_ids"])


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


def sampling(job: Job, pipeline: Any, *, guidance_scale: float) -> Callable[[], int]:
    """One turn of sampling with a pipeline of diffusers."""
    pipeline.set_progress_bar_config(disable=True)

    def run() -> int:
        for _ in range(job.batches):
            images = pipeline(
                list(job.prompts),
                num_inference_steps=job.steps,
                guidance_scale=guidance_scale,
                output_type="pt",
            ).images
            assert np.isfinite(images.float().cpu().numpy()).all()
        return job.batches * job.batch

    return run


def peak() -> float:
    """MiB that the allocator of the device had in use at most."""
    return torch.cuda.max_memory_allocated() / 2**20


def set_values(parameters: Mapping[str, nn.Parameter], file: Path) -> None:
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


def flat_gradient(loss: torch.Tensor, parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """The gradient as one vector, in the order of the parameters."""
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def numpy(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


@torch.no_grad()
def randomize_constants(*modules: nn.Module) -> None:
    """Makes every constant parameter of fresh modules, a norm's or a bias, random.

    At their initial zeros and ones they would hide what they do.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
