"""What the tests of pipelines share: a tiny Stable Diffusion of the reference libraries, on
disk."""

from pathlib import Path
from typing import Any

import pytest
import references

from styledrop_jax.pipelines import load


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return references.parts()


@pytest.fixture(scope="module")
def folders(parts, tmp_path_factory) -> dict[str, Path]:
    """Saved by the reference library, once for each prediction type."""
    found = {}
    for prediction in ("epsilon", "v_prediction"):
        found[prediction] = tmp_path_factory.mktemp(prediction)
        references.save(parts, found[prediction], prediction)
    return found


@pytest.fixture(scope="module")
def models(folders) -> dict[str, Any]:
    found = {}
    for prediction, folder in folders.items():
        found[prediction] = load.load(str(folder))
    return found
