"""What tests against the models of reference libraries share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def randomize(model: Any, deviation: float = 0.2) -> Any:
    """Makes every parameter random, so that no bias, norm or layer of zeros hides a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for path, param in model.named_parameters():
            scales = "norm" in path and path.endswith("weight") and param.ndim == 1
            param.copy_(torch.randn_like(param) * deviation + scales)
    return model.train(False)


def shapes(build: Callable[[], torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a reference model, which is built without its weights."""
    with torch.device("meta"):
        model = build()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def channels_first(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def close(ours: Any, theirs: Any) -> None:
    """Asserts that two arrays agree within the error of float32."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=1e-4)


def loaded_whole(info: dict[str, Any]) -> bool:
    """Whether the reference library found the tensors of a model, in its shapes, and no others."""
    return not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
