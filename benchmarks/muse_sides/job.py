"""What both sides of muse_vs_reference.py are told."""

import dataclasses
from pathlib import Path

import numpy as np

RANK = 4  # of the adapter, its generator shared by the layers: round 1 of StyleDrop (2306.00983)
LEARNING_RATE = 3e-5
GUIDANCE = 10.0  # `uncond + s (cond - uncond)`, aMUSEd's default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark.

    Attributes:
        folder: of the model, in the diffusers layout.
        work: holds `images.npy` uint8 [b, r, r, 3], and `check.npz` with `tokens` int [k, h, w] and `mask` bool.
        device: "cpu" (float32) or "gpu" (bfloat16).
        prompts: b of them.
        steps: of decoding.
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

    def images(self) -> np.ndarray:
        """[b, r, r, 3] float32 in [0, 1]."""
        return np.load(self.work / "images.npy").astype(np.float32) / 255
