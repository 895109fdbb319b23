"""Tensors of safetensors files, those of eight-bit floats too, which the library's reader for NumPy
does not know.

Eight-bit weights stand for themselves: they are cast when they are loaded. Those that are scaled
need the tensors beside them that say by how much.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from styledrop_jax.errors import UserError, shown

DTYPES: dict[str, np.dtype] = {
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
"""By the names that safetensors have for them."""
_SCALED = re.compile(r"scaled_fp8|.+\.(?:scale_weight|weight_scale|comfy_quant)")


def check_unscaled(file: Path, names: Iterable[str]) -> None:
    """UserError if one of a file's tensors says that others mean something only when scaled."""
    for name in names:
        if _SCALED.fullmatch(name):
            raise UserError(
                f"{file}: its tensor {shown(name, 120)} says that its weights are scaled fp8; "
                "expected float32, float16, bfloat16, or fp8 without scales"
            )


def tensor(handle: Any, file: Path, name: str) -> np.ndarray:
    """The tensor `name` of a `file` that `safe_open` has opened for NumPy as `handle`, and so
    found whole."""
    part = handle.get_slice(name)
    if part.get_dtype() not in DTYPES:
        return handle.get_tensor(name)
    begin = _header(file, file.stat().st_mtime_ns)[name]["data_offsets"][0]
    shape = tuple(part.get_shape())
    dtype = DTYPES[part.get_dtype()]
    count = int(np.prod(shape))
    with open(file, "rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little") + begin)
        return np.frombuffer(stream.read(count), dtype).reshape(shape)


@functools.lru_cache(maxsize=2)
def _header(file: Path, changed: int) -> dict[str, Any]:
    """{tensor: what the file says of it}; `changed` is when, so that a new file is read anew."""
    with open(file, "rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
