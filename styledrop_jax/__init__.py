"""styledrop_jax: teach a text-to-image model your style or your subject from 1 to 20 images, on
JAX.

    import styledrop_jax
    from PIL import Image

    style = styledrop_jax.personalize(
        Image.open("my.png"),
        content="a house",
        descriptor="in watercolor painting style",
        workdir="runs/mine",
    )
    style.sample("a cat")[0].save("cat.png")
    style.export("exported", format="styledrop")

What is here is loaded when it is first used: importing the package takes no time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from styledrop_jax.errors import UserError
    from styledrop_jax.library import config_names, describe, load, personalize
    from styledrop_jax.style import Style

__version__ = "0.1.0"
__all__ = ["Style", "UserError", "config_names", "describe", "load", "personalize"]


def __getattr__(name: str) -> Any:
    if name == "Style":
        from styledrop_jax.style import Style

        return Style
    if name == "UserError":
        from styledrop_jax.errors import UserError

        return UserError
    if name in __all__:
        from styledrop_jax import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
