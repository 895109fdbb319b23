"""What the tests of the user's files share."""

import numpy as np
import pytest

from styledrop_jax.errors import UserError


@pytest.fixture
def image():
    """Smooth, uint8 [24, 36, 3], so that lossy formats stay close."""
    y, x = np.mgrid[0:24, 0:36]
    return np.stack([x * 7, y * 10, 255 - x * 3], axis=-1).astype(np.uint8)


@pytest.fixture
def refused():
    """Calls what must be refused, and returns the error: one line that is not long."""

    def call(function, *arguments, **keywords) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments, **keywords)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 300
        return message

    return call
