"""stub"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    base: Any
    model: Any
    what: Any
    base_name: str
    info: Any


EXPORTS = {}
