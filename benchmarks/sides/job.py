"""What both sides of a benchmark are told."""

import dataclasses
from pathlib import Path

import numpy as np

RANK = 4  # of the adapters
LEARNING_RATE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark.

    Attributes:
        folder: of the model, in the diffusers layout.
        work: holds `images.npy` uint8 [n, r, r, 3], and `check.npz`, the inputs of the check.
        device: "cpu" or "gpu".
        prompts: b of them, one for each image that is sampled.
        steps: of decoding or denoising.
        train_steps, steps_per_call: training steps in one turn, and in one dispatch of ours.
        batches: batches of images in one turn.
        torch_threads: of the reference on the CPU; JAX takes what it takes by default.
    """

    folder: Path
    work: Path
    device: str
    prompts: tuple[str, ...]
    steps: int
    train_steps: int
    steps_per_call: int
    batches: int
    torch_threads: int

    @property
    def batch(self) -> int:
        return len(self.prompts)

    @property
    def dtype(self) -> str:
        """What is computed in where speed is measured; the check is always in float32."""
        return "bfloat16" if self.device == "gpu" else "float32"

    def images(self) -> np.ndarray:
        """[n, r, r, 3] uint8."""
        return np.load(self.work / "images.npy")
